"""Plans: what the arbiter commands, with the reason for every number."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from .tables import DOMAIN_PLAN, FLEET_PLAN, NODE_PLAN


class Reason(IntEnum):
    """What bound a node's cap, or why its bid was not granted."""

    GRANTED = 0  # the cap is what the bid asked for
    DOMAIN_LIMIT = 1  # a power domain's limit; `bound_domain` says which
    CAP_RANGE = 2  # the product's smallest or largest cap
    WAITING_FOR_RELEASE = 3  # watts granted to it are still held by nodes that have not acknowledged
    RAMP = 4  # raises are ramped
    STALE = 5  # no fresh telemetry: no raise
    UNKNOWN = 6  # silent or not yet acknowledged: budgeted at its maximum
    PARKED = 7
    MOVING = 8  # a stage is loading: held at its floor
    DRAINED = 9
    BAD_BID = 10  # the bid was NaN or out of range and was read as neutral
    EMERGENCY_FLOOR = 11  # the decode floor did not fit: the product's floor is in force
    DEADBAND = 12  # too small a raise to be worth a write
    ORDERED = 13  # an operator pinned or froze it


class Shed(IntEnum):
    """How far down the shedding ladder of guarantee 9 the fleet stands."""

    NONE = 0
    CAP = 1  # limits bind
    EMERGENCY_CAP = 2  # decode floors given up
    PARK = 3
    INFEASIBLE = 4  # even parked, the fleet's declared bounds exceed the limit


class Order(IntEnum):
    """What an operator may order for a node; `arbiter.overrides` says what it means."""

    NONE = 0
    DRAIN = 1
    PIN = 2
    FREEZE = 3
    EXCLUDE = 4


class Breach(IntEnum):
    """How a limit's breach stands, by its meter (FIELD.md section 5)."""

    NONE = 0
    ACTIVE = 1
    ESCALATED = 2
    RESOLVED = 3


class Intervention(NamedTuple):
    """One bid that was not granted: a value, because refusing is normal."""

    node: int
    reason: Reason
    requested_w: int
    granted_w: int
    domain: int


@dataclass(frozen=True)
class Plan:
    """Commands for one instant.

    Attributes:
        node: `tables.NODE_PLAN`, shape (B, N).
        fleet: `tables.FLEET_PLAN`, shape (B,).
        domain: `tables.DOMAIN_PLAN`, shape (B, D), where `arbiter.prices` added it; else without columns.
    """

    node: np.ndarray
    fleet: np.ndarray
    domain: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), DOMAIN_PLAN))

    @classmethod
    def empty(cls, batch: int, nodes: int) -> "Plan":
        return cls(np.zeros((batch, nodes), NODE_PLAN), np.zeros(batch, FLEET_PLAN), np.zeros((batch, 0), DOMAIN_PLAN))

    def interventions(self, env: int = 0) -> list[Intervention]:
        """Bids that were not granted in environment `env`, by node id."""
        rows = self.node[env]
        return [
            Intervention(
                int(i),
                Reason(int(rows["reason"][i])),
                int(rows["want_w"][i]),
                int(rows["cap_w"][i]),
                int(rows["bound_domain"][i]),
            )
            for i in np.flatnonzero(rows["reason"] != Reason.GRANTED)
        ]

    def to_bytes(self) -> bytes:
        """The plan as bytes: equal inputs give equal bytes in the simulator and in the service."""
        return self.node.tobytes() + self.fleet.tobytes()
