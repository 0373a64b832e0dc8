"""Working memory of one settlement: rows of a few plain arrays, reused for every environment of a batch."""

from typing import NamedTuple

import numpy as np

from ..topology import Fleet

# rows of Scratch.node, int64 per node
LO, HI, CAP_MAX, CHARGE, ALLOWED, CAP, BOUND, KIND, FRESH, WISH, FLOOR, TARGET, STAGE_BEFORE, SPARE = range(14)
CEILING, BEFORE = 14, 15  # of a tree filling: caps of the last sweep, and `hi` as it was
IS_APART, CAP_BEFORE, RESEND = 16, 17, 18  # counts apart from its cap; the last command; whether to say it again
PARKS = 19  # of fallbacks: what a node does when its lease expires
NODE_ROWS = 20
# rows of Scratch.weight, float64 per node
BID_WEIGHT, EQUAL_WEIGHT = range(2)
# rows of Scratch.domain, int64 per domain
AVAILABLE, RESERVE, FALLBACK_AVAILABLE, EMERGENCY, FALLBACK_LIMIT, TAKEN = range(6)
# rows of Scratch.tree, int64 per domain
START, END, PARENT, MISFIT = range(4)
# rows of Scratch.pool, float64 per pool
FACTOR, NODES_BID, CLOCK_BID, COMMANDED, SERVING, UTIL_SUM, UTIL_COUNT, BAD, USABLE_PARKED, SIZE, CURSOR = range(11)

NEAR_W = 16
"""Left-over watts that are handed out watt by watt rather than by finding a better level."""

# What a node counts as in a settlement.
FREE, SILENT, HELD, PARKING, MOVING, DOWN, DRAINED = range(7)


class Scratch(NamedTuple):
    """Arrays that a settlement writes before it reads them; their content means nothing between calls."""

    node: np.ndarray  # (NODE_ROWS, N) int64
    weight: np.ndarray  # (2, N) float64
    domain: np.ndarray  # (6, D) int64
    level: np.ndarray  # (D,) float64
    guess: np.ndarray  # (D,) float64
    tree: np.ndarray  # (4, D) int64
    total: np.ndarray  # (2, N + 1) int64: running sums over nodes
    cut: np.ndarray  # (2, D) int64: what the limits below a domain cut off
    pool: np.ndarray  # (11, P) float64
    top: np.ndarray  # (N + 1,) int64: the largest jumps of a domain
    count: np.ndarray  # (2, N) int64: per failure domain
    threshold: np.ndarray  # (N,) float64
    threshold_bits: np.ndarray  # (N,) int64: the same memory, read as whole numbers
    first: np.ndarray  # (NEAR_W,) float64
    who: np.ndarray  # (NEAR_W,) int64


def scratch_of(nodes: int, domains: int, pools: int) -> Scratch:
    """Working memory for sizes."""
    threshold = np.empty(nodes, np.float64)
    return Scratch(
        node=np.empty((NODE_ROWS, nodes), np.int64),
        weight=np.empty((2, nodes), np.float64),
        domain=np.empty((6, domains), np.int64),
        level=np.empty(domains, np.float64),
        guess=np.empty(domains, np.float64),
        tree=np.empty((4, domains), np.int64),
        total=np.empty((2, nodes + 1), np.int64),
        cut=np.empty((2, domains), np.int64),
        pool=np.empty((11, pools), np.float64),
        top=np.empty(nodes + 1, np.int64),
        count=np.empty((2, nodes), np.int64),
        threshold=threshold,
        threshold_bits=threshold.view(np.int64),
        first=np.empty(NEAR_W, np.float64),
        who=np.empty(NEAR_W, np.int64),
    )


def make_scratch(fleet: Fleet) -> Scratch:
    """Working memory for any batch of one fleet; not to be shared between threads."""
    return scratch_of(len(fleet.nodes), len(fleet.domains), fleet.pools)
