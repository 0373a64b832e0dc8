"""The latest word of every node, meter and service, and the Snapshot made of it."""

import threading
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from ..fleet.snapshot import Snapshot
from ..fleet.tables import NEVER_S, UNKNOWN_W
from ..fleet.topology import Fleet
from .budget import DomainLimit
from .health import worst_fatal_xid

NO_ACK = -1
"""Acknowledgements of another epoch count for nothing: the node has not resynchronised."""

BOOTS_KEPT = 8


class StaleSender(Exception):
    """A message from a boot or an epoch that was superseded: HTTP 409."""


@dataclass(frozen=True)
class NodeReport:
    """One telemetry message of a node agent; NaN and UNKNOWN_W mean missing."""

    boot_id: str
    sent_at: float
    ack_epoch: int = NO_ACK
    ack_seq: int = NO_ACK
    cap_w: int = UNKNOWN_W
    fallback_w: int = UNKNOWN_W
    power_w: float = float("nan")
    demand_w: float = float("nan")
    util_frac: float = float("nan")
    clock_frac: float = float("nan")
    temp_c: float = float("nan")
    stage: int | None = None
    moving_s: float = 0.0
    xid: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    is_dry_run: bool = False


@dataclass
class _NodeSlot:
    """What is remembered of one node beside its row."""

    boot_id: str = ""
    sent_at: float = -np.inf
    old_boots: deque = field(default_factory=lambda: deque(maxlen=BOOTS_KEPT))
    gpus: tuple[str, ...] = ()
    xids: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    forgiven: frozenset[int] = frozenset()  # codes that an operator has seen and cleared
    has_rebooted: bool = False  # since the last snapshot
    is_dry_run: bool = False
    latched_xid: int = 0


