"""The batched core under every view: a plant, the policy that plays what the agent does not own, and the reward.

`gymnasium.Env` (a batch of one), `gymnasium.vector.VectorEnv` and SB3's `VecEnv` only translate its arrays.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ..fleet.bids import Bids
from ..fleet.observe import Observation, observe
from ..fleet.schema import FLEET_BIDS, FLEET_FEATURES, NODE_BIDS, NODE_FEATURES, POOL_BIDS, POOL_FEATURES
from ..fleet.tables import STAGES
from ..fleet.topology import Fleet
from .compiled import kernel
from .load import Load, make_load
from .model import PlantModel
from .plant import Plant
from .scenario import Scenario
from .traces import RateTable, Requests
from .training_jobs import training_gpus


class Background(Protocol):
    """What the core needs of a policy (`policies.base.Policy`), which the registry injects."""

    name: str

    def start(self, batch: int) -> Any: ...

    def bid(self, snapshot, observation, memory) -> tuple[Bids, Any]: ...


@dataclass(frozen=True)
class Channels:
    """Bid channels that the agent owns, by name per kind of token; the background policy plays the others."""

    pool: tuple[str, ...] = ()
    node: tuple[str, ...] = ()
    fleet: tuple[str, ...] = ()

    def indices(self, kind: str) -> list[int]:
        fields = {"pool": POOL_BIDS, "node": NODE_BIDS, "fleet": FLEET_BIDS}[kind]
        return [[f.name for f in fields].index(name) for name in getattr(self, kind)]


CHANNELS = {
    "Power-v0": Channels(pool=("watts",), fleet=("spend",)),
    "Stages-v0": Channels(pool=("nodes",)),
    "Remediation-v0": Channels(node=("drain", "receive")),
    "Factory-v0": Channels(pool=("watts", "nodes", "clock"), node=("drain", "receive"), fleet=("spend",)),
    "PowerRaw-v0": Channels(pool=("watts",)),
}
"""What the agent owns in each environment id."""

CORRECTION_WEIGHT = 0.01
"""Penalty on the mean squared distance between caps asked and granted (RL.md, safety in training)."""

EMPTY = Channels()


class Core:
    """B environments of one scenario as arrays.

    Args:
        scenario: What happens.
        background: Plays the channels that the agent does not own, and is the base of residual actions.
        channels: What the agent owns.
        batch: B.
        residual: Actions are added to the background's bids instead of replacing them.
        file: Load from a trace or rate table; generated otherwise.
        block: Third of the trace, or stream of the generator, that loads come from.
        has_arbiter: False applies the agent's watts as caps, unchecked: `PowerRaw-v0`.
        pad_pools: Flat arrays carry at least this many pool tokens, the missing ones masked, so that fleets of
            different numbers of services share one box.
    """

    def __init__(
        self,
        scenario: Scenario,
        background: Background,
        channels: Channels = EMPTY,
        batch: int = 1,
        residual: bool = False,
        file: Requests | RateTable | None = None,
        block: str = "train",
        has_arbiter: bool = True,
        pad_pools: int = 0,
    ):
        self.scenario, self.background, self.channels = scenario, background, channels
        self.fleet: Fleet = scenario.fleet
        self.batch, self.residual, self.file, self.block = batch, residual, file, block
        self.has_arbiter = has_arbiter
        self.flat_pools = max(self.fleet.pools, pad_pools)
        self.model = PlantModel(self.fleet)
        self.plant = Plant(scenario, self.fleet, batch)
        self.has_nodes = bool(channels.node)
        self._simulator = getattr(background, "simulator", None)
        if self._simulator is not None:
            self._simulator.follow(self.plant)
        self._own = {kind: channels.indices(kind) for kind in ("pool", "node", "fleet")}
        self.memory: Any = background.start(batch)
        self.base = Bids.neutral(batch, self.fleet.pools, len(self.fleet.nodes))
        self.observation: Observation | None = None
        self.load_scale = 1.0
        self.load_source = "generated"
        step_tok = 0.0
        for s, service in enumerate(self.fleet.services):
            own = scenario.load.of(service.name)
            prompt = own.prompt_tokens or scenario.load.prompt_tokens
            output = own.output_tokens or scenario.load.output_tokens
            step_tok += own.share * self.model.capacity_rps(s, prompt, output) * (prompt + output)
        # what the fleet could serve in one control interval: makes the reward a share
        self._reward_tok = step_tok * self.fleet.timing.control_s
        self._training_gpu_s = training_gpus(self.fleet) * self.fleet.timing.control_s

    # ── sizes ────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def action_size(self) -> int:
        """Length of the flat action: pool bids, node bids, fleet bids, each token by token."""
        own, fleet = self._own, self.fleet
        return self.flat_pools * len(own["pool"]) + len(fleet.nodes) * len(own["node"]) + len(own["fleet"])

    @cached_property
    def observation_size(self) -> int:
        """Length of the flat observation; see `flat`."""
        size = self.flat_pools * (len(POOL_FEATURES) + 1 + len(POOL_BIDS)) + len(FLEET_FEATURES) + len(FLEET_BIDS)
        if self.has_nodes:
            size += len(self.fleet.nodes) * (len(NODE_FEATURES) + 1)
        return size

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────
    def make_load(self, seeds) -> Load:
        """Loads for these seeds, shape (K, T, S)."""
        return make_load(
            self.scenario.load,
            self.model.capacity_rps,
            self.scenario.seconds,
            self.fleet.timing.tick_s,
            [int(s) for s in seeds],
            [s.name for s in self.fleet.services],
            self.file,
            self.block,
        )

    def reset(self, seeds, envs=None, load_seeds=None, fault_seeds=None, parameter_seeds=None) -> Observation:
        """Start episodes.

        Args:
            seeds: Event times and, unless given apart, load, faults and parameters; shape (K,).
            envs: Which environments; all by default.
            load_seeds: Seeds of the load.
            fault_seeds: Seeds of the faults.
            parameter_seeds: Seeds of the hidden parameters.
        """
        load = self.make_load(seeds if load_seeds is None else load_seeds)
        self.load_scale, self.load_source = load.scale, load.source
        self.plant.reset(np.asarray(seeds), load, envs, fault_seeds, parameter_seeds)
        if envs is None:
            self.memory = self.background.start(self.batch)
        elif self.memory is not None:
            self.memory[np.asarray(envs)] = self.background.start(len(envs))
        return self._look(None if envs is None else np.asarray(envs))

    def _look(self, envs=None) -> Observation:
        """Observe, and ask the background for the bids of now; after a partial reset only those rows change."""
        plant = self.plant
        if self._simulator is not None:
            self._simulator.look_at(None if self.observation is None else envs)
        if envs is None or self.observation is None:
            self.observation = observe(self.fleet, plant.state, plant.snapshot, nodes=self.has_nodes)
            self.base, self.memory = self.background.bid(plant.snapshot, self.observation, self.memory)
            return self.observation
        rows = _rows(plant, envs)
        seen = observe(self.fleet, rows[0], rows[1], nodes=self.has_nodes)
        memory = None if self.memory is None else self.memory[envs]
        base, memory = self.background.bid(rows[1], seen, memory)
        for name in ("pool", "node", "fleet"):
            getattr(self.base, name)[envs] = getattr(base, name)
            getattr(self.observation, name)[envs] = getattr(seen, name)
        if memory is not None:
            self.memory[envs] = memory
        return self.observation

    def bids(self, action: np.ndarray) -> Bids:
        """The bids that a flat action of shape (B, A) means."""
        action = np.asarray(action, np.float32)
        base = self.base
        out = Bids(base.pool.copy(), base.node.copy(), base.fleet.copy())
        at = 0
        for kind, array in (("pool", out.pool), ("node", out.node), ("fleet", out.fleet[:, None])):
            own = self._own[kind]
            if not own:
                continue
            tokens = self.flat_pools if kind == "pool" else array.shape[1]
            part = action[:, at : at + tokens * len(own)].reshape(self.batch, tokens, len(own))
            at += tokens * len(own)
            for i, c in enumerate(own):
                wish = part[:, : array.shape[1], i]
                if self.residual:
                    wish = wish + array[..., c]
                np.minimum(np.maximum(wish, -1.0), 1.0, out=array[..., c])
                np.copyto(array[..., c], 0.0, where=np.isnan(wish))  # NaN reads as neutral
        return out

    def step(self, bids: Bids) -> tuple[Observation, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Advance one control interval under `bids`.

        Returns:
            The observation, the reward (B,), whether the episode's time is over (B,), and named terms: the reward's,
            and `cost`, the watt-seconds above limits in force plus a breaker's worth per trip.
        """
        plant = self.plant
        before = _books(plant)
        if self.has_arbiter:
            plant.step(bids)
        else:
            self._step_raw(bids)
        spoilt_tok, good_tok, correction, cost, trained_gpu_s = _books(plant) - before
        info = {
            "reward_lost_share": spoilt_tok * (-1.0 / self._reward_tok),
            "reward_correction": correction * (-CORRECTION_WEIGHT / plant.control_ticks),
            "cost": cost,
            "good_tok": good_tok,
        }
        reward = info["reward_lost_share"] + info["reward_correction"]
        if self._training_gpu_s > 0.0:
            info["reward_training"] = trained_gpu_s * (self.scenario.training_weight / self._training_gpu_s)
            reward = reward + info["reward_training"]
        over = plant.ticks_left < plant.control_ticks
        return self._look(), reward, over, info

    def _step_raw(self, bids: Bids) -> None:
        """Caps straight from watt bids: the lowest legal cap at -1, the highest at 1; nobody checks them."""
        plant, static = self.plant, self.fleet.node_static
        share = (bids.pool[..., 0] + 1.0) / 2.0
        pool = static["service"] * STAGES
        for _ in range(plant.control_ticks):
            of_pool = pool + np.minimum(plant.node["stage"], STAGES - 1)
            per_node = np.take_along_axis(share, of_pool, -1)
            rows = plant.plan.node
            rows["cap_w"] = static["cap_min_w"] + np.floor(per_node * (static["cap_max_w"] - static["cap_min_w"]))
            rows["seq"] = plant.node["ack_seq"] + (rows["cap_w"] != plant.node["cap_w"])
            rows["stage"] = plant.node["stage"]
            rows["clock_frac"] = 1.0
            plant.tick_under(rows)

    def flat(self, observation: Observation) -> np.ndarray:
        """One float32 vector per environment, shape (B, observation_size).

        Pool features, pool mask, base bids of the pools, then with node channels node features and node mask, then
        fleet features and base bids of the fleet.
        """
        batch = len(observation.pool)
        out = np.zeros((batch, self.observation_size), np.float32)  # zeros stand for missing pools
        at = 0
        for part, width in (
            (observation.pool, self.flat_pools * len(POOL_FEATURES)),
            (observation.pool_mask, self.flat_pools),
            (self.base.pool, self.flat_pools * len(POOL_BIDS)),
        ):
            found = part.reshape(batch, -1)
            out[:, at : at + found.shape[1]] = found
            at += width
        rest = (observation.node, observation.node_mask) if self.has_nodes else ()
        for part in (*rest, observation.fleet, self.base.fleet):
            found = part.reshape(batch, -1)
            out[:, at : at + found.shape[1]] = found
            at += found.shape[1]
        return out

    def kpis(self, env: int = 0) -> dict[str, float]:
        """KPIs of one environment's episode so far."""
        return self.plant.kpis(env)


