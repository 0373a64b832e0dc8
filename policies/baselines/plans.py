"""Plans that a planner compares: who is in charge, with which perturbation and for how long, and who follows."""

from dataclasses import dataclass, fields

import numpy as np

from ...fleet.bids import Bids
from ...fleet.tables import DECODE, PREFILL, STAGES

WATTS, NODES = 0, 1
"""Columns of a perturbation, as of pool bids."""

FOREVER = 1_000_000
"""Control intervals of a move that is never over."""


@dataclass(frozen=True)
class Plans:
    """Plans of some rows, shape (...) each, perturbations (..., P, 2).

    Attributes:
        first: Member in charge of the first part.
        then: Member in charge after it.
        left: Control intervals of the first part.
        held: What is added to the pool bids of the first part: watts, nodes.
        kept: What is added to them after it.
    """

    first: np.ndarray
    then: np.ndarray
    left: np.ndarray
    held: np.ndarray
    kept: np.ndarray

    @classmethod
    def of(cls, members: np.ndarray, pools: int) -> "Plans":
        """Members who stay in charge, unperturbed."""
        nothing = np.zeros((*members.shape, pools, 2))
        return cls(members, members, np.zeros_like(members), nothing, nothing)

    def __getitem__(self, index) -> "Plans":
        return Plans(*(getattr(self, name)[index] for name in FIELDS))

    def flat(self) -> "Plans":
        """All axes of plans as one."""
        moves = (a.reshape(-1, *a.shape[-2:]) for a in (self.held, self.kept))
        return Plans(self.first.ravel(), self.then.ravel(), self.left.ravel(), *moves)

    def after(self, steps: int = 1) -> "Plans":
        """What is left of them some control intervals later."""
        return Plans(self.first, self.then, np.maximum(self.left - steps, 0), self.held, self.kept)

    @property
    def in_charge(self) -> np.ndarray:
        """Members in charge now."""
        return np.where(self.left > 0, self.first, self.then)

    @property
    def held_now(self) -> np.ndarray:
        """Perturbations of now."""
        return np.where((self.left > 0)[..., None, None], self.held, self.kept)

    def to_array(self) -> np.ndarray:
        """Shape (..., 3 + 4 P)."""
        parts = [self.first[..., None], self.then[..., None], self.left[..., None]]
        parts += [a.reshape(*a.shape[:-2], -1) for a in (self.held, self.kept)]
        return np.concatenate(parts, -1).astype(float)

    @classmethod
    def from_array(cls, array: np.ndarray) -> "Plans":
        """The inverse of `to_array`."""
        first, then, left = (array[..., i].astype(np.int64) for i in range(3))
        held, kept = (a.reshape(*a.shape[:-1], -1, 2) for a in np.split(array[..., 3:], 2, axis=-1))
        return cls(first, then, left, held, kept)


FIELDS = tuple(f.name for f in fields(Plans))


def join(*parts: Plans) -> Plans:
    """Plans one after the other along their last axis."""
    axis = parts[0].left.ndim - 1
    return Plans(*(np.concatenate([getattr(p, name) for p in parts], axis) for name in FIELDS))


def stand_in(plan: Plans, members: np.ndarray, steps: int) -> Plans:
    """Each of some members in charge for a while, then whoever follows in a plan: shape (R,) and (R, K) to (R, K)."""
    then = np.broadcast_to(plan.then[:, None], members.shape)
    kept = np.broadcast_to(plan.kept[:, None], (*members.shape, *plan.kept.shape[1:]))
    return Plans(members, then, np.full_like(members, steps), np.zeros(kept.shape), kept)


def around(plan: Plans, moves: np.ndarray, lengths: tuple[int, ...]) -> Plans:
    """Plans that differ from one by a move held for some time, `FOREVER` on top of all that it does.

    Args:
        plan: Shape (R,).
        moves: Shape (K, P, 2).
        lengths: Control intervals that moves are held.

    Returns:
        Shape (R, K * lengths), of one length after the other.
    """
    shape = (len(plan.left), len(moves))

    def spread(array):
        return np.broadcast_to(array[:, None], (*shape, *array.shape[1:]))

    out = []
    for length in lengths:
        if length >= FOREVER:
            held, kept = plan.held[:, None] + moves, plan.kept[:, None] + moves
            out.append(Plans(spread(plan.first), spread(plan.then), spread(plan.left), held, kept))
        else:
            held, left = plan.held_now[:, None] + moves, np.full(shape, length, np.int64)
            out.append(Plans(spread(plan.in_charge), spread(plan.then), left, held, spread(plan.kept)))
    return join(*out)


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
