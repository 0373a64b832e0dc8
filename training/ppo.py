"""PPO on pool tokens: a residual over a baseline, on a mixture of scenarios, kept only if it beats the baseline.

stable-baselines3 does the learning; recipe and numbers are RL.md's. The run folder holds everything that a resumed
run needs: `checkpoint.pt` is written whole or not at all.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from .. import __version__, registry
from ..envs.core import Channels, Core
from ..envs.sb3_env import FlyballVecEnv
from ..envs.scenario import Scenario, load_scenario
from ..envs.vector_env import FlyballVectorEnv
from ..fleet.errors import BadInput
from ..fleet.schema import schema_hash
from ..policies.network import TokenNetwork
from ..policies.onnx import Card, export
from .gate import Verdict, judge
from .sb3_policy import TokenPolicy, unflatten
from .tracking import git_revision, track

CHANNELS = Channels(pool=("watts", "nodes"), fleet=("spend",))
"""What the learned residual owns: the power-and-roles profile."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        scenarios: Names or paths; several are a mixture, in equal parts.
        out: Run folder.
        minutes: Wall-clock budget; None if `steps` is given.
        steps: Environment steps; None if `minutes` is given.
        seed: Of everything.
        base: Baseline that the policy corrects; best-baseline is the first scenario's.
        mlflow_uri: Tracking store; SQLite in `out` by default.
        envs: Environments in all.
        n_steps: Steps per environment and rollout (RL.md: 45).
        batch_size: Minibatch (RL.md: 1440).
        epochs: Passes over a rollout (RL.md: 5).
        learning_rate: Start of a linear decay to a tenth (RL.md: 6e-4 to 1e-3).
        gamma: Discount per control interval (RL.md: 0.97 to 0.985).
        gae_lambda: RL.md: 0.95.
        watts_std: Exploration of watt bids (RL.md: 0.10 to 0.13).
        nodes_std: Exploration of node bids (RL.md: 0.10 to 0.22).
        spend_std: Exploration of the fleet bid.
        validate_every: Rollouts between validations of the policy so far.
        validation_windows: Windows per scenario on which policies are chosen and gated.
    """

    scenarios: tuple[str, ...]
    out: Path
    minutes: float | None = 5.0
    steps: int | None = None
    seed: int = 0
    base: str = "best-baseline"
    mlflow_uri: str | None = None
    envs: int = 128
    n_steps: int = 45
    batch_size: int = 1440
    epochs: int = 5
    learning_rate: float = 8e-4
    gamma: float = 0.98
    gae_lambda: float = 0.95
    watts_std: float = 0.12
    nodes_std: float = 0.12
    spend_std: float = 0.10
    validate_every: int = 15
    validation_windows: int = 24

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued: everything but budget, place and store."""
        out = asdict(replace(self, out=Path()))
        for name in ("minutes", "steps", "out", "mlflow_uri"):
            out.pop(name)
        return json.loads(json.dumps(out))


