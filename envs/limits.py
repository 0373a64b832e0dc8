"""Budgets and lost feeds as limits over time: what is demanded, what is in force, what is told."""

import numpy as np

from ..fleet.tables import NEVER_S
from ..fleet.topology import Fleet
from .events import Event

DEMANDED, IN_FORCE = 0, 1
TOLD, NEXT, NEXT_IN_S = 0, 1, 2


def budget_series(
    fleet: Fleet, events: tuple[Event, ...], starts_s: list[float], ticks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Limits of every domain at every tick of one episode.

    An announced change is in force from its start. An un-noticed cut is in force `grace_s` after it, and is told
    one tick after it happens: nobody hears of it at the instant. An event supersedes, from its start on, those of the
    same domain that started before it: the earlier one's end no longer matters, and after the later one's the nominal
    limit is back. A second cut within the grace of a first does not shorten that grace. Of two announced changes the
    nearer is told.

    Args:
        fleet: The site; its `peak_w` are the nominal limits.
        events: The scenario's budgets and lost feeds.
        starts_s: Start of each event.
        ticks: Ticks of the episode.

    Returns:
        Limits (ticks + 1, D, 2) int64 watts: demanded, in force; and what is told, (ticks + 1, D, 3) float64:
        demanded as told, announced next limit, seconds until it starts.
    """
    tick_s, grace_s = fleet.timing.tick_s, fleet.timing.grace_s
    peak_w = fleet.domain_static["peak_w"].astype(np.int64)
    count = len(peak_w)
    limits = np.broadcast_to(peak_w[:, None], (ticks + 1, count, 2)).copy()
    told = np.empty((ticks + 1, count, 3))
    told[..., TOLD] = told[..., NEXT] = peak_w
    told[..., NEXT_IN_S] = NEVER_S
    grace = int(np.ceil(grace_s / tick_s))
    graced = np.zeros(count, np.int64)  # first tick after the grace of the domain's last cut
    for event, start_s in sorted(zip(events, starts_s, strict=True), key=lambda pair: pair[1]):
        d = fleet.domain_index[event.domain] if event.domain else 0
        start = round(start_s / tick_s)
        if start > ticks:
            continue  # after this episode
        end = ticks + 1 if event.until_s is None else min(start + max(round(event.until_s / tick_s), 1), ticks + 1)
        notice = round(event.notice_s / tick_s)
        target_w = int(peak_w[d] * event.limit_frac)
        before_w = int(limits[max(start - 1, 0), d, DEMANDED])
        ramp = round(event.ramp_s / tick_s)
        level_w = np.full(end - start, target_w, np.int64)
        if ramp and end > start:
            steps = np.arange(1, min(ramp, end - start) + 1)
            level_w[: len(steps)] = before_w + (target_w - before_w) * steps // ramp
        limits[start:end, d, DEMANDED] = level_w
        limits[end:, d, DEMANDED] = peak_w[d]
        noticed = notice > 0
        if noticed or target_w >= before_w:
            limits[start:end, d, IN_FORCE] = level_w
            told[start:end, d, TOLD] = level_w
            lead = slice(max(start - notice, 0), start)
            if noticed:
                in_s = (start - np.arange(lead.start, lead.stop)) * tick_s
                is_nearest = told[lead, d, NEXT_IN_S] == NEVER_S
                told[lead, d, NEXT] = np.where(is_nearest, target_w, told[lead, d, NEXT])
                told[lead, d, NEXT_IN_S] = np.where(is_nearest, in_s, told[lead, d, NEXT_IN_S])
        else:
            # what the grace of an earlier cut still lets through, it lets through
            limits[max(start, graced[d]) : min(start + grace, end), d, IN_FORCE] = before_w
            limits[min(start + grace, end) : end, d, IN_FORCE] = level_w[grace:]
            graced[d] = start + grace
            told[start, d, TOLD] = before_w
            told[start + 1 : end, d, TOLD] = level_w[1:]
        limits[end:, d, IN_FORCE] = peak_w[d]
        told[end:, d, TOLD] = peak_w[d]
    return limits, told
