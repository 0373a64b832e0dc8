"""Episodes of a policy as a Minari dataset, for offline learning. Needs the [dataset] extra.

The policy plays as the scenario's background, and the action recorded is the part of its bids that the id's agent owns:
replaying the actions in an environment with that background gives the episodes back.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from ..fleet.errors import BadInput

FORMAT = "arrow"
"""Minari's storage on pyarrow: no HDF5 library is needed."""


def dataset_id(env_id: str, scenario: str, policy: str) -> str:
    """Minari's name of a dataset: letters, digits and dashes, and a version."""
    words = "-".join([env_id.removesuffix("-v0"), Path(scenario).stem, Path(policy).stem])
    return f"flyball/{''.join(c if c.isalnum() else '-' for c in words).lower()}-v0"


def write_dataset(
    scenario: str,
    policy: str,
    episodes: int,
    out: str | Path,
    env_id: str = "Power-v0",
    obs: str = "flat",
    noise: float = 0.0,
    seed: int = 0,
    overrides: Sequence[str] = (),
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Play episodes and write them.

    Args:
        scenario: Name or path.
        policy: By the names of the command line: a baseline, an ONNX file, champion, best-baseline.
        episodes: How many; episode i is seeded with seed + i.
        out: Folder that holds datasets (what MINARI_DATASETS_PATH names).
        env_id: What the agent owns.
        obs: "flat" or "tokens".
        noise: Standard deviation of Gaussian noise on the actions, so that the data cover more than one policy does.
        seed: Of the first episode, and of the noise.
        overrides: Keys of the scenario, as of `--set`.
        progress: Called with the share done.

    Returns:
        {"dataset", "path", "episodes", "steps", "mean_return", "kpis": means over episodes}.

    Raises:
        BadInput: minari is missing, the dataset is there already, or a number is out of range.
    """
    try:
        import minari
        from minari import MinariDataset
        from minari.data_collector import EpisodeBuffer
    except ImportError as error:
        raise BadInput(
            f"this needs the [dataset] extra ({error.name} is missing); pip install 'flyball[dataset]'"
        ) from None
    if episodes < 1 or not noise >= 0:
        raise BadInput(f"{episodes} episodes with noise {noise}: give at least 1 episode and noise of 0 or more")
    from .episodes import mean_kpis

    name = dataset_id(env_id, scenario, policy)
    out = Path(out).resolve()
    if (out / name).exists():
        raise BadInput(f"{out / name} is there already; remove it or choose another --out")
    env = gym.make(
        f"flyball.envs:flyball/{env_id}", scenario=scenario, obs=obs, background=policy, overrides=tuple(overrides),
        disable_env_checker=True,
    )  # fmt: skip
    last_seed = seed + episodes - 1
    buffers, kpis = [], []
    for i in range(episodes):
        buffer, last = _episode(env, EpisodeBuffer, i, seed + i, noise)
        buffers.append(buffer)
        kpis.append(last)
        if progress:
            progress((i + 1) / episodes)
    with _datasets_in(out), warnings.catch_warnings():
        # Minari warns of every field left out; a dataset that was made here has no link, author's address or server
        warnings.simplefilter("ignore", UserWarning)
        written: MinariDataset = minari.create_dataset_from_buffers(
            name,
            buffers,
            env=env,
            algorithm_name=policy,
            author="Flyball",
            description=f"{env_id} in {scenario} under {policy}, noise {noise:g}, seeds {seed} to {last_seed}.",
            data_format=FORMAT,
            requirements=["flyball"],
        )
        written.storage.update_episode_metadata(
            [{"kpis": row, "return": float(np.sum(b.rewards))} for row, b in zip(kpis, buffers, strict=True)]
        )
    return {
        "dataset": name,
        "path": out / name,
        "episodes": episodes,
        "steps": int(written.total_steps),
        "mean_return": float(np.mean([np.sum(b.rewards) for b in buffers])),
        "kpis": mean_kpis(kpis),
    }


def _episode(env: gym.Env, buffer_type, index: int, seed: int, noise: float):
    """Play one episode; its buffer and KPIs."""
    own: Any = env.unwrapped
    rng = np.random.default_rng([seed, _NOISE_STREAM])
    seen, _ = env.reset(seed=seed)
    observations, actions, rewards, infos = [seen], [], [], []
    over = False
    info: dict[str, Any] = {}
    while not over:
        action = own.base_action()
        if noise:
            action = np.clip(action + noise * rng.standard_normal(action.shape), -1, 1).astype(np.float32)
        seen, reward, _, over, info = env.step(action)
        observations.append(seen)
        actions.append(action)
        rewards.append(float(reward))
        infos.append({k: v for k, v in info.items() if k != "kpis"})
    steps = len(rewards)
    truncations = [False] * (steps - 1) + [True]
    names = list(infos[0])
    # as Minari's collector: information of the reset first, here zeros; its arrow storage reads back no scalar arrays
    told: dict[str, Any] = {name: [0.0, *(row[name] for row in infos)] for name in names}
    stacked: Any = np.stack(observations) if not isinstance(seen, dict) else _stack(observations)
    buffer = buffer_type(
        id=index, seed=seed, observations=stacked, actions=np.stack(actions), rewards=rewards,
        terminations=[False] * steps, truncations=truncations, infos=told,
    )  # fmt: skip
    return buffer, info["kpis"]


_NOISE_STREAM = 31


def _stack(observations: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([o[name] for o in observations]) for name in observations[0]}


@contextmanager
def _datasets_in(folder: Path) -> Iterator[None]:
    """Minari finds its folder in the environment alone."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def read_dataset(path: str | Path):
    """A dataset that `write_dataset` wrote, as `minari.MinariDataset`.

    Args:
        path: What `write_dataset` returned as "path".
    """
    from minari import MinariDataset

    return MinariDataset(Path(path) / "data")
