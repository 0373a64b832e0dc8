"""Power allocation by linear programs in three phases, as documented of nvPAX (arXiv 2605.01837).

Phase 1 grants requests with the least deviation, the higher priority first; phase 2 spreads what is left over active
devices, phase 3 what is then left over idle ones. It is written from the paper's abstract, on scipy's HiGHS: each step
minimises the sum of squared relative shortfalls in linear pieces. A ratio to it is a ratio to this re-implementation.
"""

from dataclasses import dataclass

import numpy as np

from ...fleet.topology import Fleet

PIECES = 8
"""Linear pieces of each node's squared shortfall; its slope is then right to a sixteenth of the way."""


@dataclass(frozen=True)
class Request:
    """One allocation's inputs, shapes (N,), watts of a node's GPUs.

    Attributes:
        want_w: What each node asks for.
        low_w: Least cap.
        high_w: Largest cap.
        priority: Higher is granted first.
        is_active: Whether excess goes to it in the second phase or in the third.
    """

    want_w: np.ndarray
    low_w: np.ndarray
    high_w: np.ndarray
    priority: np.ndarray
    is_active: np.ndarray


class ThreePhase:
    """The allocator of one fleet; the tree's matrix is built once.

    Raises:
        ImportError: without scipy, which is in the [dev] extra.
    """

    def __init__(self, fleet: Fleet):
        import scipy.optimize
        from scipy import sparse

        self._linprog, self._sparse = scipy.optimize.linprog, sparse
        static = fleet.domain_static
        spans = [np.arange(row["node_start"], row["node_end"]) for row in static]
        rows = np.concatenate([np.full(len(span), i) for i, span in enumerate(spans)])
        columns = np.concatenate(spans)
        self.tree = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (len(static), len(fleet.nodes)))
        self.limit_w = (static["peak_w"] - static["unmanaged_w"] - static["non_gpu_max_w"]).astype(float)

    def allocate(self, request: Request) -> np.ndarray:
        """Caps, shape (N,), watts, within every limit.

        Raises:
            ValueError: if the smallest caps do not fit.
        """
        want = np.clip(request.want_w, request.low_w, request.high_w).astype(float)
        low, high = request.low_w.astype(float), request.high_w.astype(float)
        cap = low.copy()
        for priority in np.unique(request.priority)[::-1]:
            here = request.priority == priority
            cap = self._even(cap, np.where(here, want, cap))
        for here in (request.is_active, ~request.is_active):
            cap = self._even(cap, np.where(here, high, cap))
        return cap

    def _even(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Raise caps from `low` towards `high`: the sum of squared relative shortfalls, weighted by watts, is least."""
        span = high - low
        open_ = np.flatnonzero(span > 0.5)
        if not len(open_):
            return low
        span = span[open_]
        below = self.tree[:, open_]
        touched = np.diff(below.indptr) > 0
        left_w = (self.limit_w - self.tree @ low)[touched]
        below = below[touched]
        # node by node, piece after piece: what a piece is worth falls along the way, so the optimum fills them in order
        worth = 1.0 - (np.arange(PIECES) + 0.5) / PIECES
        scale_w = 1e3  # kilowatts: coefficients near one
        matrix = self._sparse.kron(below.multiply(span / scale_w), np.ones((1, PIECES)), format="csr")
        found = self._linprog(
            -np.kron(span / span.mean(), worth),
            A_ub=matrix,
            b_ub=np.maximum(left_w, 0.0) / scale_w,
            bounds=(0.0, 1.0 / PIECES),
            method="highs",
        )
        if not found.success:
            raise ValueError(f"the allocation has no solution: {found.message}")
        out = low.copy()
        out[open_] += span * found.x.reshape(-1, PIECES).sum(-1)
        return out