class Telemetry:
    """Latest telemetry under one short lock; writers are HTTP handlers, the reader is the tick.

    Args:
        fleet: The site.
        epoch: Epoch of this service; acknowledgements of other epochs are not passed on.
    """

    def __init__(self, fleet: Fleet, epoch: int) -> None:
        self._fleet, self._epoch = fleet, epoch
        self._lock = threading.Lock()
        blank = Snapshot.unknown(fleet)
        self._node = blank.node[0].copy()
        self._node["ack_seq"] = NO_ACK
        self._domain = blank.domain[0].copy()
        self._service = blank.service[0].copy()
        self._node_at_s = np.full(len(fleet.nodes), -NEVER_S)
        self._domain_at_s = np.full(len(fleet.domains), -NEVER_S)
        self._service_at_s = np.full(len(fleet.services), -NEVER_S)
        self._domain_sent_at = np.full(len(fleet.domains), -np.inf)
        self._service_sent_at = np.full(len(fleet.services), -np.inf)
        self._slots = [_NodeSlot() for _ in fleet.nodes]
        self._fallback_w = np.full(len(fleet.nodes), UNKNOWN_W, np.int64)
        self.dropped = 0

    def report_node(self, i: int, report: NodeReport, now_s: float) -> bool:
        """Take one report; False if it was a duplicate or overtaken by a newer one.

        Raises:
            StaleSender: if the sender has been superseded, or acknowledges an epoch that is newer than ours.
        """
        if report.ack_epoch > self._epoch:
            raise StaleSender(
                f"the agent holds a lease of epoch {report.ack_epoch}, this service is at {self._epoch}: "
                "a newer service is in charge; stop this one or restore its newest database"
            )
        with self._lock:
            slot = self._slots[i]
            if report.boot_id in slot.old_boots:
                raise StaleSender(f"boot {report.boot_id} of this node was superseded by boot {slot.boot_id}")
            if report.boot_id != slot.boot_id:
                self._start_boot(i, report.boot_id)
            elif report.sent_at <= slot.sent_at:
                self.dropped += 1
                return False
            slot.sent_at = report.sent_at
            slot.gpus = report.gpus or slot.gpus
            slot.problems, slot.is_dry_run = report.problems, report.is_dry_run
            self._latch_xids(slot, report.xid)
            row = self._node[i]
            for name in ("power_w", "demand_w", "util_frac", "clock_frac", "temp_c", "cap_w", "moving_s"):
                row[name] = getattr(report, name)
            if report.stage is not None:
                row["stage"] = report.stage
            row["ack_seq"] = report.ack_seq if report.ack_epoch == self._epoch else NO_ACK
            row["xid"] = slot.latched_xid
            self._fallback_w[i] = report.fallback_w
            self._node_at_s[i] = now_s
            return True

    def _start_boot(self, i: int, boot_id: str) -> None:
        slot = self._slots[i]
        if slot.boot_id:
            slot.old_boots.append(slot.boot_id)
            slot.has_rebooted = True  # caps are back at the driver's default until read back
        slot.boot_id, slot.sent_at = boot_id, -np.inf
        slot.forgiven = frozenset()
        self._node[i]["ack_seq"] = NO_ACK
        self._node[i]["cap_w"] = UNKNOWN_W
        # an agent that was never told a stage runs the one of the site file
        self._node[i]["stage"] = self._fleet.node_static["stage"][i]

    def _latch_xids(self, slot: _NodeSlot, xids: tuple[int, ...]) -> None:
        # a code that is no longer listed and comes back is a new fault, whatever was forgiven before
        slot.forgiven &= frozenset(xids)
        slot.xids = xids
        fatal = worst_fatal_xid(x for x in xids if x not in slot.forgiven)
        if fatal:
            slot.latched_xid = fatal

    def forgive(self, i: int) -> None:
        """An operator or a healthy event cleared the node: its standing codes no longer count."""
        with self._lock:
            slot = self._slots[i]
            slot.forgiven = frozenset(slot.xids)
            slot.latched_xid = 0
            self._node[i]["xid"] = 0

    def latch(self, i: int, xid: int) -> None:
        """Hold a fatal code against a node until it is forgiven."""
        with self._lock:
            self._slots[i].latched_xid = xid
            self._node[i]["xid"] = xid

    def report_domain(self, d: int, meter_w: float, sent_at: float, now_s: float) -> bool:
        """Take a meter reading; False if it is not newer than the last."""
        with self._lock:
            if sent_at <= self._domain_sent_at[d]:
                self.dropped += 1
                return False
            self._domain_sent_at[d] = sent_at
            self._domain["meter_w"][d] = meter_w
            self._domain_at_s[d] = now_s
            return True

    def report_service(self, s: int, values: dict[str, float], sent_at: float, now_s: float) -> bool:
        """Take a service's figures; False if they are not newer than the last. Absent ones become missing."""
        with self._lock:
            if sent_at <= self._service_sent_at[s]:
                self.dropped += 1
                return False
            self._service_sent_at[s] = sent_at
            for name in self._service.dtype.names or ():
                self._service[name][s] = values.get(name, np.nan)
            self._service_at_s[s] = now_s
            return True

    def snapshot(self, now_s: float, limits: list[DomainLimit]) -> Snapshot:
        """What is known now. A reboot since the last call is passed on once, as silence."""
        timing = self._fleet.timing
        with self._lock:
            node, domain, service = self._node.copy(), self._domain.copy(), self._service.copy()
            node["age_s"] = _ages(now_s, self._node_at_s)
            domain["meter_age_s"] = _ages(now_s, self._domain_at_s)
            service["age_s"] = _ages(now_s, self._service_at_s)
            rebooted = np.array([slot.has_rebooted for slot in self._slots])
            if rebooted.any():
                for slot in self._slots:
                    slot.has_rebooted = False
        silent = (node["age_s"] >= timing.lease_ttl_s) | rebooted
        node["is_silent"] = silent
        node["is_up"] = ~silent
        for row, limit in zip(domain, limits, strict=True):
            row["limit_w"], row["next_limit_w"], row["next_in_s"] = limit[:3]
        return Snapshot(np.array([now_s]), node[None], domain[None], service[None])

    def acknowledged(self) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the node rows and of the fallbacks that agents say they hold."""
        with self._lock:
            return self._node.copy(), self._fallback_w.copy()

    def has_heard_all(self) -> bool:
        """Whether every node has reported since the start."""
        with self._lock:
            return bool((self._node_at_s > -NEVER_S).all())

    def identity(self, i: int) -> dict:
        """Who the node says it is: boot, GPUs by UUID, standing codes."""
        with self._lock:
            slot = self._slots[i]
            return {
                "boot_id": slot.boot_id or None,
                "gpu_uuids": list(slot.gpus),
                "xids": list(slot.xids),
                "latched_xid": slot.latched_xid,
                "problems": list(slot.problems),
                "dry_run": slot.is_dry_run,
            }

    def expect_boot(self, i: int, boot_id: str, gpus: tuple[str, ...]) -> None:
        """An agent registers: from now on its boot is the one that counts.

        Raises:
            StaleSender: if that boot was superseded.
        """
        with self._lock:
            slot = self._slots[i]
            if boot_id in slot.old_boots:
                raise StaleSender(f"boot {boot_id} of this node was superseded by boot {slot.boot_id}")
            if boot_id != slot.boot_id:
                self._start_boot(i, boot_id)
            slot.gpus = gpus


def _ages(now_s: float, at_s: np.ndarray) -> np.ndarray:
    return np.where(at_s <= -NEVER_S, NEVER_S, np.maximum(now_s - at_s, 0.0))
