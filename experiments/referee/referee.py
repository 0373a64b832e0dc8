"""The referee: reads a log of events and says which invariant of docs/specification.md is broken, when and by how much.

It shares no code with the arbiter, and knows nothing of how caps are chosen. Sums are Python integers.
"""

from .events import (
    NEVER_MS,
    PARKED,
    PARKS_W,
    PREFILL,
    Announced,
    Applied,
    Command,
    Demanded,
    Event,
    FellBack,
    Heard,
    Id,
    Looked,
    Passed,
    Planned,
    Rebooted,
    Site,
    Violation,
)
from .limits import LimitHistory, WindowMeter
from .nodes import NO_ID, NodeRecord

SAVED_MOVES = 2
"""Stage moves that a service may save up; with its rate, the most moves in any window."""


class Referee:
    """Judge of one log.

    Args:
        site: Where it happened.
        cap_w: Caps that nodes run at the start, acknowledged as command `acked`.
        acked: Id of that command.
        trusts_clock: Whether the controller's clock advanced as time did; promises per second are judged only then.
        trusts_network: Whether no command or report was lost or late; kept with the log.
        is_strict: Whether a reserve is whole again as soon as the nodes that it covered obey a cap that they
            acknowledged, as the design has it; else once what is possible fits with the whole reserve again. And
            whether an agent whose lease expired may still take an answer to an older report than its last.

    Attributes:
        violations: What was broken, in order.
        events: Events judged.
        excused: Moments above a limit in force that an assumption's failure excuses.
    """

    def __init__(
        self,
        site: Site,
        cap_w: list[int],
        acked: Id = (1, 1),
        trusts_clock: bool = True,
        trusts_network: bool = True,
        is_strict: bool = False,
    ):
        self.is_strict = is_strict
        self.site, self.trusts_clock, self.trusts_network = site, trusts_clock, trusts_network
        lag = site.timing.firmware_lag_ms
        self.nodes = [NodeRecord(n, lag, w, acked, is_strict) for n, w in zip(site.nodes, cap_w, strict=True)]
        self.applied: list[Id] = [acked] * len(site.nodes)
        self.below = _descendants(site)
        self.path = [_path(site, n.domain) for n in site.nodes]
        self.bounds_w = [
            d.unmanaged_w + sum(site.nodes[i].non_gpu_max_w for i in self.below[k]) for k, d in enumerate(site.domains)
        ]
        # a controller that ticks sees only at its next tick that a grace is over
        self.late_ms = site.timing.grace_ms + site.timing.tick_ms
        self.limits = [LimitHistory(d.peak_w, site.timing.grace_ms) for d in site.domains]
        self.windows = [WindowMeter(d.mean_w, d.window_ms) if d.mean_w else None for d in site.domains]
        self.absorbed_w = [d.peak_w for d in site.domains]
        self.has_late = [False] * len(site.domains)
        self.is_over_reserve = [False] * len(site.domains)
        self.out: list[set[int]] = [set() for _ in site.domains]  # nodes that the reserve stands for
        self.look: Looked | None = None
        self.stage_since: list[int | None] = [None] * len(site.nodes)
        self.is_shed = [False] * len(site.nodes)
        self.moves: list[list[int]] = [[] for _ in site.services]
        self.violations: list[Violation] = []
        self.events = 0
        self.excused = 0

    def copy(self) -> "Referee":
        """A referee with the same past and its own future."""
        other = Referee.__new__(Referee)
        other.__dict__.update(self.__dict__)
        other.nodes = [n.copy() for n in self.nodes]
        other.limits = [x.copy() for x in self.limits]
        other.windows = [x and x.copy() for x in self.windows]
        other.moves = [m.copy() for m in self.moves]
        other.out = [s.copy() for s in self.out]
        for name in ("applied", "absorbed_w", "has_late", "is_over_reserve", "stage_since", "is_shed", "violations"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def see(self, event: Event) -> None:
        """Judge one event; times never fall."""
        self.events += 1
        t = event.time_ms
        match event:
            case Passed():
                pass
            case Heard():
                self.nodes[event.node].hear(event)
                return  # nothing draws more because somebody heard of it
            case Looked():
                self._note_silence(event)
                return
            case Planned():
                self._judge_plan(event)
                return
            case Applied():
                self._note_lateness(event)
                self.nodes[event.node].apply(event)
                self.applied[event.node] = max(self.applied[event.node], event.id)
            case FellBack():
                node = self.nodes[event.node]
                if event.cap_w > node.runs_w:
                    self._broken("fallback never raises", t, f"node {event.node}", event.cap_w - node.runs_w)
                node.fall_back(event)
            case Rebooted():
                self.nodes[event.node].reboot()
                self.applied[event.node] = NO_ID
                for d in self.path[event.node]:
                    self.out[d].add(event.node)
            case Demanded():
                if event.announced_ms == t and self.limits[event.domain].announced is None:
                    self._forget_lateness(t, event.domain)
                self.limits[event.domain].demand(t, event.limit_w, event.announced_ms)
            case Announced():
                self._forget_lateness(t, event.domain)
                self.limits[event.domain].announce(t, event.limit_w, event.start_ms)
                return
        self._judge_draw(t)

    def _broken(self, invariant: str, time_ms: int, where: str, by: int, unit: str = "W") -> None:
        self.violations.append(Violation(invariant, time_ms, where, by, unit))

    # ── what is drawn ────────────────────────────────────────────────────────────────────────────────────
    def _note_lateness(self, event: Applied) -> None:
        node, p99 = self.nodes[event.node], self.site.timing.actuation_p99_ms
        sent = node.sent_ms.get(event.id)
        # in time itself, it may come after others that were lost
        is_late = node.is_late(event.time_ms, p99, self.applied[event.node])
        if sent is None or event.time_ms - sent > p99 or is_late:
            for d in self.path[event.node]:
                self.has_late[d] = True

    def _forget_lateness(self, t: int, d: int) -> None:
        """A change is told: where no earlier cut is waited for, what was late before is no excuse for it."""
        if self.limits[d].in_force_w(t) == self.limits[d].demanded_w() == self.absorbed_w[d]:
            self.has_late[d] = False

    def _note_silence(self, look: Looked) -> None:
        self.look = look
        for i, is_silent in enumerate(look.is_silent):
            if is_silent:
                for d in self.path[i]:
                    self.out[d].add(i)

    def _judge_draw(self, t: int) -> None:
        draws = [n.draws_w(t) for n in self.nodes]
        possible: list[int] | None = None
        for d, inside in enumerate(self.below):
            drawn = self.bounds_w[d] + sum(draws[i] for i in inside)
            limit = self.limits[d].in_force_w(t)
            window = self.windows[d]
            if window is not None and self.trusts_clock:
                excess = window.advance(t, drawn)
                if excess > 0 and not self.is_over_reserve[d]:
                    self._broken("window", t, f"domain {d}", -(-excess // 1000), "W s")
            unknown = sum(self.nodes[i].is_unknown for i in inside) if self.is_strict else len(self.out[d])
            if unknown > self.site.domains[d].unknown_reserve:
                self.is_over_reserve[d] = True
            elif self.is_over_reserve[d] and drawn <= limit:
                self.is_over_reserve[d] = False
            if limit != self.absorbed_w[d]:
                possible = possible or [n.possible_w(t) for n in self.nodes]
                if limit > self.absorbed_w[d] or self.bounds_w[d] + sum(possible[i] for i in inside) <= limit:
                    self.absorbed_w[d], self.has_late[d] = limit, False
            if drawn <= limit:
                continue
            if self.is_over_reserve[d]:
                self.excused += 1
            elif drawn <= self.absorbed_w[d] and self._is_waiting(t, d):
                self.excused += 1  # a cut is in force, and a command that it needs is lost or late
            else:
                self._broken("possible draw", t, f"domain {d}", drawn - limit)

    def _is_waiting(self, t: int, d: int) -> bool:
        p99 = self.site.timing.actuation_p99_ms
        if any(self.nodes[i].is_late(t, p99, self.applied[i]) for i in self.below[d]):
            self.has_late[d] = True
        return self.has_late[d]

    # ── what is commanded ────────────────────────────────────────────────────────────────────────────────
    def charge_w(self, t: int, d: int) -> int:
        """What a domain may draw by commands and reports, with its reserve of nodes at their maximum."""
        silent = self.look.is_silent if self.look else (False,) * len(self.nodes)
        total, reserve, jumps = self.bounds_w[d], self.site.domains[d].unknown_reserve, []
        for i in self.below[d]:
            cap_max = self.site.nodes[i].cap_max_w
            if silent[i]:
                total += cap_max
                reserve -= 1
                continue
            possible = self.nodes[i].possible_w(t)
            total += possible
            jumps.append(cap_max - possible)
        if reserve > 0:
            total += sum(j for j in sorted(jumps, reverse=True)[:reserve] if j > 0)
        return total

    def told_w(self, d: int) -> int:
        """The limit that a plan made now must respect: told now, or announced to start within the grace."""
        look = self.look
        if look is None:
            return self.site.domains[d].peak_w
        limit = max(0, min(look.limit_w[d], self.site.domains[d].peak_w))
        if look.next_in_ms[d] <= self.site.timing.grace_ms:
            limit = min(limit, max(0, look.next_limit_w[d]))
        return limit

    def _judge_plan(self, plan: Planned) -> None:
        t = plan.time_ms
        domains = range(len(self.below))
        before = [self.charge_w(t, d) for d in domains]
        old = [n.last for n in self.nodes]
        for i, command in enumerate(plan.commands):
            self._judge_command(t, i, command)
            self.nodes[i].send(t, command)
        for d in domains:
            after, told = self.charge_w(t, d), self.told_w(d)
            if self.out[d] and after <= told and not any(self.is_out(i) for i in self.out[d]):
                self.out[d].clear()
            if after > max(before[d], told):
                self._broken("raises wait for releases", t, f"domain {d}", after - max(before[d], told))
        self._judge_fallbacks(t)
        self._judge_drains(t, plan, old)
        if self.trusts_clock:
            self._judge_moves(t, plan, old)

    def is_out(self, i: int) -> bool:
        """Whether a node is silent, or rebooted and has not acknowledged a cap since."""
        return self.nodes[i].is_unknown or bool(self.look and self.look.is_silent[i])

    def _judge_command(self, t: int, i: int, command: Command) -> None:
        node, record = self.site.nodes[i], self.nodes[i]
        where = f"node {i}"
        beyond = max(node.cap_min_w - command.cap_w, command.cap_w - node.cap_max_w)
        if beyond > 0:
            self._broken("cap range", t, where, beyond)
        if command.fallback_w > command.cap_w:
            self._broken("fallback never raises", t, where, command.fallback_w - command.cap_w)
        if command.fallback_w < node.cap_min_w and command.fallback_w != PARKS_W:
            self._broken("cap range", t, where, node.cap_min_w - command.fallback_w)
        last = record.last
        if last is None:
            return
        if command.id < last.id:
            self._broken("one sequence, one command", t, where, 1, "command")
        elif command.id == last.id:
            same = (command.cap_w, command.fallback_w, command.stage) == (last.cap_w, last.fallback_w, last.stage)
            if not same:
                self._broken("one sequence, one command", t, where, 1, "command")
        look = self.look
        is_raised = last.id[0] == command.id[0] and command.cap_w > last.cap_w
        if look and is_raised and (look.is_silent[i] or look.age_ms[i] > self.site.timing.stale_ms):
            self._broken("no raise without telemetry", t, where, command.cap_w - last.cap_w)

    def _judge_fallbacks(self, t: int) -> None:
        cut, of = self.site.deepest_cut
        look = self.look
        silent = look.is_silent if look else (False,) * len(self.nodes)
        for d, inside in enumerate(self.below):
            bounds = self.bounds_w[d]
            floor = bounds + sum(self.site.nodes[i].cap_min_w for i in inside)
            lowest = self.told_w(d)
            if look and look.next_in_ms[d] < NEVER_MS:
                lowest = min(lowest, max(0, look.next_limit_w[d]))
            room = lowest * (of - cut) // of
            falls = least = known = bounds
            for i in inside:
                node = self.nodes[i]
                if node.last is None:
                    continue
                told = node.falls_to_w(node.last)
                falls += told
                is_lost = silent[i] or node.is_unknown
                is_late = node.waits_ms(t) > self.late_ms
                known += node.fallback_w() if is_late and not is_lost else told
                least += max(told, node.fallback_w()) if is_late or is_lost else self.site.nodes[i].parked_max_w
            if falls > max(room, floor):
                self._broken("fallbacks fit the deepest cut", t, f"domain {d}", falls - max(room, floor))
            # who has had the time to acknowledge and did not counts at the old one; the others park if they must
            if known > max(lowest, least):
                self._broken("fallbacks fit the lowest limit", t, f"domain {d}", known - max(lowest, least))

    # ── what is served ───────────────────────────────────────────────────────────────────────────────────
    def _judge_drains(self, t: int, plan: Planned, old: list[Command | None]) -> None:
        num, den = self.site.max_drain
        size: dict[int, int] = {}
        drained: dict[int, int] = {}
        for node, command in zip(self.site.nodes, plan.commands, strict=True):
            size[node.failure_domain] = size.get(node.failure_domain, 0) + 1
            drained[node.failure_domain] = drained.get(node.failure_domain, 0) + command.is_drained
        for f, count in drained.items():
            allowed = max(1, size[f] * num // den)
            if count > allowed:
                self._broken("drains", t, f"failure domain {f}", count - allowed, "nodes")
        look = self.look
        if look is None:
            return
        stale = self.site.timing.stale_ms
        serves = [look.is_up[i] and not look.is_silent[i] and look.age_ms[i] <= stale for i in range(len(self.nodes))]
        for i, (command, last) in enumerate(zip(plan.commands, old, strict=True)):
            is_new = command.is_drained and last is not None and not last.is_drained
            # a node that does not answer serves nothing that its drain could cost
            if not is_new or not serves[i] or last is None or last.stage == PARKED or self.nodes[i].acked < last.id:
                continue
            service = self.site.nodes[i].service
            left = sum(
                serves[k] and not c.is_drained and c.stage == last.stage and self.site.nodes[k].service == service
                for k, c in enumerate(plan.commands)
            )
            record = self.site.services[service]
            least = record.min_prefill_nodes if last.stage == PREFILL else record.min_decode_nodes
            if left < least and not plan.is_shedding and command.stage == last.stage:
                self._broken("minimum capacity", t, f"service {service}", least - left, "nodes")

    def _judge_moves(self, t: int, plan: Planned, old: list[Command | None]) -> None:
        timing = self.site.timing
        count: dict[int, int] = {}
        for i, (command, last) in enumerate(zip(plan.commands, old, strict=True)):
            if command.stage == (self.site.nodes[i].stage if last is None else last.stage):
                continue
            if (
                last is not None and command.id[0] != last.id[0]
            ):  # a restarted service starts from the site file's stages
                self.stage_since[i] = None
                continue
            is_shed = (plan.is_shedding and command.stage == PARKED) or self.is_shed[i]
            since = self.stage_since[i]
            is_forced = plan.is_shedding and command.stage == PARKED
            if not is_forced and since is not None and t - since < timing.dwell_ms:
                self._broken("dwell", t, f"node {i}", timing.dwell_ms - (t - since), "ms")
            self.stage_since[i] = t
            self.is_shed[i] = plan.is_shedding and command.stage == PARKED
            if not is_shed:
                service = self.site.nodes[i].service
                count[service] = count.get(service, 0) + 1
                self.moves[service].append(t)
        for s, n in count.items():
            if n > 1:
                self._broken("one move at a time", t, f"service {s}", n - 1, "moves")
            for k, start in enumerate(reversed(self.moves[s])):
                allowed = SAVED_MOVES + (t - start) * timing.moves_per_min / 60_000
                if k + 1 > allowed + 1e-6:
                    self._broken("move rate", t, f"service {s}", k + 1 - int(allowed), "moves")
                    break


def _descendants(site: Site) -> list[list[int]]:
    below: list[list[int]] = [[] for _ in site.domains]
    for i, node in enumerate(site.nodes):
        for d in _path(site, node.domain):
            below[d].append(i)
    return below


def _path(site: Site, d: int) -> list[int]:
    out = []
    while d >= 0:
        out.append(d)
        d = site.domains[d].parent
    return out
