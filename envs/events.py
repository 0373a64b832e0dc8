"""[[events]] of a scenario: what is done to a fleet from outside, and when."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..fleet.errors import ScenarioError
from ..fleet.toml_file import number
from ..fleet.topology import Fleet

BUDGET, FEED_LOSS, OUTAGE, METER, DROPOUT = "budget", "feed-loss", "outage", "meter", "dropout"
LIMIT_KINDS = (BUDGET, FEED_LOSS)
METER_FAULTS = ("dead", "frozen", "biased")

MAX_PLANT_EVENTS = 16
"""Events of one scenario that the plant carries out itself: all but budgets."""

_ALWAYS = ("kind", "t_s", "t_min_s", "t_max_s", "domain", "until_s")
_KEYS = {
    # keys of each kind beside those of every event, and of them those that must be given
    BUDGET: (("limit_frac", "notice_s", "ramp_s"), ("limit_frac",)),
    FEED_LOSS: (("limit_frac",), ("limit_frac",)),
    OUTAGE: ((), ("until_s",)),
    METER: (("fault", "bias_frac"), ("fault",)),
    DROPOUT: (("lost_frac",), ("lost_frac",)),
}


@dataclass(frozen=True)
class Event:
    """[[events]]: something happens to a power domain. A later event supersedes an earlier one of its kind there.

    Kinds: `budget`, the domain's limit changes by decision; `feed-loss`, one of its feeds fails: the limit falls
    without notice to what the others carry, and so does the rating of its breakers; `outage`, all of its power fails:
    its nodes are down until it returns and they have started (a node's own second power supply is not modelled);
    `meter`, its meter is dead (no value), frozen (the last value as if it were new) or biased; `dropout`, telemetry of
    its nodes is lost.

    Attributes:
        kind: One of those.
        limit_frac: budget, feed-loss: the new limit as a share of the domain's nominal `peak_w`.
        t_s: When it starts, unless it is drawn from `t_min_s` to `t_max_s`.
        domain: The power domain; empty for the root.
        notice_s: budget: how long before its start it is announced; 0 is not at all.
        until_s: How long after its start all is as before; None is never.
        ramp_s: budget: the limit moves to its new value evenly over this time; 0 is at once.
        t_min_s: Earliest start, drawn per environment; with `t_max_s`.
        t_max_s: Latest start.
        fault: meter: dead, frozen or biased.
        bias_frac: meter, biased: the error as a share of the true power.
        lost_frac: dropout: the share of samples that is lost.
    """

    limit_frac: float = number(1.0, above=0, high=1)
    t_s: float = number(0.0, low=0, high=1e8)
    domain: str = ""
    notice_s: float = number(0.0, low=0, high=1e6)
    until_s: float | None = number(None, above=0, high=1e8)
    ramp_s: float = number(0.0, low=0, high=1e6)
    t_min_s: float | None = number(None, low=0, high=1e8)
    t_max_s: float | None = number(None, low=0, high=1e8)
    kind: str = BUDGET
    fault: str = ""
    bias_frac: float = number(0.0, low=-0.9, high=10)
    lost_frac: float = number(0.0, low=0, high=1)


def event_times(events: Sequence[Event], rng: np.random.Generator) -> list[float]:
    """Start of every event in seconds, drawn where the event gives a range."""
    return [
        float(rng.uniform(e.t_min_s, e.t_max_s)) if e.t_min_s is not None and e.t_max_s is not None else e.t_s
        for e in events
    ]


def check_keys(index: int, given: dict) -> None:
    """Check which keys an event's table has.

    Raises:
        ScenarioError: an unknown kind, or a key that its kind does not have or lacks.
    """
    where, kind = f"events[{index}]", given.get("kind", BUDGET)
    if kind not in _KEYS:
        raise ScenarioError(f"{where}.kind: {kind!r}; use {', '.join(_KEYS)}")
    own, needed = _KEYS[kind]
    for key in needed:
        if key not in given:
            raise ScenarioError(f"{where}.{key}: missing; {kind} events need it")
    for key in given:
        if key not in (*_ALWAYS, *own):
            fix = "give kind = 'budget' for an announced change" if key in ("notice_s", "ramp_s") else "remove it"
            raise ScenarioError(f"{where}.{key}: {kind} events have none; {fix}")


def check_event(index: int, event: Event, fleet: Fleet) -> None:
    """Check an event against the site, and between its keys.

    Raises:
        ScenarioError: one line with the key and what to change.
    """
    where = f"events[{index}]"
    if (event.t_min_s is None) != (event.t_max_s is None):
        raise ScenarioError(f"{where}: t_min_s and t_max_s go together; give both or t_s")
    if event.t_min_s is not None and event.t_max_s is not None and event.t_min_s > event.t_max_s:
        raise ScenarioError(f"{where}: t_min_s {event.t_min_s:g} is after t_max_s {event.t_max_s:g}; exchange them")
    if event.domain and event.domain not in fleet.domain_index:
        known = ", ".join(d.name for d in fleet.domains[:20])
        raise ScenarioError(f"{where}.domain: the site has no power domain {event.domain!r}; it has {known}")
    if event.kind == METER and event.fault not in METER_FAULTS:
        raise ScenarioError(f"{where}.fault: {event.fault!r}; use {', '.join(METER_FAULTS)}")
    if event.kind == METER and (event.fault == "biased") != (event.bias_frac != 0.0):
        raise ScenarioError(f"{where}.bias_frac: a biased meter needs one that is not 0, the others have none")
    if event.kind == DROPOUT and event.lost_frac == 0.0:
        raise ScenarioError(f"{where}.lost_frac: 0 loses nothing; give a share above 0 or remove the event")
    if event.kind in LIMIT_KINDS:
        _check_limit(where, event, fleet)


def _check_limit(where: str, event: Event, fleet: Fleet) -> None:
    index = fleet.domain_index[event.domain] if event.domain else 0
    row, domain = fleet.domain_static[index], fleet.domains[index]
    inside = fleet.node_static[row["node_start"] : row["node_end"]]
    floor_w = int((inside["parked_max_w"] + inside["non_gpu_max_w"]).sum() + row["unmanaged_w"])
    limit_w = int(event.limit_frac * domain.peak_w)
    if limit_w < floor_w:
        # rounded up to the next per mille, so that the number given is one that works
        least_frac = -(-floor_w * 1000 // domain.peak_w) / 1000
        raise ScenarioError(
            f"{where}.limit_frac: {event.limit_frac:g} of {domain.name!r} is {limit_w} W, below the "
            f"{floor_w} W that its nodes may draw with every GPU parked; use at least {least_frac:g}"
        )
