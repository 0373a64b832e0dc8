"""The shadow log: what the incumbent did and what Flyball would have commanded, per control interval."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgpack
import numpy as np

from ..fleet.errors import BadInput
from ..fleet.plan import Plan
from ..fleet.snapshot import Snapshot
from ..fleet.tables import (
    DOMAIN_SNAPSHOT,
    FLEET_PLAN,
    NODE_PLAN,
    NODE_SNAPSHOT,
    SERVICE_SNAPSHOT,
    UNKNOWN_W,
)
from .store import open_store

FORMAT = 1


@dataclass(frozen=True)
class ShadowLog:
    """Both sides over time, oldest first; T rows.

    Attributes:
        time_s: Unix seconds, shape (T,).
        epoch: Start of the service that wrote the row, shape (T,).
        node: `tables.NODE_SNAPSHOT` as heard, shape (T, N): `cap_w` is the incumbent's cap as read back.
        domain: `tables.DOMAIN_SNAPSHOT`, shape (T, D).
        service: `tables.SERVICE_SNAPSHOT`, shape (T, S).
        plan: `tables.NODE_PLAN` that Flyball would have commanded, shape (T, N).
        plan_fleet: `tables.FLEET_PLAN`, shape (T,).
        is_fallback: Whether the bids came from the fallback policy, shape (T,).
        node_names, domain_names, service_names: Names along the axes.
        policy: The policy of the newest epoch in the range.
        fleet_hash: Hash of the site.
    """

    time_s: np.ndarray
    epoch: np.ndarray
    node: np.ndarray
    domain: np.ndarray
    service: np.ndarray
    plan: np.ndarray
    plan_fleet: np.ndarray
    is_fallback: np.ndarray
    node_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    service_names: tuple[str, ...]
    policy: str
    fleet_hash: str

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def incumbent_cap_w(self) -> np.ndarray:
        """Caps that were in force as read back, shape (T, N), watts; UNKNOWN_W where not read."""
        return self.node["cap_w"]

    @property
    def proposed_cap_w(self) -> np.ndarray:
        """Caps that Flyball would have commanded, shape (T, N), watts."""
        return self.plan["cap_w"]

    @property
    def known_frac(self) -> np.ndarray:
        """Share of nodes with fresh telemetry and a cap read back, shape (T,): the data's quality."""
        return ((self.node["is_silent"] == 0) & (self.node["cap_w"] != UNKNOWN_W)).mean(axis=1)

    def snapshot(self, row: int) -> Snapshot:
        """One row as the Snapshot that was decided on."""
        r = slice(row, row + 1)
        return Snapshot(self.time_s[r], self.node[r], self.domain[r], self.service[r])


def pack_row(snapshot: Snapshot, plan: Plan, is_fallback: bool) -> bytes:
    """One control interval for the log."""
    content = {
        "v": FORMAT,
        "node": snapshot.node[0].tobytes(),
        "domain": snapshot.domain[0].tobytes(),
        "service": snapshot.service[0].tobytes(),
        "plan": plan.node[0].tobytes(),
        "fleet": plan.fleet[:1].tobytes(),
        "fallback": is_fallback,
    }
    return zlib.compress(msgpack.packb(content), 1)


def read_shadow_log(db_url: str, from_s: float = 0.0, to_s: float = float("inf")) -> ShadowLog:
    """The shadow log of a time range.

    Args:
        db_url: Database that `flyball serve` wrote.
        from_s: Unix seconds, included.
        to_s: Unix seconds, excluded.

    Raises:
        BadInput: if the range is empty, or the site changed within it.
    """
    with open_store(db_url) as store:
        rows = store.shadow_rows(from_s, min(to_s, 1e18))
        epochs = {e.epoch: e for e in store.epochs()}
    if not rows:
        raise BadInput(
            "the shadow log has no rows in that time; run `flyball serve --mode shadow` or widen --from/--to"
        )
    hashes = sorted({r[2] for r in rows})
    if len(hashes) > 1:
        change_s = next(b[1] for a, b in pairwise(rows) if a[2] != b[2])
        raise BadInput(f"the site changed at {change_s:.0f} within that time; report before and after it separately")
    content = [msgpack.unpackb(zlib.decompress(r[3])) for r in rows]
    newest = epochs[rows[-1][0]]
    return ShadowLog(
        time_s=np.array([r[1] for r in rows]),
        epoch=np.array([r[0] for r in rows]),
        node=_stack(content, "node", NODE_SNAPSHOT),
        domain=_stack(content, "domain", DOMAIN_SNAPSHOT),
        service=_stack(content, "service", SERVICE_SNAPSHOT),
        plan=_stack(content, "plan", NODE_PLAN),
        plan_fleet=_stack(content, "fleet", FLEET_PLAN)[:, 0],
        is_fallback=np.array([c["fallback"] for c in content]),
        node_names=tuple(n["name"] for n in newest.site["nodes"]),
        domain_names=tuple(d["name"] for d in newest.site["domains"]),
        service_names=tuple(newest.site["services"]),
        policy=newest.policy,
        fleet_hash=hashes[0],
    )


def _stack(content: Sequence[dict], name: str, dtype: np.dtype) -> np.ndarray:
    return np.stack([np.frombuffer(c[name], dtype) for c in content])