TRIP_COST_WS = 1e6
"""What a tripped breaker costs in `info["cost"]`: more than any overdraw that would have caused it."""


BOOKS = 5
"""Rows of the books: spoilt tokens, good tokens, squared correction, cost, GPU-seconds trained."""


def _books(plant: Plant) -> np.ndarray:
    """What the reward and `info` are differences of, shape (BOOKS, B)."""
    out = np.empty((BOOKS, plant.batch))
    _read_books(plant.service, plant.totals, out)
    return out


@kernel
def _read_books(service, totals, out):
    """Sum up each environment's books; see `BOOKS`."""
    for b in range(len(totals)):
        spoilt_tok = 0.0
        for s in range(service.shape[1]):
            spoilt_tok += service[b, s].rejected_tok + service[b, s].lost_tok + service[b, s].late_tok
        out[0, b] = spoilt_tok
        out[1, b] = totals[b].good_tok
        out[2, b] = totals[b].correction
        out[3, b] = totals[b].violation_ws + TRIP_COST_WS * totals[b].breaker_trips
        out[4, b] = totals[b].trained_gpu_s


def _rows(plant: Plant, envs: np.ndarray | slice):
    """State and snapshot of some environments."""
    st, sn = plant.state, plant.snapshot
    if len(envs) == 1:  # episodes that end apart from each other: a view, where an index copies records by their fields
        envs = slice(int(envs[0]), int(envs[0]) + 1)
    state = replace(
        st,
        node=st.node[envs],
        domain=st.domain[envs],
        pool=st.pool[envs],
        service=st.service[envs],
        fleet=st.fleet[envs],
    )
    return state, replace(
        sn, time_s=sn.time_s[envs], node=sn.node[envs], domain=sn.domain[envs], service=sn.service[envs]
    )
