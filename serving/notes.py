"""What changed between two ticks, in words that an operator can read as they scroll by."""

from collections.abc import Iterable

import numpy as np

from ..fleet.plan import Breach, Reason, Shed
from ..fleet.topology import Fleet
from .audit import Note
from .explain import watts
from .view import View

CAP_NOTE_EVERY_S = 10.0
"""A limit that binds and frees every other tick is told of once in a while, not every time."""

LISTED = 4
"""Nodes named in one note; more are counted."""

SHED_WORDS = {
    Shed.NONE: "no limit binds any more",
    Shed.CAP: "limits bind: caps are lowered",
    Shed.EMERGENCY_CAP: "decode floors are given up: limits bind harder than decoding can bear",
    Shed.PARK: "nodes are parked, because caps alone do not fit",
    Shed.INFEASIBLE: "even with every node parked the declared draw exceeds the limit: cut the feed by hand",
}
STAGES = ("prefill", "decode", "parked")


class NoteTaker:
    """Compares each view with the one before it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._before: View | None = None
        self._told_s = np.full(len(fleet.domains), -np.inf)

    def notes(self, view: View) -> list[Note]:
        """Notes of one tick, in the order: limits, breaches, shedding, caps, nodes."""
        before, self._before = self._before, view
        if before is None:
            return []
        out = [*self._limits(before, view), *self._breaches(before, view), *self._shed(before, view)]
        out += [*self._caps(before, view), *self._nodes(before, view)]
        return [Note(view.time_s, kind, text) for kind, text in out]

    def _limits(self, before: View, view: View) -> Iterable[tuple[str, str]]:
        for d, domain in enumerate(self._fleet.domains):
            was, now = before.limits[d], view.limits[d]
            if was.limit_w != now.limit_w:
                why = f" by {now.event_id}" if now.event_id else ", the site's own limit"
                yield (
                    "limit",
                    f"{domain.name}: limit is {watts(now.limit_w)} now (was {watts(was.limit_w)}){why}",
                )
            was_w, now_w = int(before.in_force_w[d]), int(view.in_force_w[d])
            if was_w != now_w:
                yield "limit", f"{domain.name}: held to {watts(now_w)} (before, {watts(was_w)})"

    def _breaches(self, before: View, view: View) -> Iterable[tuple[str, str]]:
        rows, old = view.plan.domain[0], before.plan.domain[0]
        for d in np.flatnonzero((rows["breach"] != old["breach"]) | (rows["is_exhausted"] > old["is_exhausted"])):
            name = self._fleet.domains[d].name
            metered = f"metered at {watts(view.domain_measured_w[d])}, limit {watts(view.in_force_w[d])}"
            if rows["breach"][d] != old["breach"][d]:
                how = "critical" if rows["is_critical"][d] else "warning"
                yield "limit", f"{name}: breach {Breach(int(rows['breach'][d])).name.lower()} ({how}; {metered})"
            if rows["is_exhausted"][d] > old["is_exhausted"][d]:
                yield "limit", f"{name}: nothing is left to take back, a person must look ({metered})"

    def _shed(self, before: View, view: View) -> Iterable[tuple[str, str]]:
        was, now = (int(v.plan.fleet["shed_level"][0]) for v in (before, view))
        # CAP comes and goes with every gust of load; the caps' own notes tell of it
        if was != now and max(was, now) > Shed.CAP:
            yield "cap", SHED_WORDS[Shed(now)]

    def _caps(self, before: View, view: View) -> Iterable[tuple[str, str]]:
        rows, old = view.plan.node[0], before.plan.node[0]
        bound = rows["reason"] == Reason.DOMAIN_LIMIT
        new = bound & ((old["reason"] != Reason.DOMAIN_LIMIT) | (old["bound_domain"] != rows["bound_domain"]))
        for d in np.unique(rows["bound_domain"][new]):
            if d < 0 or view.time_s - self._told_s[d] < CAP_NOTE_EVERY_S:
                continue
            self._told_s[d] = view.time_s
            held = np.flatnonzero(bound & (rows["bound_domain"] == d))
            missing_w = rows["want_w"][held] - rows["cap_w"][held]
            worst = held[int(np.argmax(missing_w))]
            binding_w = min(int(view.in_force_w[d]), view.limits[d].limit_w)
            yield (
                "cap",
                f"{self._fleet.domains[d].name}'s {watts(binding_w)} bind {_count(held)}: "
                f"{watts(missing_w.sum())} less than asked; most on {self._fleet.nodes[worst].name} "
                f"(asked {watts(rows['want_w'][worst])}, has {watts(rows['cap_w'][worst])})",
            )

    def _nodes(self, before: View, view: View) -> Iterable[tuple[str, str]]:
        now, was = view.heard.node[0], before.heard.node[0]
        yield from self._named("node", (now["is_silent"] != 0) & (was["is_silent"] == 0), "fell silent")
        yield from self._named("node", (now["is_silent"] == 0) & (was["is_silent"] != 0), "heard")
        yield from self._named("health", view.drained & ~before.drained, "drained")
        yield from self._named("health", ~view.drained & before.drained, "back from its drain")
        cordoned = view.cordoned & ~view.drained
        yield from self._named("health", cordoned & ~before.cordoned, "cordoned")
        yield from self._named("health", ~view.cordoned & before.cordoned, "uncordoned")
        for i in np.flatnonzero((now["xid"] != was["xid"]) & (now["xid"] != 0)):
            yield "health", f"{self._fleet.nodes[i].name} reports XID {now['xid'][i]}"
        stage, old = view.plan.node[0]["stage"], before.plan.node[0]["stage"]
        for s in range(len(STAGES)):
            yield from self._named("cap", (stage == s) & (old != s), f"told to run {STAGES[s]}" if s < 2 else "parked")

    def _named(self, kind: str, mask: np.ndarray, what: str) -> Iterable[tuple[str, str]]:
        ids = np.flatnonzero(mask)
        if not len(ids):
            return
        names = [self._fleet.nodes[i].name for i in ids[:LISTED]]
        more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
        yield kind, f"{', '.join(names)}{more}: {what}"


def _count(ids: np.ndarray) -> str:
    return "1 node" if len(ids) == 1 else f"{len(ids)} nodes"
