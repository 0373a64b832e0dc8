"""One training run as a value."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..fleet.errors import BadInput

ALGORITHMS = ("ppo", "es")


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
        algo: "ppo" or "es".
        pairs: Evolution strategies: antithetic pairs per iteration (RL.md: 24 to 32).
        windows: Evolution strategies: windows per scenario and iteration, shared by all candidates.
        sigma: Evolution strategies: size of perturbations (RL.md: 0.03 to 0.05).
        es_learning_rate: Evolution strategies: Adam's, decayed linearly to a tenth (RL.md: 0.02 to 0.03, on windows
            with less noise than a mixture of families has).
        lost_weight: Evolution strategies: score = (good - lost_weight * lost) / offered tokens (RL.md: 0.3).
        validate_every: Rollouts or iterations between validations of the policy so far.
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
    algo: str = "ppo"
    pairs: int = 16
    windows: int = 3
    sigma: float = 0.04
    es_learning_rate: float = 0.012
    lost_weight: float = 0.3
    validate_every: int = 15
    validation_windows: int = 24

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued: everything but budget, place and store."""
        out = asdict(replace(self, out=Path()))
        for name in ("minutes", "steps", "out", "mlflow_uri"):
            out.pop(name)
        return json.loads(json.dumps(out))

    def check(self) -> None:
        """Refuse what cannot be run.

        Raises:
            BadInput: no budget or two, a budget that is not positive, or an unknown algorithm.
        """
        if self.algo not in ALGORITHMS:
            raise BadInput(f"--algo {self.algo}: use {' or '.join(ALGORITHMS)}")
        if (self.minutes is None) == (self.steps is None):
            raise BadInput("give --minutes or --steps")
        if self.minutes is not None and not self.minutes > 0:
            raise BadInput(f"--minutes {self.minutes:g}: use a number above 0")
        if self.steps is not None and self.steps < 1:
            raise BadInput(f"--steps {self.steps}: use at least 1")
