"""Events that the plant carries out: failed feeds, outages, meters that lie, telemetry that is lost."""

import numpy as np

from ..fleet.topology import Fleet
from .compiled import kernel
from .events import DROPOUT, FEED_LOSS, MAX_PLANT_EVENTS, METER_FAULTS, OUTAGE, Event
from .serving_dynamics import lose_node

LOST_FEED, NO_POWER, DEAD_METER, FROZEN_METER, BIASED_METER, MUTE = 1, 2, 3, 4, 5, 6
"""Kinds of plant events in `PLANT_PARAMS.event_kind`."""

METER_OK, METER_DEAD, METER_FROZEN = 0, 1, 2
"""States of a meter; a bias is a number of its own."""

NEVER_TICK = 2**62

BOOT_S = 600.0
"""From the return of power until a host and its engine serve again (A: 5-15 min of self-test, boot and start)."""


def _code(event: Event) -> int:
    if event.kind in (FEED_LOSS, OUTAGE, DROPOUT):
        return {FEED_LOSS: LOST_FEED, OUTAGE: NO_POWER, DROPOUT: MUTE}[event.kind]
    return DEAD_METER + METER_FAULTS.index(event.fault)


def schedule(p: np.void, fleet: Fleet, events: list[tuple[Event, float]]) -> None:
    """Write the plant's events into one environment's parameters; see `Event` for supersession.

    Args:
        p: Row of `PLANT_PARAMS`.
        fleet: The site.
        events: Events with their starts in seconds, at most `MAX_PLANT_EVENTS`, budgets left out.
    """
    tick_s = fleet.timing.tick_s
    rows: list[list] = []
    for event, start_s in sorted(events, key=lambda pair: pair[1]):
        domain = fleet.domain_index[event.domain] if event.domain else 0
        start = round(start_s / tick_s)
        end = NEVER_TICK if event.until_s is None else start + max(round(event.until_s / tick_s), 1)
        for row in rows:
            if row[4] == event.kind and row[1] == domain and row[3] > start:
                row[3] = start
        value = {FEED_LOSS: event.limit_frac, DROPOUT: event.lost_frac}.get(event.kind, event.bias_frac)
        rows.append([_code(event), domain, start, end, event.kind, value])
    p["event_count"] = len(rows)
    for name, column in (("kind", 0), ("domain", 1), ("start", 2), ("end", 3), ("value", 5)):
        padded = [row[column] for row in rows] + [0] * (MAX_PLANT_EVENTS - len(rows))
        p[f"event_{name}"] = padded


EVENT_FIELDS = ("event_count", "event_kind", "event_domain", "event_start", "event_end", "event_value")
"""What `schedule` writes."""


def forget_future(params: np.ndarray, tick: int) -> None:
    """Make events as unknown as they are: those to come do not, those under way do not end.

    Args:
        params: Rows of `PLANT_PARAMS`, changed in place.
        tick: The present.
    """
    is_running = (params["event_start"] < tick) & (tick <= params["event_end"])
    params["event_end"] = np.where(is_running, NEVER_TICK, params["event_end"])
    is_coming = params["event_start"] >= tick
    params["event_start"] = np.where(is_coming, NEVER_TICK, params["event_start"])
    params["event_end"] = np.where(is_coming, NEVER_TICK, params["event_end"])


@kernel
def event_tick(b, tick, tick_s, measured, node_static, domain_static, params, node, domain, service, totals):
    """Carry out environment `b`'s events of this tick."""
    pr = params[b]
    for e in range(pr.event_count):  # ends first: what supersedes starts where the other ends
        if pr.event_end[e] == tick:
            _end(pr.event_kind[e], domain_static[pr.event_domain[e]], domain[b, pr.event_domain[e]], node[b])
    for e in range(pr.event_count):
        if pr.event_start[e] > tick or tick >= pr.event_end[e]:
            continue
        kind, d, value = pr.event_kind[e], pr.event_domain[e], pr.event_value[e]
        dm, ds = domain[b, d], domain_static[d]
        if kind == LOST_FEED:
            dm.rating_w = dm.full_rating_w * value
        elif kind == NO_POWER:
            left_s = (pr.event_end[e] - tick) * tick_s
            for n in range(ds.node_start, ds.node_end):
                nd = node[b, n]
                if nd.down_s < left_s + BOOT_S:
                    if nd.down_s <= 0.0:
                        lose_node(b, n, measured, node_static, node, service, totals)
                        nd.gpus_down, nd.part_down_s = 0, 0.0
                    nd.down_s, nd.agent_down = left_s + BOOT_S, 1
        elif kind == DEAD_METER:
            dm.meter_state = METER_DEAD
        elif kind == FROZEN_METER:
            dm.meter_state = METER_FROZEN
        elif kind == BIASED_METER:
            dm.meter_bias = value
        else:
            for n in range(ds.node_start, ds.node_end):
                node[b, n].mute_frac = value


@kernel(inline=True)
def _end(kind, ds, dm, node):
    """All is as before, for one domain `dm` and the nodes below it."""
    if kind == LOST_FEED:
        dm.rating_w = dm.full_rating_w
    elif kind in (DEAD_METER, FROZEN_METER, BIASED_METER):
        dm.meter_state, dm.meter_bias = METER_OK, 0.0
    elif kind == MUTE:
        for n in range(ds.node_start, ds.node_end):
            node[n].mute_frac = 0.0
