"""An emulated site around the arbiter: leases, nodes that obey late, a network that loses, delays, reorders, repeats.

Every step writes the referee's log. Nodes hold the agents' own lease rules (`actuators.lease`); what may go wrong is
chosen by the caller, one message at a time.
"""

from collections.abc import Callable
from typing import Any

from ...actuators.lease import Lease, LeaseState, Verdict
from ...fleet.arbiter import ArbiterState, initial_state
from ...fleet.arbiter.settle import settle
from ...fleet.bids import Bids
from ...fleet.plan import Shed
from ...fleet.snapshot import Snapshot
from ...fleet.tables import NEVER_S
from ...fleet.topology import Fleet
from .events import (
    NEVER_MS,
    PARKED,
    Announced,
    Applied,
    Command,
    Demanded,
    FellBack,
    Heard,
    Looked,
    Passed,
    Planned,
    Rebooted,
    Site,
)
from .nodes import NO_ID
from .referee import Referee
from .site import site_of, to_ms

LOAD_MS = 3000
"""Time to load another stage's model."""

Settle = Callable[[Fleet, ArbiterState, Snapshot, Bids], tuple[ArbiterState, Any]]


class EmulatedNode:
    """A node that obeys the leases that reach it."""

    __slots__ = ("boot", "cap_w", "fell", "is_alive", "lease", "loading_until_ms", "reported_ms", "stage")

    def __init__(self, cap_w: int, stage: int):
        self.cap_w, self.stage = cap_w, stage
        self.lease = LeaseState(1, 1, Lease(1, 1, 5.0, cap_w, cap_w), 0.0)
        self.boot, self.loading_until_ms, self.reported_ms = 0, -1, -1
        self.is_alive, self.fell = True, False

    def copy(self) -> "EmulatedNode":
        other = EmulatedNode.__new__(EmulatedNode)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        return other


