"""Water-filling of a whole power tree: find the domains that bind at the root's level, and fill only those.

Filling every domain, children first, is exact (`water_filling`) and wasteful: where the root binds, most of the
caps that its descendants work out watt by watt are lowered again. The greedy order of the increments makes the
caps of a tree those of the root's filling with, below it, only the domains that would not fit otherwise: a limit
that the others' result satisfies changes nothing.

So a level `ceiling` is sought first at which the root does not fit, but hardly: a sweep of the tree at a level
adds up the caps node by node (prefix sums: the nodes of a domain lie side by side) and clamps every domain at its
limit. No node gets more than its cap at the ceiling, so caps are lowered to it before anything is filled, and a
domain that fits then is done. The ceiling is proved afterwards: if the root still does not fit, it was one.
"""

import numpy as np

from .compiled import kernel
from .scratch import AVAILABLE, BEFORE, CAP_MAX, CEILING, END, MISFIT, PARENT, RESERVE, START
from .water_filling import charge_at, charge_of, fill_domain, reserve_of

TOP_LEVEL = 1e9
"""A level at which every node reaches its largest cap: weights are at least 1."""

NO_LEVEL = np.inf
"""Stands for "nothing binds"."""

CLOSE_FRAC = 0.02
"""A ceiling is close enough when the root exceeds its limit by less than this share."""

APPROACH_STEPS, CEILING_STEPS = 8, 6
FALL, RISE = 0.7, 2.0
"""Factors by which the search moves on where no node moves."""

FARTHEST_FALL, FARTHEST_RISE = 0.4, 4.0
"""Factors beyond which no step goes: where most nodes are at an end of their range a line says little."""


@kernel
def read_tree(domain_static, tree):
    """Copy what a sweep needs of the domains into contiguous rows."""
    for d in range(len(domain_static)):
        tree[START, d] = domain_static[d].node_start
        tree[END, d] = domain_static[d].node_end
        tree[PARENT, d] = domain_static[d].parent


@kernel
def add_up(row, total):
    """Write the sum of the first i values of a row into total[i]."""
    s = 0
    total[0] = 0
    for i in range(len(row)):
        s += row[i]
        total[i + 1] = s


@kernel
def find_misfits(row, scratch):
    """Mark the domains that a row of caps does not fit in the MISFIT row.

    Returns:
        Their number.
    """
    available, reserve = scratch.domain[AVAILABLE], scratch.domain[RESERVE]
    starts, ends, misfit, total = scratch.tree[START], scratch.tree[END], scratch.tree[MISFIT], scratch.total[0]
    add_up(row, total)
    count = 0
    for d in range(len(available)):
        is_misfit = total[ends[d]] - total[starts[d]] > available[d]
        misfit[d] = is_misfit
        count += is_misfit
    for d in range(len(available)):
        if reserve[d] > 0 and misfit[d] == 0:
            start, end = starts[d], ends[d]
            more_w = reserve_of(row[start:end], scratch.node[CAP_MAX, start:end], reserve[d], scratch.top)
            if total[end] - total[start] + more_w > available[d]:
                misfit[d] = 1
                count += 1
    return count


@kernel
def clamp(cap, lo, hi, scratch):
    """Clamp what the nodes of every domain below the root are charged with at its limit, children first.

    Writes what that takes off a domain's charge, and off the part of it that moves with the level, into `cut`.
    """
    domain, tree, total, cut = scratch.domain, scratch.tree, scratch.total, scratch.cut
    moving = 0
    total[1, 0] = 0
    for i in range(len(cap)):
        moving += cap[i] if lo[i] < cap[i] < hi[i] else 0
        total[1, i + 1] = moving
    for d in range(domain.shape[1]):
        cut[0, d] = 0
        cut[1, d] = 0
    for d in range(domain.shape[1] - 1, 0, -1):
        start, end, parent = tree[START, d], tree[END, d], tree[PARENT, d]
        over_w, still = cut[0, d], cut[1, d]
        charge_w = total[0, end] - total[0, start] - over_w
        if charge_w > domain[AVAILABLE, d]:
            tree[MISFIT, d] = 1
            over_w += charge_w - domain[AVAILABLE, d]
            still = total[1, end] - total[1, start]
        cut[0, parent] += over_w
        cut[1, parent] += still


@kernel
def sweep(level, weight, lo, hi, cap, scratch):
    """Write the caps of a level into `cap`, and mark the domains that they do not fit in the MISFIT row.

    A domain with a reserve is always marked, as only its filling knows what the reserve costs.

    Returns:
        What the root's nodes are charged with every domain below clamped at its limit; and of a straight line
        that leads on from here the same and the part of it that moves with the level.
    """
    available, reserve = scratch.domain[AVAILABLE], scratch.domain[RESERVE]
    starts, ends, misfit, total = scratch.tree[START], scratch.tree[END], scratch.tree[MISFIT], scratch.total[0]
    charged, moving = 0, 0
    for i in range(len(cap)):
        c = min(hi[i], max(lo[i], np.int64(level * weight[i])))
        cap[i] = c
        charged += c
        moving += c if lo[i] < c < hi[i] else 0
    # what a reserve costs is not less where limits below clamp the caps: a ceiling stays one
    reserve_w = reserve_of(cap, scratch.node[CAP_MAX], reserve[0], scratch.top)
    add_up(cap, total)
    count = 0
    for d in range(1, len(available)):
        misfit[d] = reserve[d]
        count += total[ends[d]] - total[starts[d]] > available[d]
    misfit[0] = 1
    clamped_w, still_moving_w = charged + reserve_w, moving
    if count > 0:
        clamp(cap, lo, hi, scratch)
        clamped_w -= scratch.cut[0, 0]
        still_moving_w -= scratch.cut[1, 0]
    if still_moving_w <= 0:  # every node moves below a limit: step as if there were none
        return clamped_w, charged + reserve_w, moving
    return clamped_w, clamped_w, still_moving_w


