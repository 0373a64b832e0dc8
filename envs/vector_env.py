"""`gymnasium.vector.VectorEnv` over the core: B environments, one compiled step."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from .core import Core
from .gym_env import SEED_OPTIONS, check_options, spaces, token_arrays
from .simulate import Futures, Outcome
from .state import CoreState, restore, save

AUTORESET = {"same_step": AutoresetMode.SAME_STEP, "next_step": AutoresetMode.NEXT_STEP}


class FlyballVectorEnv(gym.vector.VectorEnv):
    """B environments as one; a finished one starts again by itself.

    Every key of `info` has a boolean mask under the same name and a leading underscore. With `autoreset="same_step"`
    an episode's end and the next one's first observation come in one step: `info["final_obs"]` holds the finished
    episodes' last observations, `info["final_info"]` what a single environment's last `info` would hold, and
    `info["kpis"]` the KPIs again. With `"next_step"` the last observation is returned as it is, and the step after it
    ignores its action and returns the next episode's first observation with a reward of 0: Gymnasium's wrappers of
    observations need that.

    `reset(seed=s)` seeds environment b with s + b; options `load_seed`, `fault_seed` and `parameter_seed` take one
    number likewise, or one per environment, and hold for the episodes that follow as the seed does.

    Args:
        core: A core of any batch.
        obs: "flat" or "tokens".
        is_staggered: Start environments at different times of their first episode, so that they do not all end in
            the same step (stable-baselines3 runs one critic forward per environment that ends, RL.md).
        render_mode: None, or "rgb_array": `render` gives one picture per environment.
        name: What pictures call it.
        autoreset: "same_step" or "next_step".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5, "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        core: Core,
        obs: str = "flat",
        is_staggered: bool = False,
        render_mode: str | None = None,
        name: str = "Flyball",
        autoreset: str = "same_step",
    ):
        if autoreset not in AUTORESET:
            raise ValueError(f"autoreset is {autoreset!r}; use {' or '.join(map(repr, AUTORESET))}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'render_mode is {render_mode!r}; the vector environment has None and "rgb_array"')
        self.metadata = {**self.metadata, "autoreset_mode": AUTORESET[autoreset]}
        self._waiting: tuple[np.ndarray, CoreState] | None = None
        self.core, self.obs, self.render_mode = core, obs, render_mode
        self.num_envs = core.batch
        self.single_observation_space, self.single_action_space = spaces(core, obs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.is_staggered = is_staggered
        self._episodes = np.zeros(self.num_envs, np.int64)
        self._seeds: list[np.ndarray | None] = []
        self._all = np.ones(self.num_envs, bool)
        self._all.flags.writeable = False
        self._futures = Futures()
        self._recorders: list[Any] = []
        if render_mode:
            from .render import Recorder  # Pillow only where a picture is wanted

            self._recorders = [Recorder(core, b, name) for b in range(self.num_envs)]

    def reset(self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed if isinstance(seed, int) else None)
        options = check_options(options)
        own = self.np_random.integers(2**31, size=self.num_envs) if seed is None else self._spread(seed)
        apart = [self._spread(options[name]) if name in options else None for name in SEED_OPTIONS]
        self._seeds, self._episodes = [own, *apart], np.zeros(self.num_envs, np.int64)
        self._waiting = None
        self.core.reset(own, None, *apart)
        if self.is_staggered:
            steps = self.core.plant.ticks // self.core.plant.control_ticks
            offset = (np.arange(self.num_envs) * steps // self.num_envs) * self.core.plant.control_ticks
            self.core.plant.skip_to(offset)
        for recorder in self._recorders:
            recorder.start()
        scale = np.full(self.num_envs, float(self.core.load_scale))
        return self._seen(), {"load_scale": scale, "_load_scale": self._all}

    def _spread(self, seed) -> np.ndarray:
        """One seed per environment."""
        if np.ndim(seed) == 0:
            return int(seed) + np.arange(self.num_envs)
        seeds = np.asarray(seed, np.int64)
        if seeds.shape != (self.num_envs,):
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments; give one number or one each")
        return seeds

    def step(self, actions):
        _, reward, over, info = self.core.step(self.core.bids(np.asarray(actions)))
        reward, stepped = reward.astype(np.float64), self._all
        if self._waiting is not None:
            stepped = self._begin(reward, over)
        out: dict[str, Any] = {}
        for name, values in info.items():
            out[name], out[f"_{name}"] = values, stepped
        for b, recorder in enumerate(self._recorders):
            recorder.note() if stepped[b] else recorder.start()
        seen = self._seen()
        if over.any():
            ended = np.flatnonzero(over)
            self._finish(seen, ended, over, out)
            self._episodes[ended] += 1
            again = [None if s is None else _next_seeds(s[ended], self._episodes[ended]) for s in self._seeds]
            if self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
                # what was seen stays; the next episode waits for the step that begins it
                seen = {k: v.copy() for k, v in seen.items()} if self.obs != "flat" else seen.copy()
                self.core.reset(again[0], ended, *again[1:])
                self._waiting = ended, save(self.core, ended)
            else:
                self.core.reset(again[0], ended, *again[1:])
                for recorder in [r for b, r in enumerate(self._recorders) if over[b]]:
                    recorder.start()
                seen = self._seen()
        return seen, reward, np.zeros(self.num_envs, bool), over, out

    def _begin(self, reward: np.ndarray, over: np.ndarray) -> np.ndarray:
        """Undo the step of the environments that were to begin an episode in it; which others were stepped, (B,)."""
        assert self._waiting is not None
        begun, state = self._waiting
        self._waiting = None
        restore(self.core, state, begun)
        stepped = np.ones(self.num_envs, bool)
        stepped[begun] = False
        reward[begun], over[begun] = 0.0, False
        return stepped

    def _finish(self, seen, ended: np.ndarray, over: np.ndarray, out: dict[str, Any]) -> None:
        """Put what belongs to the episodes that ended into `out`."""
        last = {name: values.copy() for name, values in out.items() if not name.startswith("_")}
        kpis = np.full(self.num_envs, None, object)
        final = np.full(self.num_envs, None, object)
        for b in ended:
            kpis[b] = self.core.kpis(int(b))
            final[b] = {k: v[b].copy() for k, v in seen.items()} if self.obs != "flat" else seen[b].copy()
        last["kpis"] = kpis
        mask = over.copy()
        out["kpis"], out["_kpis"] = kpis, mask
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            out["final_info"] = {**last, **{f"_{name}": mask for name in last}}
            out["final_obs"] = final
            out["_final_obs"] = out["_final_info"] = mask

    def simulate(self, plan=None, steps: int = 12, seeds=8, load: str = "resample", env: int = 0, **knows) -> Outcome:
        """Play plans in copies of one environment's present state; see `envs.simulate.Futures.play`."""
        return self._futures.play(self.core, env, plan, steps, seeds, load, **knows)

    def render(self):
        """One picture per environment, or None without a render mode."""
        return tuple(r.frame() for r in self._recorders) if self._recorders else None

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
