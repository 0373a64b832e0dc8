"""Wrappers that Gymnasium does not have: a log of KPIs, a Lagrangian cost, discrete actions.

Everything else is Gymnasium's own: `NormalizeObservation`, `NormalizeReward`, `RecordEpisodeStatistics`,
`RecordVideo`, `FrameStackObservation` and their vector forms work unchanged (docs/envs/index.md).
"""

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np


class EpisodeLog:
    """Writes one row per episode, as CSV or as JSON lines by the file's suffix; appends to what is there.

    Args:
        path: Ends in .csv or .jsonl.

    Raises:
        ValueError: another suffix, or a CSV that has other columns.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"{self.path}: the log ends in .csv or .jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.count = 0

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; it is on disk when this returns."""
        row = {"episode": self.count, **row}
        self.count += 1
        if self.path.suffix == ".jsonl":
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            with self.path.open("a") as file:
                file.write(json.dumps(finite) + "\n")
            return
        is_new = not self.path.exists() or self.path.stat().st_size == 0
        if not is_new:
            with self.path.open(newline="") as file:
                if next(csv.reader(file)) != list(row):
                    raise ValueError(f"{self.path}: has other columns; log to a new file")
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)


class KpiLogger(gym.Wrapper):
    """One row per episode: return, length, the sum of every number that `step` puts in `info`, and the KPIs.

    Args:
        env: An environment of `flyball.envs`, wrapped or not.
        path: A .csv or .jsonl file; rows are appended.
    """

    def __init__(self, env: gym.Env, path: str | Path):
        super().__init__(env)
        self.log = EpisodeLog(path)
        self._sums: dict[str, float] = {}

    def reset(self, **kwargs):
        self._sums = {}
        return self.env.reset(**kwargs)

    def step(self, action):
        seen, reward, terminated, truncated, info = self.env.step(action)
        numbers = {k: v for k, v in info.items() if isinstance(v, float)}
        for name, value in {"return": float(reward), "length": 1, **numbers}.items():
            self._sums[name] = self._sums.get(name, 0) + value
        if terminated or truncated:
            self.log.write({**self._sums, **info.get("kpis", {})})
            self._sums = {}
        return seen, reward, terminated, truncated, info


class VectorKpiLogger(gym.vector.VectorWrapper):
    """`KpiLogger` for `FlyballVectorEnv`, with the environment's index in every row.

    Args:
        env: A vector environment of `flyball.envs`, wrapped or not.
        path: A .csv or .jsonl file; rows are appended.
    """

    def __init__(self, env: gym.vector.VectorEnv, path: str | Path):
        super().__init__(env)
        self.log = EpisodeLog(path)
        self._sums: dict[str, np.ndarray] = {}

    def reset(self, **kwargs):
        self._sums = {}
        return self.env.reset(**kwargs)

    def step(self, actions):
        seen, reward, terminated, truncated, info = self.env.step(actions)
        numbers = {k: v for k, v in info.items() if isinstance(v, np.ndarray) and v.dtype == np.float64}
        for name, values in {"return": reward, "length": np.ones(self.num_envs), **numbers}.items():
            self._sums[name] = self._sums.get(name, np.zeros(self.num_envs)) + values
        for b in np.flatnonzero(terminated | truncated):
            row = {name: float(values[b]) for name, values in self._sums.items()}
            self.log.write({"env": int(b), **row, **(info["kpis"][b] if "kpis" in info else {})})
            for values in self._sums.values():
                values[b] = 0.0
        return seen, reward, terminated, truncated, info


class CostToReward(gym.Wrapper):
    """Reward minus `weight` x `info["cost"]`: the inner problem of a Lagrangian method, for any learner.

    `dual_step` moves the weight after an episode: up while the episode cost more than the limit, down to 0 otherwise.
    The plain reward stays in `info["reward_plain"]`.

    Args:
        env: An environment whose `info` has `cost`: `PowerRaw-v0`.
        weight: Price of a unit of cost; costs are watt-seconds, so about 1e-6 to begin with.
    """

    def __init__(self, env: gym.Env, weight: float = 1e-6):
        super().__init__(env)
        if not weight >= 0:
            raise ValueError(f"weight is {weight}; a price is 0 or more")
        self.weight = float(weight)
        self.episode_cost = 0.0

    def reset(self, **kwargs):
        self.episode_cost = 0.0
        return self.env.reset(**kwargs)

    def step(self, action):
        seen, reward, terminated, truncated, info = self.env.step(action)
        self.episode_cost += info["cost"]
        info = {**info, "reward_plain": float(reward)}
        return seen, float(reward) - self.weight * info["cost"], terminated, truncated, info

    def dual_step(self, limit: float, rate: float) -> float:
        """One step of dual ascent on the last episode's cost; returns the new weight."""
        self.weight = max(self.weight + rate * (self.episode_cost - limit), 0.0)
        return self.weight


class DiscreteWatts(gym.ActionWrapper):
    """One choice of a few levels per number of the action, for learners of discrete actions.

    Args:
        env: An environment with a Box of actions.
        levels: How many evenly spaced bids from -1 to 1 (an odd number keeps the neutral bid), or the bids.
        is_joint: One `Discrete` over all combinations, as DQN wants, instead of a `MultiDiscrete`; for small actions.

    Raises:
        ValueError: fewer than two levels, or more than 4,096 combinations.
    """

    MOST = 4096

    def __init__(self, env: gym.Env, levels: int | Iterable[float] = 5, is_joint: bool = False):
        super().__init__(env)
        values = np.linspace(-1, 1, levels) if isinstance(levels, int) else np.asarray(list(levels))
        self.values = values.astype(np.float32)
        assert env.action_space.shape is not None
        count, size = len(self.values), int(np.prod(env.action_space.shape))
        if count < 2:
            raise ValueError("DiscreteWatts needs at least two levels")
        self._shape = (count,) * size
        if is_joint and count**size > self.MOST:
            raise ValueError(
                f"{count} levels of {size} numbers are {count**size} combinations; use fewer, or is_joint=False"
            )
        self.action_space = gym.spaces.Discrete(count**size) if is_joint else gym.spaces.MultiDiscrete([count] * size)
        self.is_joint = is_joint

    def action(self, action) -> np.ndarray:
        """The bids of a choice."""
        index = np.unravel_index(int(action), self._shape) if self.is_joint else np.asarray(action)
        return self.values[np.asarray(index)]
