"""What can be commanded now: raises out of released watts.

Lower commands go out at once; raises come only from watts whose release was acknowledged, so the sum of what is
*possible* never rises above a limit.
"""

import numpy as np

from .compiled import kernel
from .scratch import (
    ALLOWED,
    AVAILABLE,
    BID_WEIGHT,
    BOUND,
    CAP_BEFORE,
    CHARGE,
    HELD,
    HI,
    IS_APART,
    KIND,
    LO,
    MISFIT,
    PARKING,
    SILENT,
    SPARE,
    TARGET,
    WISH,
)
from .state import NO_LIMIT_W
from .targets import fits_above
from .tree_filling import fill_tree, find_misfits

START_BELOW = 0.8
"""Raises are sought from this share of the level of the targets: at that level itself nobody rises any more."""


@kernel
def level_above(d, domain_static, level):
    """The level that binds nodes of a domain: the lowest on the way to the root, infinity for none."""
    lowest = np.inf
    while d >= 0:
        lowest = min(lowest, level[d])
        d = domain_static[d].parent
    return lowest


@kernel
def mark_levels(node, weight, level):
    """Turn the levels into what the caps alone say: where the next watt of a domain's nodes would go.

    A search ends at any level of the range that means the same caps; silent nodes are asked for the same share
    whichever it was. A domain whose floors do not fit stays at 0.
    """
    for d in range(len(level)):
        if level[d] != 0.0:
            level[d] = np.inf
    for i in range(node.shape[1]):
        d = node[BOUND, i]
        if d >= 0:
            level[d] = min(level[d], (node[HI, i] + 1) / weight[i])


@kernel
def set_allowed(dt_s, node_static, domain_static, fleet, node, weight, level):
    """Turn targets into the caps that could be commanded now (ALLOWED), before asking whether watts are free."""
    ramp_w = np.int64(fleet.raise_w_per_s * dt_s)
    kind, before, target, allowed = node[KIND], node[CAP_BEFORE], node[TARGET], node[ALLOWED]
    others = 0
    for i in range(len(kind)):
        allowed[i] = min(target[i], before[i] + ramp_w)
        others += (kind[i] == SILENT) | (kind[i] == HELD) | (kind[i] == PARKING)
    if others == 0:
        return
    is_marked = False
    for i in range(len(kind)):
        if kind[i] in (SILENT, HELD):
            if not is_marked:
                mark_levels(node, weight[BID_WEIGHT], level)
                is_marked = True
            cap_w = before[i]
            lowest = level_above(node_static[i].domain, domain_static, level)
            if lowest < np.inf:
                share_w = np.int64(lowest * weight[BID_WEIGHT, i])
                cap_w = min(cap_w, max(share_w, node_static[i].cap_min_w))
            allowed[i] = cap_w
        elif kind[i] == PARKING:
            allowed[i] = node_static[i].cap_min_w


@kernel
def grant(wishes, node_static, domain_static, st_node, scratch):
    """Grant raises out of released watts: lower ALLOWED to what can be commanded now.

    Wishes to leave parking come first: they were waited for, and others were lowered for them. Where what is
    possible already exceeds a limit, nothing below that limit is raised.

    Args:
        wishes: At least the number of nodes that wish to leave parking.

    Returns:
        Nodes that leave parking now.
    """
    node, domain, top = scratch.node, scratch.domain, scratch.top
    charge, allowed, lo, hi = node[CHARGE], node[ALLOWED], node[LO], node[HI]
    is_apart, wish = node[IS_APART], node[WISH]
    leaving = 0
    n = len(node_static)
    for i in range(n if wishes > 0 else 0):
        if node[WISH, i] >= 0:
            parked_w = node[CHARGE, i]
            node[CHARGE, i] = max(st_node[i].cap_possible_w, node[ALLOWED, i])
            if fits_above(node_static[i].domain, CHARGE, domain_static, node, domain, top, 0.0):
                leaving += 1
            else:
                node[CHARGE, i] = parked_w
                node[WISH, i] = -1
    for i in range(n):
        lo[i] = charge[i]
        # a parked node counts at its bound for parking, whatever its cap, and so does one that fell silent parked
        hi[i] = max(charge[i] if is_apart[i] != 0 else allowed[i], charge[i])
    if find_misfits(node[LO], scratch) > 0:
        for d in range(len(domain_static)):
            if scratch.tree[MISFIT, d] != 0:
                domain[AVAILABLE, d] = NO_LIMIT_W  # all below it is fixed: it has no more to say
                for i in range(domain_static[d].node_start, domain_static[d].node_end):
                    node[HI, i] = node[LO, i]
                    # not even within what is possible for it: its release is what everybody waits for
                    node[ALLOWED, i] = min(node[ALLOWED, i], node[CAP_BEFORE, i])
    for d in range(len(domain_static)):
        scratch.guess[d] = START_BELOW * scratch.level[d]
    fill_tree(scratch.guess, scratch.weight[BID_WEIGHT], node[LO], node[HI], node[SPARE], scratch.level, scratch)
    for i in range(n):
        is_granted = (is_apart[i] == 0) | (wish[i] >= 0)
        allowed[i] = min(hi[i], allowed[i]) if is_granted else allowed[i]
    return leaving
