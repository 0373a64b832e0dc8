"""Run-time assurance: a policy that fails is replaced within the tick and earns its place back."""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..fleet.bids import Bids
from ..fleet.observe import Observation
from ..fleet.snapshot import Snapshot
from ..fleet.topology import Fleet
from ..policies.base import Policy

log = logging.getLogger(__name__)

FIRST_HOLDOFF = 6
"""Decisions for which a failed policy is left alone; doubles with every failure up to LONGEST_HOLDOFF."""

LONGEST_HOLDOFF = 192

PROBATION = 3
"""Good decisions in a row, made but not used, before a policy returns."""


class NeutralPolicy:
    """Bids nothing: the arbiter shares the watts in proportion to demand. It cannot fail."""

    name = "neutral"

    def __init__(self, fleet: Fleet) -> None:
        self._pools, self._nodes = fleet.pools, len(fleet.nodes)

    def start(self, batch: int) -> None:
        return None

    def bid(self, snapshot: Snapshot, observation: Observation, memory: Any) -> tuple[Bids, Any]:
        return Bids.neutral(snapshot.batch, self._pools, self._nodes), memory


@dataclass(frozen=True)
class Decision:
    """Bids and where they came from; `failure` says why it was not the policy."""

    bids: Bids
    source: str
    failure: str = ""
    changed: str = ""  # one line when the source changed at this decision


def check_bids(bids: object, like: Bids) -> str:
    """Empty when the bids have the right tables and shapes and are finite, else what is wrong."""
    for name in ("pool", "node", "fleet"):
        table = np.asarray(getattr(bids, name, None))
        want = getattr(like, name).shape
        if table.dtype.kind != "f" or table.shape != want:
            return f"{name} bids have shape {table.shape} and type {table.dtype}, not {want} floats"
        if not np.isfinite(table).all():
            return f"{name} bids hold NaN or infinity"
    return ""


class AssuredPolicy:
    """A policy under watch, with a fallback that stands in while it fails.

    A failure is an exception, a wrong shape, a value that is not finite, or no answer within `deadline_s`.
    The fallback's bids are used at once. The policy is left alone for a hold-off, then decides on
    probation, and returns after `PROBATION` good decisions in a row.

    Args:
        fleet: The site.
        policy: Source of bids.
        fallback: What stands in; None for the neutral policy.
        deadline_s: Longest that the policy may take; None runs it inline and unwatched.
    """

    def __init__(
        self, fleet: Fleet, policy: Policy, fallback: Policy | None = None, deadline_s: float | None = 0.5
    ) -> None:
        self.policy = policy
        self.fallback = fallback or NeutralPolicy(fleet)
        self._neutral = NeutralPolicy(fleet)
        self._deadline_s = deadline_s
        self._like = Bids.neutral(1, fleet.pools, len(fleet.nodes))
        self._memory = policy.start(1)
        self._fallback_memory = self.fallback.start(1)
        self._holdoff = FIRST_HOLDOFF
        self._rest = 0  # decisions left in the hold-off
        self._probation = 0  # good decisions still owed; 0 while trusted
        self._running: threading.Thread | None = None
        self.failures = 0

    @property
    def is_trusted(self) -> bool:
        """Whether the policy's own bids are in use."""
        return self._rest == 0 and self._probation == 0

    def decide(self, snapshot: Snapshot, observation: Observation) -> Decision:
        """Bids for a batch of one; never raises."""
        if self._rest > 0:
            self._rest -= 1
            return self._stand_in(snapshot, observation, "held off after a failure")
        bids, failure = self._ask(snapshot, observation)
        if failure:
            return self._fail(snapshot, observation, failure)
        if self._probation > 0:
            self._probation -= 1
            if self._probation > 0:
                return self._stand_in(snapshot, observation, "on probation")
            self._holdoff = max(FIRST_HOLDOFF, self._holdoff // 2)
            line = f"policy {self.policy.name} is back after {PROBATION} good decisions"
            log.warning(line)
            return Decision(bids, self.policy.name, changed=line)
        return Decision(bids, self.policy.name)

    def _fail(self, snapshot: Snapshot, observation: Observation, failure: str) -> Decision:
        self.failures += 1
        was_trusted = self.is_trusted
        self._rest, self._probation = self._holdoff, PROBATION
        self._holdoff = min(2 * self._holdoff, LONGEST_HOLDOFF)
        try:
            self._memory = self.policy.start(1)
        except Exception:
            log.exception("policy %s: start failed", self.policy.name)
        line = f"policy {self.policy.name} failed ({failure}); {self.fallback.name} stands in"
        log.error(line)
        decision = self._stand_in(snapshot, observation, failure)
        return Decision(decision.bids, decision.source, failure, line if was_trusted else "")

    def _stand_in(self, snapshot: Snapshot, observation: Observation, why: str) -> Decision:
        try:
            bids, self._fallback_memory = self.fallback.bid(snapshot, observation, self._fallback_memory)
            wrong = check_bids(bids, self._like)
        except Exception as error:
            bids, wrong = None, repr(error)
        if bids is not None and not wrong:
            return Decision(bids, self.fallback.name, why)
        log.error("fallback policy %s failed (%s); neutral bids stand in", self.fallback.name, wrong)
        bids, _ = self._neutral.bid(snapshot, observation, None)
        return Decision(bids, self._neutral.name, why)

    def _ask(self, snapshot: Snapshot, observation: Observation) -> tuple[Any, str]:
        if self._running is not None and self._running.is_alive():
            return None, "still busy with an earlier decision"
        answer: list[Any] = []
        memory = self._memory

        def call() -> None:
            try:
                answer.append(self.policy.bid(snapshot, observation, memory))
            except BaseException as error:
                answer.append(error)

        if self._deadline_s is None:
            call()
        else:
            started_s = time.monotonic()
            # daemon: a policy that never returns must not keep the process alive
            self._running = threading.Thread(target=call, name="policy", daemon=True)
            self._running.start()
            self._running.join(self._deadline_s)
            if self._running.is_alive():
                return None, f"no answer within {time.monotonic() - started_s:.2f} s"
        if isinstance(answer[0], BaseException):
            return None, f"{type(answer[0]).__name__}: {answer[0]}"
        try:
            bids, self._memory = answer[0]
        except (TypeError, ValueError):
            return None, "did not return (bids, memory)"
        return bids, check_bids(bids, self._like)
