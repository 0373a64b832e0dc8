"""The audit trail: one compressed delta per tick, a whole frame now and then, readable at any time."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgpack
import numpy as np

from .store import StoredTick

FORMAT = 1

KEYFRAME_TICKS = 60
"""A whole frame once a minute: reading a moment replays at most that many deltas."""

WANT_STEP_FRAC = 0.02
"""What was asked moves with every sample of demand; smaller steps are not written."""

POWER_STEP_FRAC = 0.01

AUDIT_NODE = np.dtype(
    [
        ("cap_w", "i8"),
        ("want_w", "i8"),
        ("fallback_w", "i8"),
        ("possible_w", "i8"),
        ("seq", "i8"),
        ("since_s", "f8"),  # since when cap, reason and binding domain are what they are
        ("stage", "i1"),
        ("reason", "i1"),
        ("bound_domain", "i4"),
        ("is_cordoned", "i1"),
        ("is_drained", "i1"),
        ("is_silent", "i1"),
    ]
)
AUDIT_DOMAIN = np.dtype(
    [
        ("limit_w", "i8"),
        ("in_force_w", "i8"),
        ("possible_w", "i8"),
        ("measured_w", "i8"),
        ("next_limit_w", "i8"),
        ("next_at_s", "f8"),
        ("until_s", "f8"),
        ("since_s", "f8"),  # since when the limit in force is what it is
    ]
)
_CAUSE = ("cap_w", "reason", "bound_domain", "stage", "is_cordoned", "is_drained")
_EXACT = (*_CAUSE, "fallback_w", "possible_w", "seq", "is_silent")


class Note(NamedTuple):
    """Something that happened, in words, as the dashboard's stream shows it."""

    time_s: float
    kind: str  # budget | limit | cap | health | policy | node | service
    text: str


@dataclass(frozen=True)
class Frame:
    """Everything the audit knows at one tick."""

    epoch: int
    tick: int
    time_s: float
    node: np.ndarray
    domain: np.ndarray
    shed_level: int
    prices: dict[int, tuple[float, int]] = field(default_factory=dict)  # of domains that bind: price, node that is next


class AuditTrail:
    """Writes deltas: remembers the last frame that a reader would see."""

    def __init__(self) -> None:
        self._node: np.ndarray | None = None
        self._domain: np.ndarray | None = None
        self._left = 0

    def encode(
        self,
        time_s: float,
        node: np.ndarray,
        domain: np.ndarray,
        shed_level: int,
        notes: Iterable[Note],
        prices: Iterable[tuple[int, float, int]] = (),
    ) -> tuple[bytes, bool]:
        """The tick's delta and whether it is a whole frame; fills in `since_s` of both tables.

        Args:
            node: AUDIT_NODE rows, shape (N,).
            domain: AUDIT_DOMAIN rows, shape (D,).
            prices: Index, price of a watt and the node that is next, of domains that bind.
        """
        old_node, old_domain = self._node, self._domain
        node["since_s"], domain["since_s"] = time_s, time_s
        changed, moved = np.arange(len(node)), np.arange(len(domain))
        is_keyframe = old_node is None or self._left == 0
        if old_node is not None and old_domain is not None:
            same = np.all([node[f] == old_node[f] for f in _CAUSE], axis=0)
            node["since_s"] = np.where(same, old_node["since_s"], time_s)
            same = domain["in_force_w"] == old_domain["in_force_w"]
            domain["since_s"] = np.where(same, old_domain["since_s"], time_s)
            if not is_keyframe:
                changed = np.flatnonzero(_node_changes(old_node, node))
                moved = np.flatnonzero(_domain_changes(old_domain, domain))
                old_node[changed], old_domain[moved] = node[changed], domain[moved]
        if is_keyframe:
            self._node, self._domain = node.copy(), domain.copy()
            self._left = KEYFRAME_TICKS
        self._left -= 1
        content = {
            "v": FORMAT,
            "i": changed.astype("<i4").tobytes(),
            "n": node[changed].tobytes(),
            "j": moved.astype("<i4").tobytes(),
            "d": domain[moved].tobytes(),
            "shed": int(shed_level),
            "notes": [list(note) for note in notes],
            "prices": [list(row) for row in prices],
        }
        return zlib.compress(msgpack.packb(content), 1), is_keyframe

    @property
    def frame(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Node and domain rows as a reader sees them now."""
        return self._node, self._domain


def _node_changes(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    changed = np.any([old[f] != new[f] for f in _EXACT], axis=0)
    return changed | (np.abs(new["want_w"] - old["want_w"]) > WANT_STEP_FRAC * np.abs(old["want_w"]))


def _domain_changes(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    changed = np.any([old[f] != new[f] for f in ("limit_w", "in_force_w", "next_limit_w", "until_s")], axis=0)
    changed |= np.abs(new["next_at_s"] - old["next_at_s"]) > 0.5
    for f in ("possible_w", "measured_w"):
        changed |= np.abs(new[f] - old[f]) > POWER_STEP_FRAC * np.maximum(old["limit_w"], 1)
    return changed


def _unpack(tick: StoredTick) -> dict:
    return msgpack.unpackb(zlib.decompress(tick.delta))


def replay(ticks: Iterable[StoredTick]) -> Frame | None:
    """The frame at the last of some ticks, the first of which is a keyframe; None if there are none."""
    node = domain = None
    frame = None
    for tick in ticks:
        content = _unpack(tick)
        rows = np.frombuffer(content["n"], AUDIT_NODE)
        feeds = np.frombuffer(content["d"], AUDIT_DOMAIN)
        if tick.is_keyframe:
            node, domain = rows.copy(), feeds.copy()
        elif node is not None and domain is not None:
            node[np.frombuffer(content["i"], "<i4")] = rows
            domain[np.frombuffer(content["j"], "<i4")] = feeds
        if node is not None and domain is not None:
            prices = {d: (price, i) for d, price, i in content.get("prices", ())}  # older records have none
            frame = Frame(tick.epoch, tick.tick, tick.time_s, node, domain, content["shed"], prices)
    return frame


def notes_of(ticks: Iterable[StoredTick]) -> list[Note]:
    """What happened in some ticks, in words, oldest first."""
    return [Note(*note) for tick in ticks for note in _unpack(tick)["notes"]]
