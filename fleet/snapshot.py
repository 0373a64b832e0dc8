"""Snapshots: what is known about a fleet at one instant, missing and stale values included."""

from dataclasses import dataclass

import numpy as np

from .tables import DOMAIN_SNAPSHOT, NEVER_S, NODE_SNAPSHOT, PARKED, SERVICE_SNAPSHOT, UNKNOWN_W
from .topology import Fleet


@dataclass(frozen=True)
class Snapshot:
    """What is known at one instant.

    Attributes:
        time_s: Seconds since the clock's start, shape (B,).
        node: `tables.NODE_SNAPSHOT`, shape (B, N).
        domain: `tables.DOMAIN_SNAPSHOT`, shape (B, D).
        service: `tables.SERVICE_SNAPSHOT`, shape (B, S).
    """

    time_s: np.ndarray
    node: np.ndarray
    domain: np.ndarray
    service: np.ndarray

    @property
    def batch(self) -> int:
        return self.node.shape[0]

    @classmethod
    def unknown(cls, fleet: Fleet, batch: int = 1, time_s: float = 0.0) -> "Snapshot":
        """A snapshot in which nothing was heard yet: every value missing, limits from the site file."""
        node = np.zeros((batch, len(fleet.nodes)), NODE_SNAPSHOT)
        for name in ("power_w", "demand_w", "util_frac", "clock_frac", "temp_c"):
            node[name] = np.nan
        node["age_s"] = NEVER_S
        node["cap_w"] = UNKNOWN_W
        node["stage"] = PARKED
        node["is_silent"] = 1
        domain = np.zeros((batch, len(fleet.domains)), DOMAIN_SNAPSHOT)
        domain["meter_w"] = np.nan
        domain["meter_age_s"] = NEVER_S
        domain["limit_w"] = fleet.domain_static["peak_w"]
        domain["next_limit_w"] = fleet.domain_static["peak_w"]
        domain["next_in_s"] = NEVER_S
        service = np.zeros((batch, len(fleet.services)), SERVICE_SNAPSHOT)
        for name in SERVICE_SNAPSHOT.names or ():
            service[name] = np.nan
        service["age_s"] = NEVER_S
        return cls(np.full(batch, time_s, np.float64), node, domain, service)

    def env(self, index: int) -> "Snapshot":
        """One environment as a batch of one (a view)."""
        return Snapshot(
            self.time_s[index : index + 1],
            self.node[index : index + 1],
            self.domain[index : index + 1],
            self.service[index : index + 1],
        )

    def copy(self) -> "Snapshot":
        return Snapshot(self.time_s.copy(), self.node.copy(), self.domain.copy(), self.service.copy())

    def to_bytes(self) -> bytes:
        """All tables as bytes, in the order of the attributes."""
        return b"".join(t.tobytes() for t in (self.time_s, self.node, self.domain, self.service))
