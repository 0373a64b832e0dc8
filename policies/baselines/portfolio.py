"""A portfolio: complete policies side by side, each with its own memory, any of which can be put in charge of a row.

Every member goes on listening whoever is in charge, so that its memory is always that of a policy that watched from
the start: what a roll of a member predicts is then exactly what happens once the member is put in charge.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...fleet.bids import Bids
from ...fleet.observe import Observation
from ...fleet.snapshot import Snapshot
from ...fleet.topology import Fleet
from ..base import Policy


class Portfolio:
    """Members whose memories lie side by side in one array of shape (B, size).

    Args:
        fleet: The site.
        members: The policies; their memories are None or arrays, batch first.
    """

    def __init__(self, fleet: Fleet, members: Sequence[Policy]):
        self.fleet, self.members = fleet, tuple(members)
        self._fresh = [m.start(1) for m in self.members]
        sizes = [0 if f is None else int(np.prod(f.shape[1:])) for f in self._fresh]
        ends = np.cumsum(sizes, dtype=int)
        self._cuts = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]
        self.size = int(ends[-1])

    def __len__(self) -> int:
        return len(self.members)

    def start(self, batch: int) -> np.ndarray:
        """Memories of a fresh batch, shape (B, size)."""
        out = np.zeros((batch, self.size))
        for member, cut in zip(self.members, self._cuts, strict=True):
            fresh = member.start(batch)
            if fresh is not None:
                out[:, cut] = fresh.reshape(batch, -1)
        return out

    def bid(
        self,
        snapshot: Snapshot,
        observation: Observation,
        memory: np.ndarray,
        in_charge: np.ndarray,
        listening: np.ndarray | None = None,
    ) -> Bids:
        """Bids of the member in charge of each row; memories of all who listen move on, in place.

        Args:
            snapshot: What is known.
            observation: Its features.
            memory: Shape (B, size).
            in_charge: Index of a member, shape (B,).
            listening: Index of a second member that listens, shape (B,); None: all of them do.
        """
        bids = Bids.neutral(snapshot.batch, self.fleet.pools, len(self.fleet.nodes))
        for m, member in enumerate(self.members):
            acts = in_charge == m
            hears = np.ones_like(acts) if listening is None else acts | (listening == m)
            rows = np.flatnonzero(hears)
            if not len(rows):
                continue
            whole = len(rows) == snapshot.batch
            seen = snapshot if whole else _snapshot_rows(snapshot, rows)
            features = observation if whole else _observation_rows(observation, rows)
            found, after = member.bid(seen, features, self._memory(m, memory, rows))
            if after is not None:
                memory[rows, self._cuts[m]] = after.reshape(len(rows), -1)
            inside = acts[rows]
            at = rows[inside]
            if len(at):
                bids.pool[at], bids.node[at], bids.fleet[at] = (
                    found.pool[inside],
                    found.node[inside],
                    found.fleet[inside],
                )
        return bids

    def _memory(self, m: int, memory: np.ndarray, rows: np.ndarray) -> Any:
        fresh = self._fresh[m]
        if fresh is None:
            return None
        own = np.ascontiguousarray(memory[rows, self._cuts[m]], dtype=fresh.dtype)
        return own.reshape(len(rows), *fresh.shape[1:])


def _snapshot_rows(snapshot: Snapshot, rows: np.ndarray) -> Snapshot:
    return Snapshot(snapshot.time_s[rows], snapshot.node[rows], snapshot.domain[rows], snapshot.service[rows])


def _observation_rows(seen: Observation, rows: np.ndarray) -> Observation:
    return Observation(
        seen.pool[rows], seen.node[rows], seen.fleet[rows], seen.pool_mask[rows], seen.node_mask[rows]
    )  # fmt: skip
