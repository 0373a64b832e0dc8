"""Leases: a cap that a node may run until a deadline on its own clock, and where it falls afterwards.

The time to live counts from the *sending* of the request that the lease answers, on the boot-time clock,
which goes on during suspend: however long the answer travelled, the service knows a bound of the deadline.
"""

import time
from dataclasses import dataclass, replace
from enum import IntEnum

UNKNOWN_W = -1
"""A cap or fallback that is not known: `fleet.tables.UNKNOWN_W`, which would bring NumPy into every agent."""


def boottime_s() -> float:
    """Seconds since boot, suspend included; the only clock that leases are measured on."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


PARKS_W = 0
"""The fallback of a lease whose node parks when it expires: no product takes a cap of 0 W. It is the arbiter's
`fallbacks.PARKS_W`."""


@dataclass(frozen=True)
class Lease:
    """One command to one node.

    Attributes:
        epoch: Of the service that issued it; a restarted service has a higher one.
        seq: Sequence number of the command within the epoch. A renewal repeats it with equal contents.
        ttl_s: Time to live from the sending of the request that it answers.
        cap_w: Watts that the node's GPUs may draw together while the lease lives.
        fallback_w: Where the node goes when it does not, unless it is lower already; PARKS_W: it parks.
        request: Sequence number of the telemetry that it answers.
    """

    epoch: int
    seq: int
    ttl_s: float
    cap_w: int
    fallback_w: int
    request: int = 0

    @property
    def parks(self) -> bool:
        """Whether its node parks when it expires: smallest caps, and nothing loaded."""
        return self.fallback_w == PARKS_W

    def is_same_command(self, other: "Lease") -> bool:
        return (self.epoch, self.seq, self.cap_w, self.fallback_w) == (
            other.epoch,
            other.seq,
            other.cap_w,
            other.fallback_w,
        )


class Verdict(IntEnum):
    """What became of an offered lease."""

    ACCEPTED = 0
    OLD_EPOCH = 1  # from a service that another one has replaced
    OLD_SEQ = 2  # overtaken by a later command
    CHANGED_SEQ = 3  # a sequence number names one command, and this one differs from the first
    TOO_LATE = 4  # expired on arrival
    MALFORMED = 5  # negative watts or no time to live


class Do(IntEnum):
    """What the node is to do now."""

    HOLD = 0  # no lease was ever held: leave caps as they are
    APPLY = 1
    FALL_BACK = 2


@dataclass(frozen=True)
class Action:
    """What to do now, and the node's cap that it means.

    Attributes:
        cap_w: Cap of the whole node; UNKNOWN_W with HOLD.
        parks: Whether the node is to unload what it serves.
    """

    do: Do
    cap_w: int
    parks: bool = False


@dataclass(frozen=True)
class LeaseState:
    """The lease that a node holds; every method is pure and returns a new state.

    Attributes:
        epoch: Highest epoch obeyed; lower ones are refused for good.
        seq: Highest sequence number obeyed in that epoch.
        lease: The lease held, live or expired; None before the first.
        sent_at_s: When the request that it answers was sent, `boottime_s`.
    """

    epoch: int = -1
    seq: int = -1
    lease: Lease | None = None
    sent_at_s: float = 0.0

    @property
    def deadline_s(self) -> float:
        """When the lease dies, on `boottime_s`; 0 without a lease."""
        return self.sent_at_s + self.lease.ttl_s if self.lease else 0.0

    @property
    def fallback_w(self) -> int:
        """The fallback held, UNKNOWN_W before the first lease."""
        return self.lease.fallback_w if self.lease else UNKNOWN_W

    def expired(self, now_s: float) -> bool:
        """Whether there is no live lease; the deadline itself is already too late."""
        return now_s >= self.deadline_s

    def accept(self, lease: Lease, sent_at_s: float, now_s: float) -> tuple["LeaseState", Verdict]:
        """Offer a lease.

        Args:
            lease: As the service sent it.
            sent_at_s: When the request that it answers was sent, `boottime_s`.
            now_s: `boottime_s`.

        Returns:
            The state afterwards, unchanged unless the verdict is ACCEPTED.
        """
        verdict = self._judge(lease, sent_at_s, now_s)
        if verdict is not Verdict.ACCEPTED:
            return self, verdict
        if self.lease is not None and self.lease.is_same_command(lease) and sent_at_s + lease.ttl_s < self.deadline_s:
            # an answer overtaken by a later renewal must not shorten what that one gave
            return self, verdict
        return replace(self, epoch=lease.epoch, seq=lease.seq, lease=lease, sent_at_s=sent_at_s), verdict

    def _judge(self, lease: Lease, sent_at_s: float, now_s: float) -> Verdict:
        # written so that NaN is malformed
        if not (lease.ttl_s > 0 and lease.cap_w >= 0 and lease.fallback_w >= 0 and lease.epoch >= 0 and lease.seq >= 0):
            return Verdict.MALFORMED
        if lease.epoch < self.epoch:
            return Verdict.OLD_EPOCH
        if lease.epoch == self.epoch:
            if lease.seq < self.seq:
                return Verdict.OLD_SEQ
            if lease.seq == self.seq and self.lease is not None and not self.lease.is_same_command(lease):
                return Verdict.CHANGED_SEQ
        if now_s >= sent_at_s + lease.ttl_s:
            return Verdict.TOO_LATE
        return Verdict.ACCEPTED

    def action(self, now_s: float, cap_in_force_w: int) -> Action:
        """What the node is to do now.

        Args:
            now_s: `boottime_s`.
            cap_in_force_w: Cap of the node as read back.

        Returns:
            On expiry min(cap in force, fallback): falling back never raises a cap.
        """
        if self.lease is None:
            return Action(Do.HOLD, UNKNOWN_W)
        if not self.expired(now_s):
            return Action(Do.APPLY, self.lease.cap_w)
        return Action(Do.FALL_BACK, min(cap_in_force_w, self.lease.fallback_w), self.lease.parks)
