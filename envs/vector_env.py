"""`gymnasium.vector.VectorEnv` over the core: B environments, one compiled step."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from .core import Core
from .gym_env import spaces, token_arrays


class FlyballVectorEnv(gym.vector.VectorEnv):
    """B environments as one; a finished one starts again within the same step.

    On a reset within a step `info["final_obs"]` holds the finished episode's last observation and `info["kpis"]` its
    KPIs, each with a boolean mask under the same name and a leading underscore.

    Args:
        core: A core of any batch.
        obs: "flat" or "tokens".
        is_staggered: Start environments at different times of their first episode, so that they do not all end in
            the same step (stable-baselines3 runs one critic forward per environment that ends, RL.md).
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, core: Core, obs: str = "flat", is_staggered: bool = False):
        self.core, self.obs = core, obs
        self.num_envs = core.batch
        self.single_observation_space, self.single_action_space = spaces(core, obs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.is_staggered = is_staggered
        self._episodes = np.zeros(self.num_envs, np.int64)
        self._seeds = np.zeros(self.num_envs, np.int64)

    def reset(self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed if isinstance(seed, int) else None)
        if seed is None:
            seeds = self.np_random.integers(2**31, size=self.num_envs)
        elif isinstance(seed, int):
            seeds = seed + np.arange(self.num_envs)
        else:
            seeds = np.asarray(seed, np.int64)
        self._seeds, self._episodes = np.asarray(seeds, np.int64), np.zeros(self.num_envs, np.int64)
        self.core.reset(self._seeds)
        if self.is_staggered:
            steps = self.core.plant.ticks // self.core.plant.control_ticks
            offset = (np.arange(self.num_envs) * steps // self.num_envs) * self.core.plant.control_ticks
            self.core.plant.skip_to(offset)
        return self._seen(), {}

    def step(self, actions):
        _, reward, over, info = self.core.step(self.core.bids(np.asarray(actions)))
        out: dict[str, Any] = dict(info)
        seen = self._seen()
        if over.any():
            ended = np.flatnonzero(over)
            out["final_obs"] = np.full(self.num_envs, None, object)
            out["kpis"] = np.full(self.num_envs, None, object)
            for b in ended:
                out["final_obs"][b] = (
                    {k: v[b].copy() for k, v in seen.items()} if self.obs != "flat" else seen[b].copy()
                )
                out["kpis"][b] = self.core.kpis(int(b))
            out["_final_obs"] = out["_kpis"] = over.copy()
            self._episodes[ended] += 1
            self.core.reset(_next_seeds(self._seeds[ended], self._episodes[ended]), ended)
            seen = self._seen()
        return seen, reward.astype(np.float64), np.zeros(self.num_envs, bool), over, out

    def _seen(self):
        assert self.core.observation is not None
        return self.core.flat(self.core.observation) if self.obs == "flat" else token_arrays(self.core)


def _next_seeds(seeds: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """Seed of the n-th episode of an environment: its own stream, whoever else is in the batch."""
    return np.array(
        [
            int(np.random.SeedSequence([int(s), int(e)]).generate_state(1)[0] >> 1)
            for s, e in zip(seeds, episodes, strict=True)
        ]
    )
