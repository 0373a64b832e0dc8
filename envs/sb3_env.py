"""stable-baselines3's `VecEnv` over the core, without a Python loop over environments.

Needs the [train] extra.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from .vector_env import FlyballVectorEnv


class FlyballVecEnv(VecEnv):
    """One or several `FlyballVectorEnv`s side by side, as SB3 wants them.

    Several make a mixture of scenario families; their cores must be padded to the same boxes.

    Args:
        vectors: Vector environments with equal single spaces.

    Raises:
        ValueError: if their spaces differ.
    """

    def __init__(self, *vectors: FlyballVectorEnv):
        self.vectors = vectors
        vector = vectors[0]
        for other in vectors[1:]:
            if other.single_observation_space != vector.single_observation_space:
                raise ValueError("the environments of a mixture differ in their spaces; pad them with pad_pools")
        counts = [v.num_envs for v in vectors]
        ends = np.cumsum(counts)
        self._slices = [slice(int(e - c), int(e)) for c, e in zip(counts, ends, strict=True)]
        total = int(ends[-1])
        self.render_mode = None
        self._actions: np.ndarray | None = None
        self._seed: int | None = None
        self._returns = np.zeros(total)
        self._lengths = np.zeros(total, np.int64)
        super().__init__(total, vector.single_observation_space, vector.single_action_space)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        self._seed = seed
        return [None if seed is None else seed + i for i in range(self.num_envs)]

    def reset(self):
        seen = []
        for i, vector in enumerate(self.vectors):
            # apart, so that the families of a mixture do not share their draws
            seed = None if self._seed is None else self._seed + 1_000_003 * i
            seen.append(vector.reset(seed=seed)[0])
        self._seed = None  # as SB3: a seed holds for one reset
        self._returns[:] = 0
        self._lengths[:] = 0
        return np.concatenate(seen)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self):
        assert self._actions is not None, "step_async first"
        parts = [v.step(self._actions[cut]) for v, cut in zip(self.vectors, self._slices, strict=True)]
        seen = np.concatenate([p[0] for p in parts])
        reward = np.concatenate([p[1] for p in parts])
        over = np.concatenate([p[3] for p in parts])
        self._returns += reward
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for b in np.flatnonzero(over):
            which = next(i for i, cut in enumerate(self._slices) if b < cut.stop)
            info, at = parts[which][4], b - self._slices[which].start
            infos[b] = {
                "terminal_observation": info["final_obs"][at],
                "TimeLimit.truncated": True,
                "kpis": info["kpis"][at],
                "scenario": self.vectors[which].core.scenario.name,
                "episode": {"r": float(self._returns[b]), "l": int(self._lengths[b]), "t": 0.0},
            }
            self._returns[b] = 0
            self._lengths[b] = 0
        return seen, reward.astype(np.float32), over, infos

    def close(self) -> None:
        for vector in self.vectors:
            vector.close()

    def get_attr(self, attr_name: str, indices=None) -> list[Any]:
        return [getattr(self._of(i), attr_name, None) for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices=None) -> None:
        for i in self._get_indices(indices):
            setattr(self._of(i), attr_name, value)

    def env_method(self, method_name: str, *args, indices=None, **kwargs) -> list[Any]:
        return [getattr(self._of(i), method_name)(*args, **kwargs) for i in self._get_indices(indices)]

    def _of(self, env: int) -> FlyballVectorEnv:
        return self.vectors[next(i for i, cut in enumerate(self._slices) if env < cut.stop)]

    def env_is_wrapped(self, wrapper_class, indices=None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
