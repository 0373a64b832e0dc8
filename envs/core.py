"""The batched core under every view: a plant, the policy that plays what the agent does not own, and the reward.

`gymnasium.Env` (a batch of one), `gymnasium.vector.VectorEnv` and SB3's `VecEnv` only translate its arrays.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ..fleet.bids import Bids
from ..fleet.observe import Observation, observe
from ..fleet.schema import FLEET_BIDS, FLEET_FEATURES, NODE_BIDS, NODE_FEATURES, POOL_BIDS, POOL_FEATURES
from ..fleet.tables import STAGES
from ..fleet.topology import Fleet
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

    @property
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

    def reset(self, seeds, envs=None, load_seeds=None, fault_seeds=None) -> Observation:
        """Start episodes.

        Args:
            seeds: Parameters, event times and, unless given apart, load and faults; shape (K,).
            envs: Which environments; all by default.
            load_seeds: Seeds of the load.
            fault_seeds: Seeds of the faults.
        """
        load = self.make_load(seeds if load_seeds is None else load_seeds)
        self.load_scale, self.load_source = load.scale, load.source
        self.plant.reset(np.asarray(seeds), load, envs, fault_seeds)
        if envs is None:
            self.memory = self.background.start(self.batch)
        elif self.memory is not None:
            self.memory[np.asarray(envs)] = self.background.start(len(envs))
        return self._look(None if envs is None else np.asarray(envs))

    def _look(self, envs=None) -> Observation:
        """Observe, and ask the background for the bids of now; after a partial reset only those rows change."""
        plant = self.plant
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
        out = Bids(self.base.pool.copy(), self.base.node.copy(), self.base.fleet.copy())
        at = 0
        for kind in ("pool", "node", "fleet"):
            own = self._own[kind]
            if not own:
                continue
            array = getattr(out, kind)
            tokens = {"pool": self.flat_pools, "node": array.shape[1], "fleet": 1}[kind]
            part = action[:, at : at + tokens * len(own)].reshape(self.batch, tokens, len(own))
            at += tokens * len(own)
            target = array[:, None] if kind == "fleet" else array
            part = part[:, : target.shape[1]]
            for i, c in enumerate(own):
                target[..., c] = part[..., i] + (target[..., c] if self.residual else 0.0)
        return out.clipped()

    def step(self, bids: Bids) -> tuple[Observation, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Advance one control interval under `bids`.

        Returns:
            The observation, the reward (B,), whether the episode's time is over (B,), and named terms: the reward's,
            and `cost`, the watt-seconds above limits in force plus a breaker's worth per trip.
        """
        plant = self.plant
        before = plant.totals.copy()
        spoilt = _spoilt(plant)
        if self.has_arbiter:
            plant.step(bids)
        else:
            self._step_raw(bids)
        lost_tok = _spoilt(plant) - spoilt
        delta = {
            name: plant.totals[name] - before[name]
            for name in ("violation_ws", "breaker_trips", "correction", "good_tok", "trained_gpu_s")
        }
        terms = {
            "lost_share": -lost_tok / self._reward_tok,
            "correction": -CORRECTION_WEIGHT * delta["correction"] / plant.control_ticks,
        }
        if self._training_gpu_s > 0.0:
            terms["training"] = self.scenario.training_weight * delta["trained_gpu_s"] / self._training_gpu_s
        reward = sum(terms.values())
        info = {f"reward_{k}": v for k, v in terms.items()}
        info["cost"] = delta["violation_ws"] + TRIP_COST_WS * delta["breaker_trips"]
        info["good_tok"] = delta["good_tok"]
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
        batch = observation.pool.shape[0]
        missing = ((0, 0), (0, self.flat_pools - self.fleet.pools))
        parts = [
            np.pad(observation.pool, (*missing, (0, 0))).reshape(batch, -1),
            np.pad(observation.pool_mask, missing),
            np.pad(self.base.pool, (*missing, (0, 0))).reshape(batch, -1),
        ]
        if self.has_nodes:
            parts += [observation.node.reshape(batch, -1), observation.node_mask]
        parts += [observation.fleet, self.base.fleet]
        return np.concatenate([np.asarray(p, np.float32) for p in parts], -1)

    def kpis(self, env: int = 0) -> dict[str, float]:
        """KPIs of one environment's episode so far."""
        return self.plant.kpis(env)


TRIP_COST_WS = 1e6
"""What a tripped breaker costs in `info["cost"]`: more than any overdraw that would have caused it."""


def _spoilt(plant: Plant) -> np.ndarray:
    """Tokens rejected, lost or late since reset, shape (B,)."""
    s = plant.service
    return (s["rejected_tok"] + s["lost_tok"] + s["late_tok"]).sum(-1)


def _rows(plant: Plant, envs: np.ndarray):
    """State and snapshot of some environments."""
    st, sn = plant.state, plant.snapshot
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
