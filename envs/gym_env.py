"""`gymnasium.Env` over the core: a batch of one."""

from typing import Any

import gymnasium as gym
import numpy as np

from ..fleet.schema import FLEET_BIDS, FLEET_FEATURES, NODE_FEATURES, POOL_BIDS, POOL_FEATURES
from .core import Core

LIMIT = 5.0
"""Every feature is clipped well inside this; the box says so."""


def spaces(core: Core, obs: str) -> tuple[gym.Space, gym.spaces.Box]:
    """Observation and action space of one environment of a core.

    Raises:
        ValueError: if `obs` is neither "flat" nor "tokens".
    """
    action = gym.spaces.Box(-1.0, 1.0, (core.action_size,), np.float32)
    if obs == "flat":
        return gym.spaces.Box(-LIMIT, LIMIT, (core.observation_size,), np.float32), action
    if obs != "tokens":
        raise ValueError(f'obs is {obs!r}; use "flat" or "tokens"')

    def box(*shape: int) -> gym.spaces.Box:
        return gym.spaces.Box(-LIMIT, LIMIT, shape, np.float32)

    pools = core.fleet.pools
    parts: dict[str, gym.Space] = {
        "pool": box(pools, len(POOL_FEATURES)),
        "pool_mask": gym.spaces.MultiBinary(pools),
        "base_pool": box(pools, len(POOL_BIDS)),
        "fleet": box(len(FLEET_FEATURES)),
        "base_fleet": box(len(FLEET_BIDS)),
    }
    if core.has_nodes:
        parts["node"] = box(len(core.fleet.nodes), len(NODE_FEATURES))
        parts["node_mask"] = gym.spaces.MultiBinary(len(core.fleet.nodes))
    return gym.spaces.Dict(parts), action


def token_arrays(core: Core) -> dict[str, np.ndarray]:
    """The token observation of every environment, by name, batch axis first."""
    seen = core.observation
    assert seen is not None, "reset first"
    parts = {
        "pool": seen.pool,
        "pool_mask": seen.pool_mask.astype(np.int8),
        "base_pool": core.base.pool,
        "fleet": seen.fleet,
        "base_fleet": core.base.fleet,
    }
    if core.has_nodes:
        parts["node"] = seen.node
        parts["node_mask"] = seen.node_mask.astype(np.int8)
    return {k: np.array(v) for k, v in parts.items()}


class FlyballEnv(gym.Env):
    """A GPU fleet under a power budget, one control interval a step.

    Actions are bids in [-1, 1] in one flat box, token by token: the pool channels that the id owns (`Power-v0`:
    watts; `Stages-v0`: nodes; `Factory-v0`: watts, nodes, clock), then node channels, then the fleet's. The arbiter
    turns any bids into caps that fit every limit. With `action="residual"` the action is added to the bids of the
    scenario's background policy.

    The reward is minus the share of tokens rejected, lost or late in the step, with a small penalty on the distance
    between caps asked and granted; both are in `info`. Episodes end by time only (truncation).

    `reset(seed=..., options={"load_seed": ..., "fault_seed": ...})` seeds parameters, load and faults apart.

    Args:
        core: A core of batch one.
        obs: "flat" for one Box, "tokens" for a Dict of token arrays with masks.
        render_mode: None or "ansi", one line of what is going on.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}

    def __init__(self, core: Core, obs: str = "flat", render_mode: str | None = None):
        if core.batch != 1:
            raise ValueError(f"FlyballEnv takes a core of batch 1, not {core.batch}; use FlyballVectorEnv")
        self.core, self.obs, self.render_mode = core, obs, render_mode
        self.observation_space, self.action_space = spaces(core, obs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        options = options or {}
        seeds = [int(self.np_random.integers(2**31)) if seed is None else int(seed)]
        load = [int(options["load_seed"])] if "load_seed" in options else None
        faults = [int(options["fault_seed"])] if "fault_seed" in options else None
        self.core.reset(seeds, load_seeds=load, fault_seeds=faults)
        return self._seen(), {"load_scale": self.core.load_scale}

    def step(self, action):
        _, reward, over, info = self.core.step(self.core.bids(np.asarray(action)[None]))
        out: dict[str, Any] = {k: float(v[0]) for k, v in info.items()}
        if over[0]:
            out["kpis"] = self.core.kpis(0)
        return self._seen(), float(reward[0]), False, bool(over[0]), out

    def _seen(self):
        if self.obs == "flat":
            assert self.core.observation is not None
            return self.core.flat(self.core.observation)[0]
        return {k: v[0] for k, v in token_arrays(self.core).items()}

    def render(self):
        if self.render_mode != "ansi":
            return None
        plant = self.core.plant
        limit_w = float(plant.snapshot.domain["limit_w"][0, 0])
        power_w = float(plant.domain["power_w"][0, 0])
        return (
            f"t={plant.time_s[0]:6.0f} s  {power_w / 1e3:7.1f} of {limit_w / 1e3:7.1f} kW  "
            f"serving nodes by pool {plant.serving_nodes()[0].tolist()}"
        )