class World:
    """One site, its arbiter and its referee.

    Args:
        fleet: The site.
        settle_with: The arbiter; another one to see whether the referee notices.
        trusts_clock: Passed to the referee.
        trusts_network: Passed to the referee.
        is_strict: Passed to the referee.
        site: What the referee is told of the fleet; the truth by default.
    """

    def __init__(
        self,
        fleet: Fleet,
        settle_with: Settle = settle,
        trusts_clock: bool = True,
        trusts_network: bool = True,
        is_strict: bool = False,
        site: Site | None = None,
    ):
        self.fleet, self.settle_with = fleet, settle_with
        self.site = site or site_of(fleet)
        self.state = initial_state(fleet, 1, assume_acked=True)
        caps = [int(w) for w in self.state.node["cap_cmd_w"][0]]
        self.referee = Referee(self.site, caps, (1, 1), trusts_clock, trusts_network, is_strict)
        self.now_ms, self.skew_ms, self.epoch = 0, 0, 1
        self.nodes = [EmulatedNode(w, n.stage) for w, n in zip(caps, self.site.nodes, strict=True)]
        for node, row in zip(self.nodes, self.state.node[0], strict=True):
            node.lease = LeaseState(
                1, 1, Lease(1, 1, fleet.timing.lease_ttl_s, node.cap_w, int(row["fallback_w"])), 0.0
            )
        self.commands: list[list[tuple]] = [[] for _ in self.nodes]  # (lease, stage, sent at)
        self.reports: list[list[tuple]] = [[] for _ in self.nodes]  # (heard, moving_s, xid)
        self.table = Snapshot.unknown(fleet, 1, 0.0)
        self.heard_ms = [-NEVER_MS] * len(self.nodes)
        self.sampled_ms = [-NEVER_MS] * len(self.nodes)
        self.heard_boot = [0] * len(self.nodes)
        self.has_rebooted = [False] * len(self.nodes)
        self.limit_w = [d.peak_w for d in self.site.domains]
        self.next: list[tuple | None] = [None] * len(self.site.domains)  # (limit, start, announced at)
        self.plans = 0
        self.plan: Any = None
        for i in range(len(self.nodes)):
            self.report(i)
            self.hear(i)

    def copy(self) -> "World":
        """The same world with its own future."""
        other = World.__new__(World)
        other.__dict__.update(self.__dict__)
        other.referee = self.referee.copy()
        other.nodes = [n.copy() for n in self.nodes]
        other.commands = [q.copy() for q in self.commands]
        other.reports = [q.copy() for q in self.reports]
        other.table = self.table.copy()
        for name in ("heard_ms", "sampled_ms", "heard_boot", "has_rebooted", "limit_w", "next"):
            setattr(other, name, getattr(self, name).copy())
        return other

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────
    def pass_time(self, ms: int) -> None:
        """Let time go by: leases expire, announced changes start, lags end, each at its moment."""
        until = self.now_ms + ms
        while True:
            moments = [start for n in self.next if n is not None for start in [n[1]] if start <= until]
            moments += [
                t for k in self.nodes if not k.fell and (t := to_ms(k.lease.deadline_s)) <= until and k.is_alive
            ]
            if not moments:
                break
            self.now_ms = max(self.now_ms, min(moments))
            for d, upcoming in enumerate(self.next):
                if upcoming is not None and upcoming[1] <= self.now_ms:
                    self.demand(d, upcoming[0], upcoming[2])
            for i, node in enumerate(self.nodes):
                if node.is_alive and not node.fell and to_ms(node.lease.deadline_s) <= self.now_ms:
                    self._fall_back(i)
        self.now_ms = until
        self.referee.see(Passed(self.now_ms))

    def _fall_back(self, i: int) -> None:
        node = self.nodes[i]
        node.fell = True
        if node.lease.lease is not None:
            lease = node.lease.lease
            if lease.parks:
                node.stage, node.loading_until_ms = PARKED, -1
            # a product has no cap below its smallest: a parked node keeps that
            node.cap_w = min(node.cap_w, max(lease.fallback_w, self.site.nodes[i].cap_min_w))
            self.referee.see(FellBack(self.now_ms, i, node.cap_w, lease.parks))

    # ── limits ───────────────────────────────────────────────────────────────────────────────────────────
    def demand(self, d: int, limit_w: int, announced_ms: int | None = None) -> None:
        """A limit is another one from now on, announced before or not."""
        self.limit_w[d] = limit_w
        upcoming = self.next[d]
        if upcoming is not None and (announced_ms is not None or upcoming[1] <= self.now_ms):
            self.next[d] = None
        self.referee.see(Demanded(self.now_ms, d, limit_w, self.now_ms if announced_ms is None else announced_ms))

    def announce(self, d: int, limit_w: int, in_ms: int) -> None:
        """A limit will be another one; replaces what was announced for the domain."""
        self.next[d] = (limit_w, self.now_ms + in_ms, self.now_ms)
        self.referee.see(Announced(self.now_ms, d, limit_w, self.now_ms + in_ms))

    # ── the controller ───────────────────────────────────────────────────────────────────────────────────
    def tick(self, bids: Bids) -> None:
        """Look, settle, and send a lease to every node."""
        snapshot = self._look()
        self.state, plan = self.settle_with(self.fleet, self.state, snapshot, bids)
        self.plan = plan
        self.plans += 1
        rows = plan.node[0]
        columns = [rows[k].tolist() for k in ("seq", "cap_w", "fallback_w", "stage", "is_drained")]
        commands = tuple(
            Command((self.epoch, seq), cap, fallback, stage, drained != 0)
            for seq, cap, fallback, stage, drained in zip(*columns, strict=True)
        )
        self.referee.see(Planned(self.now_ms, commands, int(plan.fleet["shed_level"][0]) >= Shed.PARK))
        ttl_s = self.fleet.timing.lease_ttl_s
        for queue, c in zip(self.commands, commands, strict=True):
            queue.append((Lease(self.epoch, c.id[1], ttl_s, c.cap_w, c.fallback_w), c.stage, self.now_ms))

    def _look(self) -> Snapshot:
        sn, timing = self.table.copy(), self.site.timing
        ages = [min(self.now_ms - t, NEVER_MS) for t in self.heard_ms]
        silent = [a >= timing.lease_ttl_ms or r for a, r in zip(ages, self.has_rebooted, strict=True)]
        self.has_rebooted = [False] * len(self.nodes)
        sn.time_s[0] = (self.now_ms + self.skew_ms) / 1000
        sn.node["age_s"][0] = [NEVER_S if a >= NEVER_MS else a / 1000 for a in ages]
        sn.node["is_silent"][0] = silent
        sn.node["is_up"][0] = [not s for s in silent]
        limits, next_limits, next_in = list(self.limit_w), list(self.limit_w), [NEVER_MS] * len(self.limit_w)
        for d, upcoming in enumerate(self.next):
            if upcoming is not None:
                next_limits[d], next_in[d] = upcoming[0], upcoming[1] - self.now_ms
        sn.domain["limit_w"][0], sn.domain["next_limit_w"][0] = limits, next_limits
        sn.domain["next_in_s"][0] = [NEVER_S if t >= NEVER_MS else t / 1000 for t in next_in]
        look = Looked(
            self.now_ms, tuple(silent), tuple(ages), tuple(not s for s in silent), tuple(limits), tuple(next_limits),
            tuple(next_in),
        )  # fmt: skip
        self.referee.see(look)
        return sn

    def restart(self) -> None:
        """The service dies and starts again: a new epoch, nothing remembered, nothing heard."""
        self.epoch += 1
        self.state = initial_state(self.fleet, 1, (self.now_ms + self.skew_ms) / 1000, self.epoch)
        self.table = Snapshot.unknown(self.fleet, 1, 0.0)
        self.table.node["ack_seq"] = -1
        self.heard_ms = [-NEVER_MS] * len(self.nodes)
        self.sampled_ms = [-NEVER_MS] * len(self.nodes)
        self.reports = [[] for _ in self.nodes]

    # ── the network ──────────────────────────────────────────────────────────────────────────────────────
    def deliver(self, i: int, k: int = 0, keep: bool = False) -> None:
        """The k-th command on its way to node i arrives; `keep` leaves a copy of it on its way."""
        queue = self.commands[i]
        lease, stage, sent_ms = queue[k] if keep else queue.pop(k)
        node = self.nodes[i]
        if not node.is_alive:
            return
        if node.fell and sent_ms < node.reported_ms and not self.referee.is_strict:
            return  # an answer to an older report than the last: agents have one exchange open at a time
        node.lease, verdict = node.lease.accept(lease, sent_ms / 1000, self.now_ms / 1000)
        if verdict is not Verdict.ACCEPTED:
            return
        node.fell = False
        if stage != node.stage:
            node.loading_until_ms = self.now_ms + LOAD_MS if stage != PARKED else -1
        is_same = node.cap_w == lease.cap_w and node.stage == stage
        node.cap_w, node.stage = lease.cap_w, stage
        command = (lease.epoch, lease.seq)
        if not is_same or self.referee.applied[i] != command:
            self.referee.see(Applied(self.now_ms, i, command, lease.cap_w, stage))

    def lose(self, i: int, k: int = 0) -> None:
        """The k-th command on its way to node i is lost."""
        self.commands[i].pop(k)

    def report(self, i: int, xid: int = 0) -> None:
        """Node i reads its cap back and sends its telemetry."""
        node = self.nodes[i]
        if not node.is_alive:
            return
        ident = (node.lease.epoch, node.lease.seq) if node.lease.lease is not None else NO_ID
        node.reported_ms = self.now_ms
        moving_ms = max(0, node.loading_until_ms - self.now_ms)
        heard = Heard(self.now_ms, i, self.now_ms, node.boot, ident, node.cap_w, node.stage, moving_ms > 0)
        self.reports[i].append((heard, moving_ms / 1000, xid))

    def hear(self, i: int, k: int = 0, keep: bool = False, demand_w: float | None = None, util: float = 0.5) -> None:
        """The k-th report on its way from node i arrives; one older than the last is dropped, as the service does."""
        queue = self.reports[i]
        heard, moving_s, xid = queue[k] if keep else queue.pop(k)
        if heard.boot < self.heard_boot[i] or heard.sampled_ms <= self.sampled_ms[i]:
            return
        if heard.boot > self.heard_boot[i]:
            self.has_rebooted[i] = True
        self.heard_boot[i], self.sampled_ms[i], self.heard_ms[i] = heard.boot, heard.sampled_ms, self.now_ms
        row = self.table.node[0, i]
        row["cap_w"], row["stage"], row["moving_s"], row["xid"] = heard.cap_w, heard.stage, moving_s, xid
        row["ack_seq"] = heard.id[1] if heard.id[0] == self.epoch else -1
        row["demand_w"] = float(self.site.nodes[i].cap_max_w) if demand_w is None else demand_w
        row["util_frac"] = util
        self.referee.see(
            Heard(self.now_ms, i, heard.sampled_ms, heard.boot, heard.id, heard.cap_w, heard.stage, heard.is_moving)
        )

    def reboot(self, i: int) -> None:
        """Node i restarts: its cap is its product's maximum, its lease is gone, and so is what was on its way to it."""
        node = self.nodes[i]
        node.cap_w, node.stage = self.site.nodes[i].cap_max_w, self.site.nodes[i].stage
        node.lease, node.boot, node.fell = LeaseState(), node.boot + 1, True
        self.commands[i].clear()
        self.reports[i].clear()
        self.referee.see(Rebooted(self.now_ms, i))
