"""The tick: telemetry in, bids, settlement, leases out, everything on record.

One dedicated thread ticks; HTTP handlers only leave telemetry and read the last view. A lease is handed out
only while the last tick is younger than the grace of an un-noticed cut: an engine that hangs lets its agents
fall back.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from ..fleet.arbiter import ArbiterState, initial_state, settle
from ..fleet.arbiter.memory import with_memory
from ..fleet.arbiter.overrides import with_orders, without_excluded
from ..fleet.arbiter.prices import priced
from ..fleet.observe import observe
from ..fleet.plan import Plan
from ..fleet.snapshot import Snapshot
from ..fleet.tables import NEVER_S
from ..fleet.topology import Fleet
from ..policies.base import Policy
from .assurance import AssuredPolicy, Decision
from .audit import Note
from .budget import BudgetEvent, fleet_limits
from .budget_book import BudgetBook
from .clock import Clock, ServiceClock
from .counters import Counters
from .health import HealthVerdict
from .ledger import Ledger
from .notes import NoteTaker
from .orders import OrderBook, with_drains
from .records import policy_record, site_record
from .shadow import pack_row
from .store import LeaseRow, Override, Store
from .telemetry import NodeReport, Telemetry
from .unapplied import obedient, unmetered, unmoved
from .view import View, domain_sums, measured_w, node_possible_w

log = logging.getLogger(__name__)

NOTES_KEPT = 400

RESYNC_S = 6.0
"""Longest that a service which starts waits for its nodes: an agent without a lease tries every 5 s."""
RESYNC_LOOK_S = 0.05


class Mode(StrEnum):
    """What the service may do: command; show; or only log."""

    ENFORCE = "enforce"
    ADVISE = "advise"
    SHADOW = "shadow"


class NoPlan(Exception):
    """There is no fresh plan to lease from: HTTP 503, agents keep what they hold and fall back in time."""


@dataclass(frozen=True)
class Reply:
    """What a node is told in exchange for its telemetry.

    `lease` is None in advise and shadow mode, for an excluded node, and from a service that has just started and has
    not heard its nodes.
    """

    lease: LeaseRow | None
    stage: int | None
    clock_frac: float
    is_cordoned: bool
    is_drained: bool
    server_time_s: float


def decide(
    fleet: Fleet, policy: Policy, snapshot: Snapshot, state: ArbiterState, memory: Any = None
) -> tuple[ArbiterState, Plan, Any]:
    """One whole decision, observe → bid → settle: the same here as in the simulator."""
    memory = policy.start(snapshot.batch) if memory is None else memory
    bids, memory = policy.bid(snapshot, observe(fleet, state, snapshot), memory)
    state, plan = settle(fleet, state, snapshot, bids)
    return state, plan, memory


class Engine:
    """The live loop over one fleet.

    Constructing it takes the next epoch in the store, which fences every earlier service on that database.

    Args:
        fleet: The site.
        policy: Source of bids.
        store: Where epochs, leases and the audit live.
        mode: enforce, advise or shadow.
        clock: Source of time.
        fallback: Policy that stands in while `policy` fails; None for neutral bids.
        policy_deadline_s: Longest that a decision may take; None for half a tick.
        retention_s: How long ticks and shadow rows are kept.
    """

    def __init__(
        self,
        fleet: Fleet,
        policy: Policy,
        store: Store,
        mode: Mode | str = Mode.ENFORCE,
        clock: Clock | None = None,
        *,
        fallback: Policy | None = None,
        policy_deadline_s: float | None = None,
        retention_s: float = 30 * 86400.0,
    ) -> None:
        self.fleet, self.policy, self.store = fleet, policy, store
        self.mode = Mode(mode)
        self.clock = clock or ServiceClock()
        self.counters = Counters()
        self.assured = AssuredPolicy(fleet, policy, fallback, policy_deadline_s or fleet.timing.tick_s / 2)
        self.started_s = self.clock.now_s()
        # what was out before this start: shown until each node has spoken
        self.restored = store.leases()
        record = {**site_record(fleet), "policy": policy_record(policy)}
        self.epoch = store.begin_epoch(self.started_s, self.mode, policy.name, fleet.hash, record)
        self.telemetry = Telemetry(fleet, self.epoch)
        # the incumbent's meters said nothing of this service's plans in advise and shadow mode
        memory = store.memory() if self.mode is Mode.ENFORCE else {}
        self._state = with_memory(fleet, initial_state(fleet, 1, self.started_s, self.epoch), memory)
        self._decision: Decision | None = None
        self._is_breaker_reset_due = False
        self._pending: deque[Note] = deque()
        self._book = OrderBook(fleet, store, self.say)
        self._budget = BudgetBook(store, self.say, self.started_s)
        self.notes: deque[Note] = deque(maxlen=NOTES_KEPT)
        self._note_taker = NoteTaker(fleet)
        self._ledger = Ledger(fleet, store, self.epoch, retention_s, self.started_s, memory)
        self._view: View | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_starting = False
        self.say("service", f"started: epoch {self.epoch}, {self.mode} mode, policy {policy.name}")

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────────
    def start(self) -> None:
        """Tick on a thread of its own: once the nodes were heard or `RESYNC_S` is over, then every `tick_s`."""
        if self._thread is None:
            self._is_starting = self.mode is Mode.ENFORCE
            self._thread = threading.Thread(target=self._run, name="flyball-tick", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the ticking after the tick in progress."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)
            self._thread = None

    def _run(self) -> None:
        if self._is_starting:
            self._resync()
        due_s = time.monotonic()
        while not self._stop.is_set():
            try:
                self.tick()
            except Exception:
                # no fresh view means no fresh leases: agents fall back within their ttl
                self.counters.failed_ticks += 1
                log.exception("tick failed; leases are withheld until one succeeds")
            self._is_starting = False
            due_s += self.fleet.timing.tick_s
            late_s = time.monotonic() - due_s
            if late_s > 0:
                self.counters.late_ticks += 1
                due_s += math.floor(late_s / self.fleet.timing.tick_s) * self.fleet.timing.tick_s
            self._stop.wait(max(due_s - time.monotonic(), 0.0))

    def _resync(self) -> None:
        """At a start, hear the nodes before anything is planned for them; meanwhile they keep what they hold.

        Nodes that have not spoken count at their maximum: those heard first would be parked to make room for
        the others, in the second before these are heard too.
        """
        until_s = time.monotonic() + RESYNC_S
        while not (self._stop.is_set() or time.monotonic() > until_s or self.telemetry.has_heard_all()):
            self._stop.wait(RESYNC_LOOK_S)

    def tick(self) -> View:
        """Advance the loop by one tick and publish its view."""
        began_s = time.perf_counter()
        now_s = self.clock.now_s()
        timing = self.fleet.timing
        limits = fleet_limits(self.fleet, self._budget.standing, now_s, timing.lease_ttl_s + timing.grace_s)
        heard = self.telemetry.snapshot(now_s, limits)
        self._book.expire(now_s)
        orders = self._book.node_orders()
        self._state = with_orders(self._state, orders)
        snapshot = heard if self.mode is Mode.ENFORCE else obedient(heard, self._state)
        snapshot = without_excluded(snapshot, orders)
        decides = self.counters.ticks % max(round(timing.control_s / timing.tick_s), 1) == 0
        if decides or self._decision is None:
            self._decision = self.assured.decide(snapshot, observe(self.fleet, self._state, snapshot))
            if self._decision.changed:
                self.say("policy", self._decision.changed)
        if self._is_breaker_reset_due:
            self._is_breaker_reset_due = False
            self._state = self._state.with_breaker_reset()
        ordered = self._book.out_of_use
        bids = with_drains(self._decision.bids, ordered)
        metered = snapshot if self.mode is Mode.ENFORCE else unmetered(snapshot)
        state, plan = settle(self.fleet, self._state, metered, bids)
        plan = priced(self.fleet, state, plan, bids)
        if state.fleet["is_tripped"][0] and not self._state.fleet["is_tripped"][0]:
            self.say("health", "the cordon breaker tripped: nothing more is drained until an operator resets it")
        self._state = state if self.mode is Mode.ENFORCE else unmoved(state, heard)
        view = self._make_view(now_s, heard, plan, limits, ordered)
        self.counters.count(view, self._view, timing.tick_s)
        notes = [self._pending.popleft() for _ in range(len(self._pending))] + self._note_taker.notes(view)
        self.notes.extend(notes)
        self._commit(view, notes, pack_row(heard, plan, not view.is_trusted) if self._logs_shadow(decides) else None)
        self._view = view
        self.counters.ticks += 1
        self.counters.last_tick_s = time.perf_counter() - began_s
        return view

    def _logs_shadow(self, decides: bool) -> bool:
        return decides and self.mode is not Mode.ENFORCE

    def _make_view(self, now_s: float, heard: Snapshot, plan: Plan, limits: Iterable, ordered: tuple[str, ...]) -> View:
        decision = self._decision
        assert decision is not None
        possible_w = node_possible_w(self.fleet, self._state)
        drawn_w, is_metered = measured_w(self.fleet, heard)
        return View(
            tick=self.counters.ticks,
            time_s=now_s,
            epoch=self.epoch,
            heard=heard,
            state=self._state,
            plan=plan,
            limits=tuple(limits),
            ordered=ordered,
            source=decision.source,
            is_trusted=self.assured.is_trusted,
            node_possible_w=possible_w,
            domain_possible_w=domain_sums(self.fleet, possible_w) + self.fleet.domain_static["unmanaged_w"],
            domain_measured_w=drawn_w,
            is_metered=is_metered,
        )

    def _commit(self, view: View, notes: list[Note], shadow: bytes | None) -> None:
        """Group commit of the tick, before its leases can be handed out."""
        began_s = time.perf_counter()
        self._ledger.commit(view, self.telemetry, notes, shadow, self.mode is Mode.ENFORCE)
        self.counters.failed_commits = self._ledger.failed_commits
        self.counters.last_commit_s = time.perf_counter() - began_s

    # ── what agents get ─────────────────────────────────────────────────────────────────────────────────
    @property
    def view(self) -> View | None:
        """The last published picture; None before the first tick."""
        return self._view

    def fresh_view(self) -> View:
        """The last view, if leases may be handed out from it.

        Raises:
            NoPlan: if there is none, it is too old, or a newer service has taken over.
        """
        view = self._view
        if self._ledger.fence:
            raise NoPlan(self._ledger.fence)
        if view is None:
            raise NoPlan("the service has not made its first plan yet; retry in a second")
        age_s = self.clock.now_s() - view.time_s
        if age_s > max(self.fleet.timing.grace_s, 2 * self.fleet.timing.tick_s):
            raise NoPlan(f"the last plan is {age_s:.1f} s old; leases are withheld until the service ticks again")
        return view

    def take_node(self, i: int, report: NodeReport) -> Reply:
        """Take a node's telemetry and answer with its lease.

        Raises:
            StaleSender: if the sender was superseded.
            NoPlan: if there is no plan to lease from; the telemetry was kept.
        """
        now_s = self.clock.now_s()
        self.telemetry.report_node(i, report, now_s)
        self.counters.telemetry += 1
        if self._is_starting:
            return Reply(None, report.stage, 1.0, False, False, now_s)
        view = self.fresh_view()
        if self.mode is not Mode.ENFORCE or self._book.is_excluded(self.fleet.nodes[i].name):
            return Reply(None, report.stage, 1.0, False, False, now_s)
        row = view.plan.node[0][i]
        self.counters.leases_issued += 1
        lease = self._ledger.leases[self.fleet.nodes[i].name]
        # a lease dies a ttl after its plan, not after it was handed out: else a service that hangs, and hands out an
        # old plan until the grace is over, would keep caps up for longer than one that dies
        left_s = lease.ttl_s - (now_s - view.time_s)
        if left_s <= 0.0:
            raise NoPlan("the last plan's leases have run out; the next tick renews them")
        return Reply(
            replace(lease, ttl_s=left_s),
            int(row["stage"]),
            float(row["clock_frac"]),
            bool(view.cordoned[i]),
            bool(row["is_drained"]),
            now_s,
        )

    def decide(self, snapshot: Snapshot, state: ArbiterState | None = None) -> tuple[ArbiterState, Plan]:
        """One decision for a snapshot from outside, unaudited; a missing state starts afresh.

        A policy with memory decides as at its first decision.
        """
        if state is None:
            state = initial_state(self.fleet, snapshot.batch, float(snapshot.time_s[0]), 0)
        state, plan, _ = decide(self.fleet, self.policy, snapshot, state)
        return state, plan

    # ── what operators do ───────────────────────────────────────────────────────────────────────────────
    @property
    def events(self) -> tuple[BudgetEvent, ...]:
        """Budget events that stand."""
        return self._budget.standing

    @property
    def orders(self) -> dict[str, Override]:
        """Standing orders by node."""
        return self._book.standing

    def announce(self, event: BudgetEvent, supersedes: Iterable[str] = ()) -> None:
        """Durably take a budget event; it applies from the next tick on.

        Raises:
            BadInput: if one to supersede does not stand.
        """
        self._budget.announce(event, supersedes)

    def withdraw(self, event_id: str, author: str) -> None:
        """Take a standing budget event back.

        Raises:
            BadInput: if there is none of that id.
        """
        self._budget.withdraw(event_id, author)

    def order(
        self, node: str, kind: str, author: str, reason: str, cap_w: int = 0, until_s: float = NEVER_S
    ) -> Override:
        """Durably take an order about a node, one of `orders.KINDS`; the arbiter bounds how many drain at once.

        Raises:
            BadInput: if a limit could not carry it; the line names the domain.
        """
        self._book.place(Override(node, kind, author, reason, self.clock.now_s(), cap_w, until_s), self._state)
        return self._book.standing[node]

    def release(self, node: str, author: str) -> None:
        """End a node's order and forget the errors that stood against it."""
        self._book.release(node, author, self.clock.now_s())
        self.telemetry.forgive(self.fleet.node_index[node])

    def reset_breaker(self, author: str) -> None:
        """Let drains go on after the cordon breaker tripped; it applies from the next tick on."""
        self._is_breaker_reset_due = True
        self.say("health", f"the cordon breaker was reset by {author}")

    def take_health_event(self, node: str, verdict: HealthVerdict, event: dict[str, Any], author: str) -> None:
        """Durably keep a health event and do what it asks for."""
        self.store.save_health_event(self.clock.now_s(), node, verdict.action, event)
        if verdict.action in ("cordon", "drain"):
            standing = self._book.standing.get(node)
            if standing is None or (standing.kind == "cordon" and verdict.action == "drain"):
                self.order(node, verdict.action, author, verdict.why)
        elif verdict.action == "restore":
            self.release(node, author)

    def say(self, kind: str, text: str) -> None:
        """Put a line on the stream of notes and, with the next tick, into the audit."""
        self._pending.append(Note(self.clock.now_s(), kind, text))

    def problems(self) -> list[str]:
        """Why the service is not ready; empty when it is."""
        out = []
        try:
            self.fresh_view()
        except NoPlan as error:
            out.append(str(error))
        if self._ledger.is_behind:
            out.append("the store fails: leases are issued but not on record; free disk space or mend the database")
        return out
