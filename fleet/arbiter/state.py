"""What the arbiter remembers between two settlements, and how it starts."""

from dataclasses import dataclass, fields

import numpy as np

from ..tables import (
    DOMAIN_STATE,
    FLEET_STATE,
    NEVER_S,
    NODE_STATE,
    POOL_STATE,
    SERVICE_STATE,
)
from ..topology import Fleet

NO_LIMIT_W = 1 << 60
"""Stands for "nothing announced"."""

BANK_FRAC = 0.02
"""Share of a window's watt-seconds that its bank may hold; `limits` says why it is also held back."""


SMALL_BYTES = 1 << 16
"""Tables below this are copied as bytes."""


def _copied(table: np.ndarray) -> np.ndarray:
    """A copy of a table as one block: NumPy copies records field by field, which took half of a small settlement."""
    if table.nbytes < SMALL_BYTES:
        return np.ndarray(table.shape, table.dtype, bytearray(table.tobytes()))
    return table.view(np.int64).copy().view(table.dtype) if table.flags.c_contiguous else table.copy()


@dataclass(frozen=True)
class ArbiterState:
    """Everything that has memory.

    Attributes:
        node: `tables.NODE_STATE`, shape (B, N).
        domain: `tables.DOMAIN_STATE`, shape (B, D).
        pool: `tables.POOL_STATE`, shape (B, P); NaN before the first value.
        service: `tables.SERVICE_STATE`, shape (B, S).
        fleet: `tables.FLEET_STATE`, shape (B,).
    """

    node: np.ndarray
    domain: np.ndarray
    pool: np.ndarray
    service: np.ndarray
    fleet: np.ndarray

    @property
    def tables(self) -> tuple[np.ndarray, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))

    @property
    def batch(self) -> int:
        return self.node.shape[0]

    def copy(self) -> "ArbiterState":
        return ArbiterState(*(_copied(t) for t in self.tables))

    def with_breaker_reset(self) -> "ArbiterState":
        """The state after a person reset the cordon breaker: past cordons are forgotten, standing drains are not."""
        state = self.copy()
        state.fleet["is_tripped"] = 0
        state.node["cordoned_at_s"] = -NEVER_S
        return state

    def env(self, index: int) -> "ArbiterState":
        """One environment as a batch of one (a view)."""
        return ArbiterState(*(t[index : index + 1] for t in self.tables))

    def to_bytes(self) -> bytes:
        """All tables as bytes, in the order of the attributes."""
        return b"".join(t.tobytes() for t in self.tables)

    @classmethod
    def from_bytes(cls, fleet: Fleet, data: bytes, batch: int = 1) -> "ArbiterState":
        """The inverse of `to_bytes`.

        Raises:
            ValueError: if the length is not that of a state of this fleet and batch.
        """
        shapes = (
            (NODE_STATE, (batch, len(fleet.nodes))),
            (DOMAIN_STATE, (batch, len(fleet.domains))),
            (POOL_STATE, (batch, fleet.pools)),
            (SERVICE_STATE, (batch, len(fleet.services))),
            (FLEET_STATE, (batch,)),
        )
        sizes = [dtype.itemsize * int(np.prod(shape)) for dtype, shape in shapes]
        if len(data) != sum(sizes):
            raise ValueError(f"an arbiter state of this fleet has {sum(sizes)} bytes, got {len(data)}")
        tables, offset = [], 0
        for (dtype, shape), size in zip(shapes, sizes, strict=True):
            tables.append(np.frombuffer(data, dtype, offset=offset, count=int(np.prod(shape))).reshape(shape).copy())
            offset += size
        return cls(*tables)


def initial_state(
    fleet: Fleet, batch: int, time_s: float = 0.0, epoch: int = 1, assume_acked: bool = False
) -> ArbiterState:
    """The state before the first settlement.

    Args:
        fleet: The site.
        batch: Number of environments.
        time_s: Clock at the start.
        epoch: Leases of an older epoch are refused by agents.
        assume_acked: False for a live start: nothing is acknowledged, every node is commanded its smallest cap
            and budgeted at its largest. True for a simulator that starts warm: every node runs an equal share
            of the limits and has acknowledged sequence 1.

    Returns:
        The state; every node serves the stage of the site file.
    """
    static, domains = fleet.node_static, fleet.domain_static
    node = np.zeros((batch, len(static)), NODE_STATE)
    node["seq"] = 1
    node["wait_seq"] = 1
    node["stage_cmd"] = static["stage"]
    node["cap_cmd_w"] = static["cap_min_w"]
    node["wait_w"] = static["cap_min_w"]
    node["cap_possible_w"] = static["cap_max_w"]
    node["fallback_w"] = static["cap_min_w"]
    node["wait_fallback_w"] = static["cap_min_w"]
    node["demand_w"] = np.nan
    node["drained_at_s"] = -NEVER_S
    node["cordoned_at_s"] = -NEVER_S
    node["fallback_possible_w"] = static["cap_max_w"]
    domain = np.zeros((batch, len(domains)), DOMAIN_STATE)
    domain["in_force_w"] = domains["peak_w"]
    domain["pending_w"] = domains["peak_w"]
    domain["cut_at_s"] = NEVER_S
    domain["deeper_w"] = domains["peak_w"]
    domain["deeper_at_s"] = NEVER_S
    domain["announced_w"] = NO_LIMIT_W
    domain["fallback_available_w"] = NO_LIMIT_W
    pool = np.full((batch, fleet.pools), np.nan).astype(POOL_STATE)
    pool["nodes_bid"] = 0.0
    service = np.zeros((batch, len(fleet.services)), SERVICE_STATE)
    service["move_credit"] = 1.0
    clock = np.zeros(batch, FLEET_STATE)
    clock["time_s"], clock["epoch"] = time_s, epoch
    if assume_acked:
        from .settle import uniform_caps  # numba only where a settlement is about to follow

        cap_w = uniform_caps(fleet)
        for name in ("cap_cmd_w", "wait_w", "cap_possible_w"):
            node[name] = cap_w
        node["dwell_s"] = fleet.timing.dwell_s
        for name in ("fallback_w", "fallback_possible_w"):
            node[name] = static["cap_min_w"]
    return ArbiterState(node, domain, pool, service, clock)
