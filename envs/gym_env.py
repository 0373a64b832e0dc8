"""`gymnasium.Env` over the core: a batch of one. `environments.py` has one subclass per id, which is its page."""

from typing import Any

import gymnasium as gym
import numpy as np

from ..fleet.schema import FLEET_BIDS, FLEET_FEATURES, NODE_FEATURES, POOL_BIDS, POOL_FEATURES
from .core import Core
from .layout import Slot, action_slots, observation_slots
from .simulate import Futures, Outcome
from .state import CoreState, restore, save

LIMIT = 5.0
"""Every feature is clipped well inside this; the box says so."""

SEED_OPTIONS = ("load_seed", "fault_seed", "parameter_seed")
"""Reset options that seed one thing apart from the rest, in the order of `Core.reset`."""


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


def check_options(options: dict[str, Any] | None) -> dict[str, Any]:
    """Reset options, or an empty dict.

    Raises:
        ValueError: an option that no environment here has.
    """
    options = options or {}
    unknown = sorted(set(options) - set(SEED_OPTIONS))
    if unknown:
        raise ValueError(f"reset has no option {unknown[0]!r}; it has {', '.join(SEED_OPTIONS)}")
    return options


class FlyballEnv(gym.Env):
    """A GPU fleet under a power budget, one control interval a step: what all ids have in common.

    Args:
        core: A core of batch one.
        obs: "flat" for one Box, "tokens" for a Dict of token arrays with masks.
        render_mode: None, "ansi" for one line of what is going on, "rgb_array" for a picture of it.
        name: What pictures call it.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 5}

    def __init__(self, core: Core, obs: str = "flat", render_mode: str | None = None, name: str = "Flyball"):
        if core.batch != 1:
            raise ValueError(f"FlyballEnv takes a core of batch 1, not {core.batch}; use FlyballVectorEnv")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f'render_mode is {render_mode!r}; use None, "ansi" or "rgb_array"')
        self.core, self.obs, self.render_mode = core, obs, render_mode
        self.observation_space, self.action_space = spaces(core, obs)
        self._futures = Futures()
        self._recorder = None
        if render_mode == "rgb_array":
            from .render import Recorder  # Pillow only where a picture is wanted

            self._recorder = Recorder(core, title=name)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        options = check_options(options)
        seeds = [int(self.np_random.integers(2**31)) if seed is None else int(seed)]
        apart = [[int(options[name])] if name in options else None for name in SEED_OPTIONS]
        self.core.reset(seeds, None, *apart)
        if self._recorder:
            self._recorder.start()
        return self._seen(), {"load_scale": self.core.load_scale}

    def step(self, action):
        _, reward, over, info = self.core.step(self.core.bids(np.asarray(action)[None]))
        out: dict[str, Any] = {k: float(v[0]) for k, v in info.items()}
        if over[0]:
            out["kpis"] = self.core.kpis(0)
        if self._recorder:
            self._recorder.note()
        return self._seen(), float(reward[0]), False, bool(over[0]), out

    def _seen(self):
        if self.obs == "flat":
            assert self.core.observation is not None
            return self.core.flat(self.core.observation)[0]
        return {k: v[0] for k, v in token_arrays(self.core).items()}

    # ── what stands where ────────────────────────────────────────────────────────────────────────────────
    def observation_slots(self) -> tuple[Slot, ...]:
        """Token, field, unit and range of every number of the flat observation."""
        return observation_slots(self.core)

    def action_slots(self) -> tuple[Slot, ...]:
        """Token, field and meaning of every number of the action."""
        return action_slots(self.core)

    def base_action(self) -> np.ndarray:
        """The action that leaves the background's bids of now as they are, shape (A,): zeros with "residual"."""
        if self.core.residual:
            return np.zeros(self.core.action_size, np.float32)
        return np.array([_bid(self.core.base, slot) for slot in self.action_slots()], np.float32)

    # ── looking ahead ────────────────────────────────────────────────────────────────────────────────────
    def save(self) -> CoreState:
        """A copy of everything that has memory; `restore` continues from it, as often as wanted."""
        return save(self.core)

    def restore(self, state: CoreState):
        """Go back to a saved state of this environment; returns its observation. Pictures start afresh."""
        restore(self.core, state)
        if self._recorder:
            self._recorder.start()
        return self._seen()

    def simulate(self, plan=None, steps: int = 12, seeds=8, load: str = "resample", **knows) -> Outcome:
        """Play plans in copies of the present state; this environment is not touched.

        Args: see `envs.simulate.Futures.play`.
        """
        return self._futures.play(self.core, 0, plan, steps, seeds, load, **knows)

    def render(self):
        if self.render_mode == "rgb_array":
            assert self._recorder is not None
            return self._recorder.frame()
        if self.render_mode != "ansi":
            return None
        plant = self.core.plant
        limit_w = float(plant.snapshot.domain["limit_w"][0, 0])
        power_w = float(plant.domain["power_w"][0, 0])
        return (
            f"t={plant.time_s[0]:6.0f} s  {power_w / 1e3:7.1f} of {limit_w / 1e3:7.1f} kW  "
            f"serving nodes by pool {plant.serving_nodes()[0].tolist()}"
        )


def _bid(bids, slot: Slot) -> float:
    """The bid of environment 0 that a slot of the action stands for; 0 for padding."""
    if slot.token_name == "padding":
        return 0.0
    table = getattr(bids, slot.kind)[0]
    return float(table[slot.column] if slot.kind == "fleet" else table[slot.token, slot.column])
