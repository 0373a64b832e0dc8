"""The plant: a power-limited fleet that serves requests, B environments at a time.

One struct of arrays owns the truth, one compiled function advances it, and the arbiter's own kernel runs inside the
loop every tick: what trains here is what runs live.
"""

from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter

import numpy as np

from ..fleet.arbiter.settle import make_scratch, read_tree, settle_one
from ..fleet.arbiter.state import ArbiterState, initial_state
from ..fleet.bids import Bids
from ..fleet.plan import Plan
from ..fleet.snapshot import Snapshot
from ..fleet.tables import DECODE, PARKED, PREFILL, TRAINING
from ..fleet.topology import Fleet
from .compiled import kernel
from .delivery import deliver_step
from .episode_start import make_start, start_episode
from .hardware import profile_table
from .kpis import episode_kpis
from .load import Load
from .node_dynamics import receive_plan
from .node_loops import decode_and_draw
from .plant_tables import (
    HISTOGRAM_BINS,
    PLANT_DOMAIN,
    PLANT_NODE,
    PLANT_PARAMS,
    PLANT_SERVICE,
    TOTALS,
)
from .scenario import Scenario
from .serving_dynamics import lose_node, serve_step
from .telemetry import tell
from .tiles import gather, land, make_tiles
from .world import world_tick


@kernel
def _tick_one(
    b, substeps, node_static, domain_static, service_static, fleet_static, profiles, params, tick, time_s, arrivals,
    prompt_tok, output_tok, ca2, cs2, limits, told, node, domain, service, totals, ttft, itl, plan_node, node_told,
    domain_told, service_told, tiles,
):  # fmt: skip
    """Advance environment `b`, whose columns are gathered, by one tick under the plan of now; write what is told."""
    tick_s = fleet_static[0].tick_s
    dt_s = tick_s / substeps
    k = tick[b]
    measured = time_s[b] >= params[b].warmup_s
    receive_plan(b, k, tick_s, measured, node_static, params, node, plan_node, totals, tiles)
    world_tick(
        b, k, tick_s, time_s[b], measured, node_static, domain_static, profiles, params, node, domain, service, totals,
        tiles,
    )  # fmt: skip
    for step in range(substeps):
        for s in range(service.shape[1]):
            if service_static[s].kind == TRAINING:
                # a gang's busy share stands where prefill nodes have 1 (`tiles.gather`)
                decode_and_draw(s, dt_s, 0.0, 1.0, 1.0, params[b], tiles, profiles)
                continue
            serve_step(
                b, s, dt_s, step == substeps - 1, arrivals[b, k, s] / substeps, prompt_tok[b, k, s],
                output_tok[b, k, s], ca2[b, s], cs2[b, s], measured, service_static, profiles, params, service,
                totals, ttft, itl, tiles,
            )  # fmt: skip
        deliver_step(b, dt_s, measured, limits[b, k], node_static, domain_static, node, domain, service, totals, tiles)
    tick[b] = k + 1
    time_s[b] += tick_s
    tell(
        b, k, tick_s, measured, told[b, k + 1], params, node, domain, service, totals, node_told, domain_told,
        service_told, fleet_static[0].lease_ttl_s, tiles,
    )  # fmt: skip


@kernel
def plant_tick(
    substeps, node_static, domain_static, service_static, fleet_static, profiles, params, tick, time_s, arrivals,
    prompt_tok, output_tok, ca2, cs2, limits, told, node, domain, service, totals, ttft, itl, plan_node,
    node_told, domain_told, service_told, tiles,
):  # fmt: skip
    """Advance every environment by one tick under the plans of now, and write what is told."""
    for b in range(node.shape[0]):
        gather(b, node_static, profiles, params, node, tiles)
        _tick_one(
            b, substeps, node_static, domain_static, service_static, fleet_static, profiles, params, tick, time_s,
            arrivals, prompt_tok, output_tok, ca2, cs2, limits, told, node, domain, service, totals, ttft, itl,
            plan_node, node_told, domain_told, service_told, tiles,
        )  # fmt: skip
        land(b, node, tiles)


