"""What a tick puts on record before its leases are handed out: leases, acknowledgements, audit, shadow rows."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ..fleet.arbiter.memory import is_urgent, memory_of, packed
from ..fleet.topology import Fleet
from .audit import AuditTrail, Note
from .store import AckRow, Fenced, LeaseRow, Store, TickRecord
from .telemetry import NO_ACK, Telemetry
from .view import View, audit_prices, audit_rows

log = logging.getLogger(__name__)

PRUNE_EVERY_S = 3600.0
MEMORY_EVERY_S = 60.0
"""How often averages that meters feed are kept for a restart; drains, the breaker and take-backs are kept at once."""


class Ledger:
    """Group commits of one epoch.

    Args:
        fleet: The site.
        store: Where they go.
        epoch: Of the service.
        retention_s: How long ticks and shadow rows are kept.
        started_s: Time of the start.
        memory: What an earlier service left for this one to remember.
    """

    def __init__(
        self, fleet: Fleet, store: Store, epoch: int, retention_s: float, started_s: float, memory: dict[str, Any]
    ) -> None:
        self._fleet, self._store, self._epoch, self._retention_s = fleet, store, epoch, retention_s
        self._trail = AuditTrail()
        self._acks: dict[str, AckRow] = {}
        self._pruned_s = self._memory_s = started_s
        self._memory = memory
        self.leases: dict[str, LeaseRow] = {}
        self.fence = ""
        self.failed_commits = 0

    @property
    def is_behind(self) -> bool:
        """Whether the last commit failed."""
        return self._trail.frame[0] is None and self.failed_commits > 0

    def commit(
        self, view: View, telemetry: Telemetry, notes: Iterable[Note], shadow: bytes | None, is_commanded: bool
    ) -> None:
        """Put a tick on record.

        A store that fails must not stop a cap from being lowered: the view is published all the same, the
        failure is counted and /readyz tells of it.

        Args:
            view: Of the tick.
            telemetry: Whose acknowledgements are kept.
            notes: What happened.
            shadow: Row of the shadow log, if one is due.
            is_commanded: Whether the plan is commanded, and its leases are handed out.
        """
        node, domain = audit_rows(self._fleet, view)
        shed_level = int(view.plan.fleet["shed_level"][0])
        delta, is_keyframe = self._trail.encode(view.time_s, node, domain, shed_level, notes, audit_prices(view))
        leases, acks = self._new_leases(view) if is_commanded else (), self._new_acks(telemetry, view.time_s)
        memory = self._new_memory(view) if is_commanded else None
        record = TickRecord(
            self._epoch, view.tick, view.time_s, is_keyframe, delta, leases, acks, shadow, self._fleet.hash,
            packed(memory) if memory else None,
        )  # fmt: skip
        try:
            self._store.commit(record)
            self._acks.update((a.node, a) for a in acks)
            if memory:
                self._memory, self._memory_s = memory, view.time_s
            if view.time_s - self._pruned_s > PRUNE_EVERY_S:
                self._pruned_s = view.time_s
                self._store.prune(view.time_s - self._retention_s)
        except Fenced as fenced:
            self.fence = str(fenced)
            log.error("%s", fenced)
        except Exception:
            self.failed_commits += 1
            # a reader must not apply later deltas to a frame that lacks this one
            self._trail = AuditTrail()
            log.exception("the store failed; the plan is issued all the same")
        self.leases = {**self.leases, **{lease.node: lease for lease in leases}}

    def _new_memory(self, view: View) -> dict[str, Any] | None:
        """What a restart must not forget, when it changed: at once if it is about safety, else now and then."""
        memory = memory_of(self._fleet, view.state)
        is_due = view.time_s - self._memory_s >= MEMORY_EVERY_S
        return memory if memory != self._memory and (is_due or is_urgent(memory, self._memory)) else None

    def _new_leases(self, view: View) -> tuple[LeaseRow, ...]:
        ttl_s, out = self._fleet.timing.lease_ttl_s, []
        columns = (view.plan.node[name][0].tolist() for name in ("seq", "cap_w", "fallback_w"))
        for node, seq, cap_w, fallback_w in zip(self._fleet.nodes, *columns, strict=True):
            old = self.leases.get(node.name)
            if old is None or (old.seq, old.cap_w, old.fallback_w) != (seq, cap_w, fallback_w):
                out.append(LeaseRow(node.name, self._epoch, seq, cap_w, fallback_w, ttl_s, view.time_s))
        return tuple(out)

    def _new_acks(self, telemetry: Telemetry, now_s: float) -> tuple[AckRow, ...]:
        rows, fallback_w = telemetry.acknowledged()
        out = []
        for i in np.flatnonzero(rows["ack_seq"] != NO_ACK):
            name = self._fleet.nodes[i].name
            ack = AckRow(name, self._epoch, int(rows["ack_seq"][i]), int(rows["cap_w"][i]), int(fallback_w[i]), now_s)
            old = self._acks.get(name)
            if old is None or replace(old, time_s=now_s) != ack:
                out.append(ack)
        return tuple(out)
