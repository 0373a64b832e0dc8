"""Budget events of a scenario as a utility would announce them to the service."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...envs.limits import DEMANDED
from ...envs.plant import Plant
from ...envs.scenario import Scenario


@dataclass(frozen=True)
class Announcement:
    """A budget event as it will be announced.

    Attributes:
        at_s: When it is announced, from the start of the plant.
        start_s: When its limit holds, rounded to a tick.
        until_s: How long it holds; None without end.
        body: What the service is told, but for times, which run from the moment of telling.
    """

    at_s: float
    start_s: float
    until_s: float | None
    body: dict[str, Any]

    def message(self, now_s: float) -> dict[str, Any]:
        """The message to send `now_s` after the start of the plant."""
        body = dict(self.body)
        if self.start_s > now_s:
            body["notice_s"] = self.start_s - now_s
        if self.until_s is not None:
            body["until_s"] = time.time() + self.start_s + self.until_s - now_s
        return body


def event_id(scenario: Scenario, index: int) -> str:
    """Name under which the scenario's event of this index is announced."""
    return f"{scenario.name}-{index}"


def announcements(scenario: Scenario, starts_s: Sequence[float], plant: Plant) -> list[Announcement]:
    """What a scenario's events have the service told, in the order of telling.

    A ramp is announced as one step: down at its start, up at its end, so that the service's limit is never
    above the plant's.

    Args:
        scenario: Whose events.
        starts_s: When each starts.
        plant: With the scenario's limits, begun.
    """
    fleet, tick_s, out = scenario.fleet, scenario.fleet.timing.tick_s, []
    events = list(zip(scenario.budget_events, starts_s, strict=True))
    for i, (event, start_s) in enumerate(events):
        d = fleet.domain_index[event.domain] if event.domain else 0
        start = round(start_s / tick_s)
        if start > plant.ticks:
            continue
        start_s = start * tick_s
        before_w = int(plant.limits[0, max(start - 1, 0), d, DEMANDED])
        limit_w = int(fleet.domains[d].peak_w * event.limit_frac)
        is_raise = limit_w >= before_w
        at_s = start_s + event.ramp_s if is_raise else max(start_s - event.notice_s, 0.0)
        earlier = [
            event_id(scenario, k)
            for k, (other, other_s) in enumerate(events)
            if is_raise and other.domain == event.domain and other_s < start_s and other.until_s is None
        ]
        body = {
            "id": event_id(scenario, i),
            "domain": fleet.domains[d].name,
            "limit_w": limit_w,
            "supersedes": earlier,
            "reason": f"scenario {scenario.name}",
        }
        out.append(Announcement(at_s, start_s, event.until_s, body))
    return sorted(out, key=lambda announcement: announcement.at_s)
