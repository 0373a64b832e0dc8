"""Budget events: limits that change at a time, announced or not, and what they mean for each domain."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ..fleet.tables import NEVER_S
from ..fleet.topology import Fleet


@dataclass(frozen=True)
class BudgetEvent:
    """One change of one domain's limit.

    Attributes:
        domain: Name of the power domain (feed, row, rack).
        start_s: Unix time at which the limit applies.
        until_s: Unix time at which it ends; NEVER_S when open.
        limit_w: Watts while it applies.
        announced_s: When the service heard of it: `start_s - announced_s` is the notice.
        is_withdrawn: Superseded by a later event.
    """

    id: str
    domain: str
    start_s: float
    until_s: float
    limit_w: int
    announced_s: float
    author: str = ""
    reason: str = ""
    is_withdrawn: bool = False

    def applies(self, at_s: float) -> bool:
        return not self.is_withdrawn and self.start_s <= at_s < self.until_s


class DomainLimit(NamedTuple):
    """What the events mean for one domain at one instant."""

    limit_w: int
    next_limit_w: int
    next_in_s: float
    event_id: str  # of the event that sets the limit now, empty for the site file's
    until_s: float  # when that event ends


def limit_at(peak_w: int, events: Iterable[BudgetEvent], at_s: float) -> tuple[int, BudgetEvent | None]:
    """The lowest limit that applies at a time, and the event that sets it (None: the site file's)."""
    binding = min((e for e in events if e.applies(at_s)), key=lambda e: (e.limit_w, e.id), default=None)
    if binding is None or binding.limit_w >= peak_w:
        return peak_w, None
    return binding.limit_w, binding


def domain_limit(peak_w: int, events: Iterable[BudgetEvent], now_s: float, lookahead_s: float) -> DomainLimit:
    """Limit now and the next change that the arbiter must be told of.

    The arbiter sees one announced change. A lowering must be met before it starts, so the earliest instant
    below today's limit is announced; cuts that follow within `lookahead_s` of it (a ramp in steps) are
    announced as one, at the lowest of them, because leases handed out before the first may still be held
    at the last.
    Without a lowering ahead, the earliest raise is announced.
    """
    events = [e for e in events if not e.is_withdrawn and e.until_s > now_s]
    limit_w, binding = limit_at(peak_w, events, now_s)
    edges = sorted({t for e in events for t in (e.start_s, e.until_s) if now_s < t < NEVER_S})
    ahead = [(t, limit_at(peak_w, events, t)[0]) for t in edges]
    lower = next((t for t, w in ahead if w < limit_w), None)
    if lower is not None:
        next_w = min(w for t, w in ahead if lower <= t <= lower + lookahead_s)
        next_in_s = lower - now_s
    else:
        first = next(((t, w) for t, w in ahead if w > limit_w), None)
        next_w, next_in_s = (first[1], first[0] - now_s) if first else (limit_w, NEVER_S)
    return DomainLimit(
        limit_w, next_w, next_in_s, binding.id if binding else "", binding.until_s if binding else NEVER_S
    )


def fleet_limits(fleet: Fleet, events: Iterable[BudgetEvent], now_s: float, lookahead_s: float) -> list[DomainLimit]:
    """`domain_limit` for every domain, in the fleet's order."""
    by_domain: dict[str, list[BudgetEvent]] = {}
    for e in events:
        by_domain.setdefault(e.domain, []).append(e)
    return [domain_limit(d.peak_w, by_domain.get(d.name, ()), now_s, lookahead_s) for d in fleet.domains]