@kernel
def control_step(
    ticks, substeps, node_static, domain_static, service_static, fleet_static, profiles, params, tick, time_s,
    arrivals, prompt_tok, output_tok, ca2, cs2, limits, told, node, domain, service, totals, ttft, itl, plan_node,
    plan_fleet, node_told, domain_told, service_told, st_node, st_domain, st_pool, st_service, st_fleet, bid_pool,
    bid_node, bid_fleet, scratch, tiles,
):  # fmt: skip
    """`ticks` times: settle on the bids, then advance the physics.

    One environment after the other, so that its tables stay in the cache nearest to the core for all its ticks.
    """
    read_tree(domain_static, scratch.tree)
    for b in range(plan_fleet.shape[0]):
        gather(b, node_static, profiles, params, node, tiles)
        for _ in range(ticks):
            settle_one(
                node_static, domain_static, service_static, fleet_static[0], time_s[b], node_told[b], domain_told[b],
                service_told[b], st_node[b], st_domain[b], st_pool[b], st_service[b], st_fleet[b], bid_pool[b],
                bid_node[b], bid_fleet[b, 0], plan_node[b], plan_fleet[b], scratch,
            )  # fmt: skip
            if time_s[b] >= params[b].warmup_s:
                totals[b].interventions += plan_fleet[b].interventions
                totals[b].correction += plan_fleet[b].correction
            _tick_one(
                b, substeps, node_static, domain_static, service_static, fleet_static, profiles, params, tick, time_s,
                arrivals, prompt_tok, output_tok, ca2, cs2, limits, told, node, domain, service, totals, ttft, itl,
                plan_node, node_told, domain_told, service_told, tiles,
            )  # fmt: skip
        land(b, node, tiles)


EPISODE = ("params", "arrivals", "prompt_tok", "output_tok", "ca2", "cs2", "limits", "told")
"""Arrays of a plant that a reset draws and that then stay, batch axis first."""

EVOLVING = (
    "tick", "time_s", "node", "domain", "service", "totals", "ttft", "itl", "snapshot.node", "snapshot.domain",
    "snapshot.service", "state.node", "state.domain", "state.pool", "state.service", "state.fleet", "plan.node",
    "plan.fleet",
)  # fmt: skip
"""Arrays of a plant that a tick changes, the arbiter's memory and what it was told included, batch axis first."""


@dataclass(frozen=True)
class PlantState:
    """Where every environment of a plant stands within its episode.

    Attributes:
        arrays: A copy of each of `EVOLVING`, by name.
    """

    arrays: dict[str, np.ndarray]