@kernel(inline=True)
def _step(level, over_w, moving):
    """Where a straight line of slope `moving` meets the limit; a factor further on where no node moves."""
    if moving > 0.0:
        return min(max(level - over_w / moving, FARTHEST_FALL * level), FARTHEST_RISE * level)
    return level * (FALL if over_w > 0 else RISE)


@kernel
def find_ceiling(guess, weight, lo, hi, scratch):
    """Look for a level at which the root hardly does not fit; its caps and misfits are those of the last sweep.

    Returns:
        The level, `TOP_LEVEL` when none was found, `NO_LEVEL` when `hi` fits every domain; and a guess at the root's
        own.
    """
    available_w = scratch.domain[AVAILABLE, 0]
    cap, cap_max = scratch.node[CEILING], scratch.node[CAP_MAX]
    if charge_of(hi, cap_max, scratch.domain[RESERVE, 0], scratch.top) <= available_w:
        if find_misfits(hi, scratch) > 0:
            sweep(TOP_LEVEL, weight, lo, hi, cap, scratch)
            return TOP_LEVEL, guess
        return NO_LEVEL, guess
    x = guess if 0.0 < guess < TOP_LEVEL else 1.0
    low, high = 0.0, TOP_LEVEL
    for _ in range(APPROACH_STEPS):  # as if only the root had a limit: cheap, and never above the root's level
        charge_w, moving = charge_at(x, weight, lo, hi, cap_max, scratch.domain[RESERVE, 0], scratch.top)
        over_w = charge_w - available_w
        if abs(over_w) <= 0.25 * CLOSE_FRAC * available_w:
            break
        low, high = (low, x) if over_w > 0 else (x, high)
        x = _step(x, over_w, moving)
        if not low < x < high:
            x = 0.5 * (low + high)
    x *= 1.0 + 0.5 * CLOSE_FRAC
    for _ in range(CEILING_STEPS):
        if not 0.0 < x < TOP_LEVEL:
            break
        charge_w, line_w, moving_w = sweep(x, weight, lo, hi, cap, scratch)
        if available_w < charge_w <= (1.0 + CLOSE_FRAC) * available_w:
            return x, _step(x, line_w - available_w, moving_w / x)
        x = _step(x, line_w - (1.0 + 0.5 * CLOSE_FRAC) * available_w, moving_w / x)
    sweep(TOP_LEVEL, weight, lo, hi, cap, scratch)
    return TOP_LEVEL, guess


@kernel
def fill_marked(weight, lo, hi, bound, guess, level, scratch):
    """Fill the domains marked in the MISFIT row, children first; the others do not bind."""
    domain, tree = scratch.domain, scratch.tree
    for d in range(len(level)):
        level[d] = np.inf
    for d in range(len(level) - 1, -1, -1):
        if tree[MISFIT, d] != 0:
            start, end = tree[START, d], tree[END, d]
            level[d] = fill_domain(
                d, domain[AVAILABLE, d], guess[d], weight[start:end], lo[start:end], hi[start:end],
                scratch.node[CAP_MAX, start:end], bound[start:end], domain[RESERVE, d], scratch,
            )  # fmt: skip


@kernel
def fill_tree(guess, weight, lo, hi, bound, level, scratch):
    """Lower `hi` in place to the largest caps that fit every domain; `lo` must fit every one of them.

    Args:
        guess: Levels near the answer, shape (D,); 0 for none; overwritten.
        weight: Weights, shape (N,), at least 1.
        lo: Smallest caps, shape (N,), watts.
        hi: Largest caps, shape (N,), watts; the result.
        bound: Index of the domain that bound each node, shape (N,); written where one does.
        level: Written, shape (D,): the level of every domain that binds, infinity elsewhere.
        scratch: Working rows; AVAILABLE and RESERVE are read.
    """
    before, cap = scratch.node[BEFORE], scratch.node[CEILING]
    ceiling, guess[0] = find_ceiling(guess[0], weight, lo, hi, scratch)
    if ceiling == NO_LEVEL:
        for d in range(len(level)):
            level[d] = np.inf
        return
    for i in range(len(hi)):
        before[i] = hi[i]
        if cap[i] < hi[i]:
            hi[i] = cap[i]
            bound[i] = 0
    fill_marked(weight, lo, hi, bound, guess, level, scratch)
    if ceiling < TOP_LEVEL and level[0] == np.inf:  # reserves below the root can make it fit after all: no ceiling
        for i in range(len(hi)):
            hi[i] = before[i]
            bound[i] = -1
        sweep(TOP_LEVEL, weight, lo, hi, cap, scratch)
        fill_marked(weight, lo, hi, bound, guess, level, scratch)