def train(config: TrainConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Train, choose the best checkpoint on validation windows, gate it, export it.

    Returns:
        {"run_id", "out", "onnx", "passed", "gain", "base", "steps", "seconds", "validation"}.

    Raises:
        BadInput: a budget that is not positive, an unknown scenario or baseline, a run folder of another
            configuration, or an MLflow store that cannot be used.
    """
    _check(config)
    progress = progress or (lambda label, share: None)
    torch.manual_seed(config.seed)
    np.random.seed(config.seed % 2**32)
    scenarios = [load_scenario(name) for name in config.scenarios]
    base = registry.best_baseline_name(scenarios[0]) if config.base == "best-baseline" else config.base
    params = registry.tuned()["baselines"].get(base, {}).get(scenarios[0].family, {}).get("params", {})
    if len({s.fleet.timing.control_s for s in scenarios}) != 1:
        raise BadInput("the scenarios' sites differ in control_s; train on sites with one control interval")
    config.out.mkdir(parents=True, exist_ok=True)
    env = _environment(config, scenarios, base, params)
    pools = env.vectors[0].core.flat_pools
    network = TokenNetwork()
    with track(config.out, f"ppo-{'-'.join(config.scenarios)}-{config.seed}", config.mlflow_uri) as run:
        run.params(
            {
                **{k: v for k, v in asdict(config).items() if k not in ("out", "mlflow_uri")},
                "base_params": json.dumps(params, sort_keys=True),
                "schema_pool": schema_hash("pool"),
                "schema_fleet": schema_hash("fleet"),
                **{f"scenario_hash.{s.name}": s.hash for s in scenarios},
                "git_revision": git_revision(),
                "flyball_version": __version__,
                "residual_on": base,
            }
        )
        progress("measuring features", 0.0)
        _normalise(network, env, pools)
        std = (config.watts_std, config.nodes_std, config.spend_std)
        model = PPO(
            TokenPolicy,
            env,
            n_steps=config.n_steps,
            batch_size=min(config.batch_size, config.envs * config.n_steps),
            n_epochs=config.epochs,
            learning_rate=_decay(config.learning_rate),
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            policy_kwargs={"network": network, "pools": pools, "channel_std": std},
            seed=config.seed,
            device="cpu",
            verbose=0,
        )
        loop = _Loop(config, scenarios, base, params, network, run, progress)
        loop.restore(model)
        # SB3 leaves an empty folder per learn() where no logger is configured
        logs = tempfile.mkdtemp(prefix="flyball-sb3-")
        try:
            if not loop.is_over(model):
                model.learn(loop.total_steps(model), callback=loop, reset_num_timesteps=False, tb_log_name=logs)
        finally:
            shutil.rmtree(logs, ignore_errors=True)
        verdict = loop.finish(model)
        card = Card(
            base,
            params,
            scenarios[0].fleet.timing.control_s,
            tuple(dict.fromkeys(s.family for s in scenarios)),
            {
                "run_id": run.run_id,
                "algo": "ppo",
                "seed": config.seed,
                "scenarios": list(config.scenarios),
                "scenario_hashes": {s.name: s.hash for s in scenarios},
                "nodes": sorted({len(s.fleet.nodes) for s in scenarios}),
                "steps": int(model.num_timesteps),
                "git_revision": git_revision(),
                "flyball_version": __version__,
                "validation_gain": verdict.gain,
                "passed": verdict.passed,
            },
        )
        onnx = export(network, card, config.out / "policy.onnx")
        torch.save(network.state_dict(), config.out / "network.pt")
        run.metrics({"gate.gain": verdict.gain, "gate.passed": float(verdict.passed)}, int(model.num_timesteps))
        run.artifact(onnx)
        run.onnx_model(onnx)
        result = {
            "run_id": run.run_id,
            "out": str(config.out),
            "onnx": str(onnx),
            "passed": verdict.passed,
            "gain": verdict.gain,
            "base": base,
            "steps": int(model.num_timesteps),
            "seconds": round(loop.elapsed_s(), 1),
            "validation": verdict.rows,
            "curve": loop.curve,
        }
        (config.out / "run.json").write_text(json.dumps({**result, "config": config.identity()}, indent=1))
        run.artifact(config.out / "run.json")
    progress("trained", 1.0)
    return result


def _check(config: TrainConfig) -> None:
    if (config.minutes is None) == (config.steps is None):
        raise BadInput("give --minutes or --steps")
    if config.minutes is not None and not config.minutes > 0:
        raise BadInput(f"--minutes {config.minutes:g}: use a number above 0")
    if config.steps is not None and config.steps < 1:
        raise BadInput(f"--steps {config.steps}: use at least 1")


def _decay(start: float) -> Callable[[float], float]:
    return lambda remaining: start * (0.1 + 0.9 * max(min(remaining, 1.0), 0.0))


def _environment(config: TrainConfig, scenarios: list[Scenario], base: str, params: dict[str, float]) -> FlyballVecEnv:
    """Equal parts of every scenario, padded to the largest number of pools, episodes staggered."""
    share = [len(part) for part in np.array_split(np.arange(config.envs), len(scenarios))]
    pad = max(s.fleet.pools for s in scenarios)
    vectors = []
    for scenario, count in zip(scenarios, share, strict=True):
        background = registry.baseline(base, scenario, params)
        core = Core(scenario, background, CHANNELS, batch=count, residual=True, block="train", pad_pools=pad)
        vectors.append(FlyballVectorEnv(core, is_staggered=True))
    env = FlyballVecEnv(*vectors)
    env.seed(config.seed * 7919 + 17)
    return env


def _normalise(network: TokenNetwork, env: FlyballVecEnv, pools: int, steps: int = 60) -> None:
    """Set the network's statistics from what the baseline sees; they stay fixed, inside the graph."""
    seen = [env.reset()]
    still = np.zeros((env.num_envs, *env.action_space.shape), np.float32)
    for _ in range(steps):
        seen.append(env.step(still)[0])
    flat = torch.as_tensor(np.concatenate(seen))
    pool, mask, fleet, base_pool, base_fleet = unflatten(flat, pools)
    tokens = network.tokens(pool, fleet, base_pool, base_fleet)[mask > 0]
    network.mean.copy_(tokens.mean(0))
    # a feature that hardly varies here must not be blown up elsewhere
    network.scale.copy_(torch.clamp(tokens.std(0), min=0.05))


class _Loop(BaseCallback):
    """Progress, curves, checkpoints, validation, the clock."""

    def __init__(self, config, scenarios, base, params, network, run, progress):
        super().__init__()
        self.config, self.scenarios, self.base, self.params = config, scenarios, base, params
        self.network, self.run, self.progress = network, run, progress
        self.curve: list[dict[str, float]] = []
        self.best: tuple[float, dict[str, torch.Tensor]] | None = None
        self.rollouts = 0
        self._spent_s = 0.0
        self._started = time.monotonic()
        self._rewards: list[float] = []

    @property
    def _path(self) -> Path:
        return self.config.out / "checkpoint.pt"

    def elapsed_s(self) -> float:
        return self._spent_s + time.monotonic() - self._started

    def share(self, model) -> float:
        if self.config.steps is not None:
            return min(model.num_timesteps / self.config.steps, 1.0)
        return min(self.elapsed_s() / (60 * self.config.minutes), 1.0)

    def is_over(self, model) -> bool:
        return self.share(model) >= 1.0

    def total_steps(self, model) -> int:
        """SB3's own budget; the clock ends a run by minutes."""
        if self.config.steps is not None:
            return self.config.steps - model.num_timesteps
        return 10**9

    def restore(self, model) -> None:
        """Go on from the folder's checkpoint, if it is of this configuration."""
        if not self._path.exists():
            return
        try:
            saved = torch.load(self._path, weights_only=False)
            identity = saved["identity"]
        except Exception as e:
            raise BadInput(
                f"{self._path}: not a checkpoint of this version ({type(e).__name__}); use another --out"
            ) from None
        if identity != self.config.identity():
            raise BadInput(f"{self.config.out}: holds a run of another configuration; use another --out")
        model.policy.load_state_dict(saved["policy"])
        model.policy.optimizer.load_state_dict(saved["optimizer"])
        model.num_timesteps = saved["steps"]
        self.best, self.curve, self.rollouts, self._spent_s = (
            saved["best"],
            saved["curve"],
            saved["rollouts"],
            saved["spent_s"],
        )
        self.progress(f"going on from step {saved['steps']:,}", self.share(model))

    def save(self, model) -> None:
        partial = self._path.with_suffix(".partial")
        torch.save(
            {
                "identity": self.config.identity(),
                "policy": model.policy.state_dict(),
                "optimizer": model.policy.optimizer.state_dict(),
                "steps": model.num_timesteps,
                "best": self.best,
                "curve": self.curve,
                "rollouts": self.rollouts,
                "spent_s": self.elapsed_s(),
            },
            partial,
        )
        partial.replace(self._path)

    def _on_step(self) -> bool:
        self._rewards.append(float(np.mean(self.locals["rewards"])))
        return not (self.config.minutes is not None and self.is_over(self.model))

    def _on_rollout_start(self) -> None:
        # SB3 takes its progress from its step budget, which a run by minutes does not have
        self.model._current_progress_remaining = 1.0 - self.share(self.model)

    def _on_rollout_end(self) -> None:
        model = self.model
        self.rollouts += 1
        self.model._current_progress_remaining = 1.0 - self.share(model)
        reward = float(np.mean(self._rewards))
        self._rewards.clear()
        values = {k: float(v) for k, v in model.logger.name_to_value.items() if isinstance(v, int | float)}
        self.run.metrics({"rollout.reward": reward, **values}, model.num_timesteps)
        if not np.isfinite(reward) or not all(torch.isfinite(p).all() for p in model.policy.parameters()):
            raise BadInput(
                f"training diverged at step {model.num_timesteps:,}; the last good checkpoint is {self._path}; "
                "use another --seed"
            )
        row = {"steps": float(model.num_timesteps), "seconds": self.elapsed_s(), "reward": reward}
        if self.rollouts % self.config.validate_every == 0:
            row["gain"] = self.validate(model).gain
        self.curve.append(row)
        label = f"step {model.num_timesteps:,}, lost {-reward:.3f}"
        gains = [r["gain"] for r in self.curve if "gain" in r]
        if gains:
            label += f", best validation {max(gains):+.2%}"
        self.progress(label, self.share(model))
        if self.rollouts % 5 == 0:
            self.save(model)

    def validate(self, model) -> Verdict:
        """Judge the policy so far, and remember it if it is the best yet."""
        verdict = judge(
            self.network,
            self.scenarios,
            self.base,
            self.params,
            self.config.validation_windows // 3,
            "choose",
        )
        self.run.metrics({"validation.gain": verdict.gain}, model.num_timesteps)
        if self.best is None or verdict.gain > self.best[0]:
            self.best = (verdict.gain, {k: v.detach().clone() for k, v in self.network.state_dict().items()})
        return verdict

    def finish(self, model) -> Verdict:
        """Take the best checkpoint and gate it on windows that did not choose it."""
        self.progress("validating", 0.99)
        last = self.validate(model)
        self.curve.append({"steps": float(model.num_timesteps), "seconds": self.elapsed_s(), "gain": last.gain})
        self.save(model)
        assert self.best is not None
        self.network.load_state_dict(self.best[1])
        return judge(self.network, self.scenarios, self.base, self.params, self.config.validation_windows, "gate")
