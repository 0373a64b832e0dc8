"""One training run as a value."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import registry
from ..envs.scenario import Scenario
from ..fleet.errors import BadInput

ALGORITHMS = ("ppo", "es", "distill")

PROFILES = {
    "power": ("watts",),
    "power-roles": ("watts", "nodes"),
    "power-roles-clocks": ("watts", "nodes", "clock"),
}
"""Pool bids that a policy corrects, beside the fleet's slack; RL.md lesson 7: watts are the low-variance part."""

TEACHERS = ("clairvoyant", "rollout")
"""Planners that label states."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        scenarios: Names or paths; several are a mixture, in equal parts.
        out: Run folder.
        minutes: Wall-clock budget; None if another is given.
        steps: Environment steps, those of a planner that labels states included; None if another is given.
        cpu_seconds: Budget of this process's CPU time, validation included; None if another is given.
        seed: Of everything.
        base: Baseline that the policy corrects; best-baseline is the best one of their family, or of the standard suite
            where there are several.
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
        clocks_std: Exploration of clock bids.
        spend_std: Exploration of the fleet bid.
        algo: "ppo", "es" or "distill": labels of a planner, then evolution strategies from there.
        profile: What the policy corrects, one of `PROFILES`.
        pairs: Evolution strategies: antithetic pairs per iteration (RL.md: 24 to 32).
        windows: Evolution strategies: windows per iteration, shared by all candidates and divided among the scenarios
            (RL.md: 8 to 12).
        sigma: Evolution strategies: size of perturbations (RL.md: 0.03 to 0.05).
        es_learning_rate: Evolution strategies: Adam's, decayed linearly to a tenth (RL.md: 0.02 to 0.03).
        warm_up: Evolution strategies: iterations over which the learning rate rises to its full value (RL.md: 20); a
            tenth of the budget at most, so that short runs learn too.
        lost_weight: Evolution strategies: score = (good - lost_weight * lost) / offered tokens (RL.md: 0.3).
        teacher: Distillation: the planner that labels states, one of `TEACHERS`.
        label_rounds: Distillation: rounds of labelling what the student visits (RL.md: 3).
        label_windows: Distillation: windows per scenario and round.
        label_every: Distillation: one control interval in so many is labelled, drawn at random.
        label_share: Distillation: share of the budget after which no more is labelled.
        ridge: Distillation: weight of the squared parameters relative to the labels' mean square error.
        validate_every: Rollouts or iterations between validations of the policy so far.
        validation_windows: Windows per scenario on which policies are chosen and gated.
    """

    scenarios: tuple[str, ...]
    out: Path
    minutes: float | None = 5.0
    steps: int | None = None
    cpu_seconds: float | None = None
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
    clocks_std: float = 0.12
    spend_std: float = 0.10
    algo: str = "ppo"
    profile: str = "power-roles"
    pairs: int = 24
    windows: int = 10
    sigma: float = 0.04
    es_learning_rate: float = 0.025
    warm_up: int = 20
    lost_weight: float = 0.3
    teacher: str = "clairvoyant"
    label_rounds: int = 3
    label_windows: int = 10
    label_every: int = 6
    label_share: float = 0.4
    ridge: float = 0.03
    validate_every: int = 15
    validation_windows: int = 24

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued: everything but budget, place and store."""
        out = asdict(replace(self, out=Path()))
        for name in ("minutes", "steps", "cpu_seconds", "out", "mlflow_uri"):
            out.pop(name)
        return json.loads(json.dumps(out))

    def budget(self) -> dict[str, float | None]:
        """How long it trains, by unit."""
        return {"minutes": self.minutes, "steps": self.steps, "cpu_seconds": self.cpu_seconds}

    def check(self) -> None:
        """Refuse what cannot be run.

        Raises:
            BadInput: no budget or several, a budget that is not positive, or an unknown algorithm, profile or teacher.
        """
        for option, value, known in (
            ("--algo", self.algo, ALGORITHMS),
            ("--profile", self.profile, PROFILES),
            ("--teacher", self.teacher, TEACHERS),
        ):
            if value not in known:
                raise BadInput(f"{option} {value}: use {' or '.join(known)}")
        if sum(budget is not None for budget in (self.minutes, self.steps, self.cpu_seconds)) != 1:
            raise BadInput("give --minutes or --steps or --cpu-seconds, not both")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise BadInput(f"--minutes {self.minutes:g}: use a number above 0")
        if self.cpu_seconds is not None and not 0 < self.cpu_seconds < math.inf:
            raise BadInput(f"--cpu-seconds {self.cpu_seconds:g}: use a number above 0")
        if self.steps is not None and self.steps < 1:
            raise BadInput(f"--steps {self.steps}: use at least 1")


def identity_of(config: TrainConfig, scenarios: list[Scenario]) -> dict[str, Any]:
    """Configuration, scenarios and base: a checkpoint continues, and a result stands, only under the same."""
    base, params = registry.base_of(config.base, scenarios)
    return {**config.identity(), "hashes": {s.name: s.hash for s in scenarios}, "base": base, "params": params}
