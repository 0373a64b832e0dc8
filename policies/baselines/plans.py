"""Plans that a planner compares: who is in charge, with which perturbation and for how long, and who follows."""

from dataclasses import dataclass

import numpy as np

from ...fleet.bids import Bids
from ...fleet.tables import DECODE, PREFILL, STAGES

WATTS, NODES = 0, 1
"""Columns of a perturbation, as of pool bids."""

FOREVER = 1_000_000
"""Steps of a first part that is never over."""


@dataclass(frozen=True)
class Plans:
    """Plans of some rows, shape (...) each, perturbations (..., P, 2).

    Attributes:
        first: Member in charge of the first part.
        then: Member in charge after it.
        left: Control intervals of the first part.
        held: What is added to the pool bids of the first part: watts, nodes.
    """

    first: np.ndarray
    then: np.ndarray
    left: np.ndarray
    held: np.ndarray

    @classmethod
    def of(cls, members: np.ndarray, pools: int) -> "Plans":
        """Members who stay in charge, unperturbed."""
        return cls(members, members, np.zeros_like(members), np.zeros((*members.shape, pools, 2)))

    def __getitem__(self, index) -> "Plans":
        return Plans(self.first[index], self.then[index], self.left[index], self.held[index])

    def flat(self) -> "Plans":
        """All axes of plans as one."""
        pools = self.held.shape[-2]
        return Plans(self.first.ravel(), self.then.ravel(), self.left.ravel(), self.held.reshape(-1, pools, 2))

    def after(self, steps: int = 1) -> "Plans":
        """What is left of them some control intervals later."""
        return Plans(self.first, self.then, np.maximum(self.left - steps, 0), self.held)

    @property
    def in_charge(self) -> np.ndarray:
        """Members in charge now."""
        return np.where(self.left > 0, self.first, self.then)

    @property
    def held_now(self) -> np.ndarray:
        """Perturbations of now."""
        return np.where((self.left > 0)[..., None, None], self.held, 0.0)

    def to_array(self) -> np.ndarray:
        """Shape (..., 3 + 2 P)."""
        parts = [self.first[..., None], self.then[..., None], self.left[..., None]]
        return np.concatenate([*parts, self.held.reshape(*self.held.shape[:-2], -1)], -1).astype(float)

    @classmethod
    def from_array(cls, array: np.ndarray) -> "Plans":
        """The inverse of `to_array`."""
        first, then, left = (array[..., i].astype(np.int64) for i in range(3))
        return cls(first, then, left, array[..., 3:].reshape(*array.shape[:-1], -1, 2))


def join(*parts: Plans) -> Plans:
    """Plans one after the other along their last axis."""
    names = ("first", "then", "left")
    joined = [np.concatenate([getattr(p, n) for p in parts], -1) for n in names]
    return Plans(*joined, np.concatenate([p.held for p in parts], -3))


def stand_in(plan: Plans, members: np.ndarray, steps: int) -> Plans:
    """Each of some members in charge for a while, then whoever would be in charge: shape (R,) and (R, K) to (R, K)."""
    then = np.broadcast_to(plan.then[:, None], members.shape)
    return Plans(members, then, np.full_like(members, steps), np.zeros((*members.shape, *plan.held.shape[1:])))


def around(plan: Plans, moves: np.ndarray, lengths: tuple[int, ...]) -> Plans:
    """Plans that differ from one by a move held for some time.

    Args:
        plan: Shape (R,).
        moves: Shape (K, P, 2).
        lengths: Control intervals that moves are held.

    Returns:
        Shape (R, K * lengths), of one length after the other.
    """
    rows, count = len(plan.left), len(moves) * len(lengths)
    held = plan.held_now[:, None] + np.tile(moves, (len(lengths), 1, 1))[None]
    left = np.broadcast_to(np.repeat(np.array(lengths, np.int64), len(moves)), (rows, count))
    spread = [np.broadcast_to(a[:, None], (rows, count)) for a in (plan.in_charge, plan.then)]
    return Plans(*spread, left, held)


def single_moves(services: int, watts: float, nodes: float) -> np.ndarray:
    """One move at a time: watts between a service's stages, between services, nodes between stages.

    Returns:
        Shape (K, P, 2), columns watts and nodes.
    """
    moves = []
    for s in range(services):
        for sign in (1.0, -1.0):
            for column, step in ((WATTS, watts), (NODES, nodes)):
                if step > 0:
                    move = np.zeros((STAGES * services, 2))
                    move[STAGES * s + PREFILL, column], move[STAGES * s + DECODE, column] = sign * step, -sign * step
                    moves.append(move)
            if services > 1:
                move = np.zeros((STAGES * services, 2))
                move[STAGES * s : STAGES * s + STAGES, WATTS] = sign * watts
                moves.append(move)
    return np.stack(moves)


def perturb(bids: Bids, held: np.ndarray) -> None:
    """Add perturbations, shape (B, P, 2), to the pool bids, in place."""
    part = bids.pool[..., :2]
    part += held
    np.clip(part, -1.0, 1.0, out=part)
