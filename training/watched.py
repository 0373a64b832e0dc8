"""A training run that is watched from outside: no store, no files, no gate, only the policy at set times."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import registry
from ..policies.base import Policy
from ..policies.network import Residual
from .config import TrainConfig
from .gate import TorchPolicy
from .session import Progress, Session

Judge = Callable[[Policy, float], bool]
"""Called with the policy so far and its CPU seconds; True ends the run."""


class Watched(Session):
    """A session that shows its policy at set CPU times and forgets everything else.

    Args:
        config: What to train; one scenario, by `cpu_seconds`.
        looks: CPU seconds at which to show it, rising.
        judge: Whom to show it to; what that takes is not in the run's CPU time.
        progress: Called with a label and the share done.
    """

    def __init__(self, config: TrainConfig, looks: Sequence[float], judge: Judge, progress: Progress):
        super().__init__(config, progress)
        self._looks, self._judge_policy = list(looks), judge
        self._judged_cpu_s = 0.0
        self._is_ended = False
        self._round_s = self._last_s = 0.0

    def cpu_s(self) -> float:
        return super().cpu_s() - self._judged_cpu_s

    def is_over(self) -> bool:
        """Whether it was ended, or another round like the last one would not fit into the budget."""
        assert self.config.cpu_seconds is not None
        is_full = self.cpu_s() + self._round_s > self.config.cpu_seconds
        return self._is_ended or is_full or super().is_over()

    def restore(self) -> None:
        return None

    def save(self, algorithm: dict[str, Any]) -> None:
        self.check(algorithm)

    def record(self, network: Residual, round_: int, values: dict[str, float], label: str) -> None:
        """Show the policy if a look is due: once, however many are."""
        self.check([values, dict(network.named_parameters())])
        self.progress(label, self.share())
        now_s = self.cpu_s()
        self._round_s, self._last_s = now_s - self._last_s, now_s
        due = [at for at in self._looks if at <= self.cpu_s()]
        if due and not self._is_ended:
            self._looks = self._looks[len(due) :]
            self.show(network)

    def show(self, network: Residual) -> None:
        """Have the policy judged as it is."""
        spent_s, started = self.cpu_s(), time.process_time()
        baseline = registry.baseline(self.base, self.scenarios[0], self.params)
        self._is_ended = self._judge_policy(TorchPolicy(network, baseline), spent_s) or self._is_ended
        self._judged_cpu_s += time.process_time() - started


def run_watched(config: TrainConfig, looks: Sequence[float], judge: Judge, progress: Progress) -> float:
    """Train until the judge is satisfied or the budget is spent; the last policy is always judged.

    Returns:
        CPU seconds of training, without judging.

    Raises:
        BadInput: a configuration that cannot be run, or a run that diverged.
    """
    torch.manual_seed(config.seed)
    session = Watched(config, looks, judge, progress)
    if config.algo == "distill":
        from .distill import learn
    else:
        from .es import learn
    network = learn(session)
    spent_s = session.cpu_s()
    if session._looks and not session._is_ended:
        session.show(network)
    return spent_s