@dataclass
class Plant:
    """B environments of one scenario on one fleet.

    Attributes:
        scenario: What happens.
        fleet: Where.
        batch: B.
        substeps: Physics steps per tick. One is enough: cap writes are resolved within a step, and what moves faster
            than a tick (a clock under its cap) is solved for, not integrated.
    """

    scenario: Scenario
    fleet: Fleet
    batch: int = 1
    substeps: int = 1
    tick: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        batch, fleet = self.batch, self.fleet
        n, d, s = len(fleet.nodes), len(fleet.domains), len(fleet.services)
        self.ticks = round(self.scenario.seconds / fleet.timing.tick_s)
        self.profiles = profile_table(fleet)
        self.params = np.zeros(batch, PLANT_PARAMS)
        self.tick = np.zeros(batch, np.int64)
        self.time_s = np.zeros(batch)
        self.arrivals = np.zeros((batch, self.ticks, s))
        self.prompt_tok = np.ones((batch, self.ticks, s))
        self.output_tok = np.ones((batch, self.ticks, s))
        self.ca2 = np.ones((batch, s))
        self.cs2 = np.ones((batch, s))
        self._limits = np.zeros((batch, self.ticks + 1, d, 2), np.int64)
        self._told = np.zeros((batch, self.ticks + 1, d, 3))
        self._series: list[object] = [None] * batch
        self.node = np.zeros((batch, n), PLANT_NODE)
        self.domain = np.zeros((batch, d), PLANT_DOMAIN)
        self.service = np.zeros((batch, s), PLANT_SERVICE)
        self.totals = np.zeros(batch, TOTALS)
        self.ttft = np.zeros((batch, s, HISTOGRAM_BINS))
        self.itl = np.zeros((batch, s, HISTOGRAM_BINS))
        self.snapshot = Snapshot.unknown(fleet, batch)
        self.snapshot = Snapshot(self.time_s, self.snapshot.node, self.snapshot.domain, self.snapshot.service)
        self.state: ArbiterState = initial_state(fleet, batch, assume_acked=True)
        self.plan = Plan.empty(batch, n)
        self._scratch = make_scratch(fleet)
        self._tiles = make_tiles(fleet)
        self._start = make_start(fleet)

    @property
    def limits(self) -> np.ndarray:
        """Limits demanded and in force (`limits.budget_series`), shape (B, ticks + 1, D, 2)."""
        self._series[:] = [None] * self.batch  # who has it may write it
        return self._limits

    @property
    def told(self) -> np.ndarray:
        """What the arbiter is told of them, shape (B, ticks + 1, D, 3)."""
        self._series[:] = [None] * self.batch
        return self._told

    def set_limits(self, env: int, series: tuple[np.ndarray, np.ndarray], is_kept: bool) -> None:
        """Write one environment's limits and what is told of them, unless they stand there already.

        They are a megabyte for 25 domains and a quarter of an hour, and the same in every episode where nothing that
        changes them is drawn.

        Args:
            env: Which environment.
            series: From `limits.budget_series`.
            is_kept: The same object comes again for the same limits.
        """
        if self._series[env] is not series:
            self._limits[env], self._told[env] = series
            self._series[env] = series if is_kept else None

    @cached_property
    def control_ticks(self) -> int:
        """Ticks between two decisions of a policy."""
        return round(self.fleet.timing.control_s / self.fleet.timing.tick_s)

    def reset(
        self,
        seeds: np.ndarray,
        load: Load,
        envs: np.ndarray | None = None,
        fault_seeds: np.ndarray | None = None,
        parameter_seeds: np.ndarray | None = None,
    ) -> Snapshot:
        """Start episodes afresh.

        Args:
            seeds: One seed per environment reset, shape (K,): parameters and event times derive from it.
            load: What arrives, batch K.
            envs: Indices of the environments reset; all by default.
            fault_seeds: Seeds of the faults; `seeds` by default.
            parameter_seeds: Seeds of the hidden parameters and of the noise of writes and telemetry; `seeds` by
                default.

        Returns:
            The snapshot that the first decision sees (a view that later steps overwrite).
        """
        index = np.arange(self.batch) if envs is None else np.asarray(envs)
        self.tick[index] = 0
        self.time_s[index] = 0.0
        self.ttft[index] = 0.0
        self.itl[index] = 0.0
        ticks = min(self.ticks, load.arrivals.shape[1])
        self.arrivals[index, :ticks] = load.arrivals[:, :ticks]
        self.arrivals[index, ticks:] = 0.0
        self.prompt_tok[index, :ticks] = load.prompt_tokens[:, :ticks]
        self.output_tok[index, :ticks] = load.output_tokens[:, :ticks]
        self.ca2[index] = load.ca2
        self.cs2[index] = load.cs2
        faults = seeds if fault_seeds is None else fault_seeds
        drawn = np.array([seeds, faults, seeds if parameter_seeds is None else parameter_seeds])
        for b, (seed, fault_seed, parameter_seed) in zip(index, drawn.T.tolist(), strict=True):
            start_episode(self, self._start, b, seed, fault_seed, parameter_seed)
        return self.snapshot

    def step(self, bids: Bids, ticks: int | None = None) -> Snapshot:
        """Settle and advance `ticks` times (one control interval by default) under the same bids.

        The episode must have that many ticks left.
        """
        f, st, sn = self.fleet, self.state, self.snapshot
        control_step(
            self.control_ticks if ticks is None else ticks, self.substeps, f.node_static, f.domain_static,
            f.service_static, f.static, self.profiles, self.params, self.tick, self.time_s, self.arrivals,
            self.prompt_tok, self.output_tok, self.ca2, self.cs2, self._limits, self._told, self.node, self.domain,
            self.service,
            self.totals, self.ttft, self.itl, self.plan.node, self.plan.fleet, sn.node, sn.domain, sn.service,
            st.node, st.domain, st.pool, st.service, st.fleet, bids.pool, bids.node, bids.fleet, self._scratch,
            self._tiles,
        )  # fmt: skip
        return sn

    def save(self) -> PlantState:
        """Copies of everything that evolves."""
        return PlantState({name: attrgetter(name)(self).copy() for name in EVOLVING})

    def restore(self, state: PlantState, envs: np.ndarray | None = None) -> Snapshot:
        """Go back to a saved state of the same episodes.

        Args:
            state: From `save` of this plant, with no reset in between.
            envs: Indices of the environments that go back; all by default.

        Returns:
            The snapshot of then.
        """
        index = slice(None) if envs is None else np.asarray(envs)
        for name in EVOLVING:
            attrgetter(name)(self)[index] = state.arrays[name][index]
        return self.snapshot

    def branch(self, env: int, copies: int) -> "Plant":
        """A plant of `copies` environments that all stand where one environment of this plant stands now.

        Faults, latencies and load of the future are those that the environment itself will meet.

        Args:
            env: Which environment.
            copies: Batch of the new plant.
        """
        plant = Plant(self.scenario, self.fleet, copies, self.substeps)
        for name in EPISODE + EVOLVING:
            attrgetter(name)(plant)[:] = attrgetter(name)(self)[env]
        return plant

    def skip_to(self, ticks: np.ndarray) -> None:
        """Move each environment's clock forward without physics, so that episodes end at different times.

        Args:
            ticks: Ticks to skip, shape (B,).
        """
        self.tick[:] += ticks
        self.time_s[:] += ticks * self.fleet.timing.tick_s
        self.state.fleet["time_s"][:] = self.time_s
        self.limits_now()

    def limits_now(self) -> None:
        """Tell the limits of each environment's present tick."""
        now = self._told[np.arange(self.batch), self.tick]
        domain = self.snapshot.domain
        domain["limit_w"], domain["next_limit_w"], domain["next_in_s"] = now[..., 0], now[..., 1], now[..., 2]

    def tick_under(self, plan_node: np.ndarray) -> Snapshot:
        """Advance one tick under a plan settled elsewhere: the live service, a recording, or nobody."""
        f, sn = self.fleet, self.snapshot
        plant_tick(
            self.substeps, f.node_static, f.domain_static, f.service_static, f.static, self.profiles, self.params,
            self.tick, self.time_s, self.arrivals, self.prompt_tok, self.output_tok, self.ca2, self.cs2, self._limits,
            self._told, self.node, self.domain, self.service, self.totals, self.ttft, self.itl, plan_node, sn.node,
            sn.domain, sn.service, self._tiles,
        )  # fmt: skip
        return sn

    def tick_live(
        self,
        cap_w: np.ndarray,
        since_s: np.ndarray,
        stage: np.ndarray,
        ceiling: np.ndarray,
        is_drained: np.ndarray,
    ) -> Snapshot:
        """Advance one tick under caps that agents wrote into the GPUs themselves.

        No command is on its way in here, and none is lost: a cap read from the GPUs is in force once the slowest
        of the hardware's latencies has passed.

        Args:
            cap_w: Caps written by the end of the tick, shape (B, N), watts.
            since_s: How long after the start of the tick each was written, shape (B, N); 0 for before.
            stage: Stages commanded, shape (B, N).
            ceiling: Clock ceilings, share of the largest clock, shape (B, N).
            is_drained: Nodes that get no new work, shape (B, N).
        """
        node, rows = self.node, self.plan.node
        cap_w = np.broadcast_to(cap_w, node.shape)
        is_pending = node["pending_s"] >= 0.0
        is_overtaken = is_pending & (node["pending_w"] != cap_w)
        node["cap_w"] = np.where(is_overtaken, node["pending_w"], node["cap_w"])
        is_new = np.where(is_pending, is_overtaken, node["cap_w"] != cap_w)
        latency_s = self.params["cap_latency_high_s"][:, None]
        node["pending_s"] = np.where(is_new, since_s + latency_s, node["pending_s"])
        node["pending_w"] = np.where(is_new, cap_w, node["pending_w"])
        node["pending_seq"] = node["ack_seq"]
        rows["cap_w"], rows["stage"], rows["clock_frac"], rows["is_drained"] = cap_w, stage, ceiling, is_drained
        rows["seq"] = node["ack_seq"]
        return self.tick_under(rows)

    def fail(self, node: int, xid: int, down_s: float, env: int = 0) -> None:
        """Break a node from outside: its requests are lost, and it serves again `down_s` later."""
        is_measured = bool(self.time_s[env] >= self.params["warmup_s"][env])
        lose_node(env, node, is_measured, self.fleet.node_static, self.node, self.service, self.totals)
        self.node["xid"][env, node], self.node["down_s"][env, node] = xid, down_s

    @property
    def ticks_left(self) -> np.ndarray:
        """Ticks left in each episode, shape (B,)."""
        return self.ticks - self.tick

    def serving_nodes(self) -> np.ndarray:
        """Nodes that serve now, by pool, shape (B, P)."""
        static = self.fleet.node_static
        ready = (self.node["down_s"] <= 0) & (self.node["moving_s"] <= 0) & (self.node["stage"] != PARKED)
        out = np.zeros((self.batch, self.fleet.pools), np.int64)
        for s in range(len(self.fleet.services)):
            for stage in (PREFILL, DECODE):
                of_pool = (static["service"] == s) & (self.node["stage"] == stage)
                out[:, 2 * s + stage] = (ready & of_pool).sum(-1)
        return out

    def kpis(self, env: int = 0) -> dict[str, float]:
        """KPIs of one environment's episode so far."""
        is_serving, service = self.fleet.service_static["kind"] != TRAINING, self.service[env]
        good_tok = service["served_tok"] - service["late_tok"]
        return episode_kpis(
            self.totals[env],
            self.ttft[env].sum(0),
            self.itl[env].sum(0),
            (good_tok / np.maximum(service["offered_tok"], 1.0))[is_serving],
            float(self.params["nominal_w"][env]),
            len(self.fleet.nodes),
        )
