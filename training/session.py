"""What every algorithm shares: the scenarios and the base, the clock, curves, checkpoints, validation, the gate."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from .. import __version__, registry
from ..envs.core import Channels, Core
from ..envs.scenario import Scenario, load_scenario
from ..fleet.errors import BadInput
from ..fleet.schema import schema_hash
from ..policies.network import Residual
from ..policies.onnx import Card, export
from .champion import judged_on, model_name
from .config import PROFILES, TrainConfig, identity_of
from .gate import ROLE_SHRINKAGES, Verdict, judge, shrink_roles
from .tracking import Run, git_revision

Progress = Callable[[str, float], None]


class Session:
    """One run of one configuration: algorithms ask it how far they are and tell it what they did.

    Args:
        config: What to train.
        progress: Called with a label and the share done.

    Raises:
        BadInput: a budget that is not positive, an unknown scenario, baseline or algorithm, or sites that decide at
            different intervals.
    """

    def __init__(self, config: TrainConfig, progress: Progress):
        config.check()
        self.config, self.progress = config, progress
        self.scenarios: list[Scenario] = [load_scenario(name) for name in config.scenarios]
        first = self.scenarios[0]
        if len({s.fleet.timing.control_s for s in self.scenarios}) != 1:
            raise BadInput("the scenarios' sites differ in control_s; train on sites with one control interval")
        self.base, self.params = registry.base_of(config.base, self.scenarios)
        registry.baseline(self.base, first, self.params)  # refuse an unknown one before any work
        self.channels = Channels(pool=PROFILES[config.profile], fleet=("spend",))
        self.pool_channels = self.channels.indices("pool")
        self._references: dict[tuple[str, str, int], float] = {}
        self.pools = max(s.fleet.pools for s in self.scenarios)
        self.curve: list[dict[str, float]] = []
        self.best: tuple[float, dict[str, torch.Tensor]] | None = None
        self.steps = 0
        self._spent_s = 0.0
        self._spent_cpu_s = 0.0
        self.run: Run | None = None
        self.origin: dict[str, Any] = {}
        """What the policy's card says of its making beside the configuration."""
        config.out.mkdir(parents=True, exist_ok=True)
        self._path = config.out / "checkpoint.pt"
        self._compile()
        self._started, self._started_cpu = time.monotonic(), spent_cpu_s()

    # ── environments ─────────────────────────────────────────────────────────────────────────────────────
    def core(self, scenario: Scenario, batch: int) -> Core:
        """A core of one scenario whose actions are residuals on the base, on training load."""
        background = registry.baseline(self.base, scenario, self.params)
        return Core(scenario, background, self.channels, batch, residual=True, block="train", pad_pools=self.pools)

    def _compile(self) -> None:
        """Step once, so that compiling kernels is no part of the budget."""
        self.progress("compiling", 0.0)
        core = self.core(self.scenarios[0], 1)
        core.reset(np.zeros(1, int))
        core.step(core.base)
        core.kpis()

    # ── the clock ────────────────────────────────────────────────────────────────────────────────────────
    def elapsed_s(self) -> float:
        """Seconds trained, over all continuations."""
        return self._spent_s + time.monotonic() - self._started

    def cpu_s(self) -> float:
        """CPU seconds trained, of all processes and over all continuations."""
        return self._spent_cpu_s + spent_cpu_s() - self._started_cpu

    def add_spent(self, steps: int, cpu_s: float) -> None:
        """Count what was spent before this session on what it goes on with."""
        self.steps += steps
        self._spent_cpu_s += cpu_s

    def share(self) -> float:
        """Share of the budget that is spent."""
        if self.config.cpu_seconds is not None:
            return min(self.cpu_s() / self.config.cpu_seconds, 1.0)
        if self.config.steps is not None:
            return min(self.steps / self.config.steps, 1.0)
        assert self.config.minutes is not None
        return min(self.elapsed_s() / (60 * self.config.minutes), 1.0)

    def is_over(self) -> bool:
        return self.share() >= 1.0

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────
    def restore(self) -> dict[str, Any] | None:
        """The algorithm's own state from the folder's checkpoint, None if there is none.

        Raises:
            BadInput: a checkpoint of another configuration, or one that cannot be read.
        """
        if not self._path.exists():
            return None
        try:
            saved = torch.load(self._path, weights_only=False)
            identity = saved["identity"]
        except Exception as e:
            raise BadInput(
                f"{self._path}: not a checkpoint of this version ({type(e).__name__}); use another --out"
            ) from None
        if identity != identity_of(self.config, self.scenarios):
            raise BadInput(f"{self.config.out}: holds a run of another configuration; use another --out")
        self.best, self.curve, self.steps = saved["best"], saved["curve"], saved["steps"]
        self._spent_s, self._spent_cpu_s = saved["spent_s"], saved["spent_cpu_s"]
        self.progress(f"going on from step {self.steps:,}", self.share())
        return saved["algorithm"]

    def save(self, algorithm: dict[str, Any]) -> None:
        """Write a checkpoint whole or not at all.

        Raises:
            BadInput: if training diverged; the last checkpoint stays.
        """
        self.check(algorithm)
        partial = self._path.with_suffix(".partial")
        torch.save(
            {
                "identity": identity_of(self.config, self.scenarios),
                "algorithm": algorithm,
                "best": self.best,
                "curve": self.curve,
                "steps": self.steps,
                "spent_s": self.elapsed_s(),
                "spent_cpu_s": self.cpu_s(),
            },
            partial,
        )
        partial.replace(self._path)

    # ── judgement ────────────────────────────────────────────────────────────────────────────────────────
    def check(self, values: Any) -> None:
        """Refuse to go on, or to keep, what is not finite.

        Raises:
            BadInput: if a number in nested dicts and lists of numbers, arrays and tensors is not finite.
        """
        if is_finite(values):
            return
        kept = f"the last good checkpoint is {self._path}" if self._path.exists() else "there was no checkpoint yet"
        raise BadInput(
            f"training diverged at step {self.steps:,} (a value is not finite); {kept}; "
            "train with another --seed and --out"
        )

    def record(self, network: Residual, round_: int, values: dict[str, float], label: str) -> None:
        """Log one rollout or iteration, and validate when it is time.

        Raises:
            BadInput: if training diverged; the last checkpoint stays.
        """
        assert self.run is not None
        self.check([values, dict(network.named_parameters())])
        self.run.metrics(values, self.steps)
        row = {"steps": float(self.steps), "seconds": self.elapsed_s(), "cpu_s": self.cpu_s(), **values}
        if round_ % self.config.validate_every == 0:
            row["gain"] = self.validate(network).gain
        self.curve.append(row)
        gains = [r["gain"] for r in self.curve if "gain" in r]
        self.progress(f"{label}, best validation {max(gains):+.2%}" if gains else label, self.share())

    def validate(self, network: Residual) -> Verdict:
        """Judge the policy so far, and remember it if it is the best yet."""
        assert self.run is not None
        windows = max(self.config.validation_windows // 3, 1)
        verdict = self._judge(network, windows, "choose")
        self.run.metrics({"validation.gain": verdict.gain}, self.steps)
        if self.best is None or verdict.gain > self.best[0]:
            self.best = (verdict.gain, {k: v.detach().clone() for k, v in network.state_dict().items()})
        return verdict

    def finish(self, network: Residual) -> dict[str, Any]:
        """Take the best checkpoint, gate it on windows that did not choose it, export and log it."""
        assert self.run is not None
        self.progress("validating", 0.99)
        last = self.validate(network)
        row = {"steps": float(self.steps), "seconds": self.elapsed_s(), "cpu_s": self.cpu_s()}
        self.curve.append({**row, "gain": last.gain})
        assert self.best is not None
        network.load_state_dict(self.best[1])
        windows = self.config.validation_windows
        shrinkage = self._shrink(network, windows)
        verdict = self._judge(network, windows, "gate")
        config, run = self.config, self.run
        hashes = {s.name: s.hash for s in self.scenarios}
        card = Card(
            self.base,
            self.params,
            self.scenarios[0].fleet.timing.control_s,
            tuple(dict.fromkeys(s.family for s in self.scenarios)),
            {
                "run_id": run.run_id,
                "algo": config.algo,
                "profile": config.profile,
                "role_shrinkage": shrinkage,
                "cpu_s": round(self.cpu_s(), 1),
                "seed": config.seed,
                "scenarios": list(config.scenarios),
                "scenario_hashes": hashes,
                "nodes": sorted({len(s.fleet.nodes) for s in self.scenarios}),
                "steps": self.steps,
                "git_revision": git_revision(),
                "flyball_version": __version__,
                "validation_gain": verdict.gain,
                "validation": verdict.rows,
                "passed": verdict.passed,
                **self.origin,
            },
        )
        onnx = export(network, card, config.out / "policy.onnx")
        saved = {"kind": type(network).__name__, "pool_channels": list(network.pool_channels)}
        torch.save({**saved, "weights": network.state_dict()}, config.out / "network.pt")
        run.metrics({"gate.gain": verdict.gain, "gate.passed": float(verdict.passed)}, self.steps)
        run.artifact(onnx)
        model, registered = run.onnx_model(onnx), None
        if verdict.passed:
            judged = judged_on(hashes, self.base, self.params, windows)
            registered = asdict(run.register(model, model_name([s.name for s in self.scenarios]), verdict.gain, judged))
        result = {
            "run_id": run.run_id,
            "out": str(config.out),
            "onnx": str(onnx),
            "algo": config.algo,
            "profile": config.profile,
            "role_shrinkage": shrinkage,
            "passed": verdict.passed,
            "gain": verdict.gain,
            "base": self.base,
            "steps": self.steps,
            "seconds": round(self.elapsed_s(), 1),
            "cpu_s": round(self.cpu_s(), 1),
            "registered": registered,
            "validation": verdict.rows,
            "curve": self.curve,
        }
        told = {**result, "identity": identity_of(config, self.scenarios), "budget": config.budget()}
        partial = config.out / "run.partial"
        partial.write_text(json.dumps({**told, "config": config.identity()}, indent=1))
        partial.replace(config.out / "run.json")
        run.artifact(config.out / "run.json")
        self.progress("trained", 1.0)
        return result

    def _judge(self, network: Residual, windows: int, purpose: str) -> Verdict:
        return judge(network, self.scenarios, self.base, self.params, windows, purpose, self._references)

    def _shrink(self, network: Residual, windows: int) -> float | None:
        """Scale the role head by what is best on windows of its own; None where there is none.

        Role moves overfit the load they were learned on (RL.md): how much of them to keep is not chosen on the
        windows that chose the checkpoint, nor on those that gate it.
        """
        if "nodes" not in self.channels.pool:
            return None
        whole = {k: v.detach().clone() for k, v in network.state_dict().items()}
        gains = []
        for factor in ROLE_SHRINKAGES:
            self.progress(f"validating {factor:g} of the role moves", 0.99)
            network.load_state_dict(whole)
            shrink_roles(network, factor)
            gains.append(self._judge(network, windows, "shrink").gain)
        best = ROLE_SHRINKAGES[int(np.argmax(gains))]
        network.load_state_dict(whole)
        shrink_roles(network, best)
        return best

    def parameters(self) -> dict[str, Any]:
        """What the tracked run says of itself."""
        config = {k: v for k, v in asdict(self.config).items() if k not in ("out", "mlflow_uri")}
        return {
            **config,
            "residual_on": self.base,
            "base_params": json.dumps(self.params, sort_keys=True),
            "schema_pool": schema_hash("pool"),
            "schema_fleet": schema_hash("fleet"),
            **{f"scenario_hash.{s.name}": s.hash for s in self.scenarios},
            "git_revision": git_revision(),
            "flyball_version": __version__,
        }


def spent_cpu_s() -> float:
    """CPU seconds of this process with all its threads, and of every child that it has waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def is_finite(values: Any) -> bool:
    """Whether every float in nested dicts and lists of numbers, arrays and tensors is finite."""
    if isinstance(values, dict):
        return all(is_finite(v) for v in values.values())
    if isinstance(values, list | tuple):
        return all(is_finite(v) for v in values)
    if isinstance(values, torch.Tensor):
        return bool(torch.isfinite(values).all())
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return bool(np.isfinite(values).all())
    return not isinstance(values, float) or bool(np.isfinite(values))
