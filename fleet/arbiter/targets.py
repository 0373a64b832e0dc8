"""Target caps: those that fill every domain with what its limit allows."""

import numpy as np

from ..tables import DECODE
from .compiled import kernel
from .kinds import decode_floor
from .limits import SAVE_FRAC
from .scratch import (
    AVAILABLE,
    BID_WEIGHT,
    BOUND,
    CAP_BEFORE,
    CAP_MAX,
    EMERGENCY,
    END,
    FLOOR,
    FREE,
    HI,
    KIND,
    LO,
    MISFIT,
    RESERVE,
    SPARE,
    START,
    TARGET,
    WISH,
)
from .shedding import shed
from .state import BANK_FRAC
from .tree_filling import fill_tree, find_misfits
from .water_filling import charge_of, fill_domain

UNSHED_MARGIN = 0.02
"""A node parked by shedding returns when this share of a domain's watts stays free above all floors."""


@kernel
def fits_above(d, row, domain_static, node, domain, top, margin):
    """True if a row of caps fits every domain from `d` up to the root, with a share of each left free."""
    while d >= 0:
        static = domain_static[d]
        available_w = domain[AVAILABLE, d]
        charge_w = charge_of(
            node[row, static.node_start : static.node_end],
            node[CAP_MAX, static.node_start : static.node_end],
            domain[RESERVE, d],
            top,
        )
        if charge_w > available_w - np.int64(margin * max(available_w, 0)):
            return False
        d = static.parent
    return True


@kernel
def drop_wishes(node_static, domain_static, service_static, st_node, node, domain, top):
    """Forget wishes to leave parking that the floors above them leave no room for."""
    for i in range(len(node_static)):
        if node[WISH, i] >= 0:
            margin = UNSHED_MARGIN if st_node[i].shed_from > 0 else 0.0
            # it will need the floor of the stage that it goes to, not only the smallest cap
            static = node_static[i]
            node[LO, i] = decode_floor(static, service_static) if node[WISH, i] == DECODE else static.cap_min_w
            if fits_above(static.domain, LO, domain_static, node, domain, top, margin):
                node[LO, i] = static.cap_min_w
            else:
                node[WISH, i] = -1
                node[LO, i] = static.parked_max_w
                node[HI, i] = static.parked_max_w


@kernel
def save_watts(spend, domain_static, st_domain, node, domain, top):
    """Lower what windows leave for a saving bid (`spend` < 0), never below the floors: nobody is shed to save."""
    for d in range(len(domain_static)):
        static = domain_static[d]
        if static.mean_w <= 0 or st_domain[d].bank_ws < 0.0:
            continue
        bounds_w = static.unmanaged_w + static.non_gpu_max_w
        saved_w = np.int64((1.0 - BANK_FRAC) * static.mean_w * (1.0 + SAVE_FRAC * spend)) - bounds_w
        if saved_w < domain[AVAILABLE, d]:
            start, end = static.node_start, static.node_end
            floors_w = charge_of(node[LO, start:end], node[CAP_MAX, start:end], domain[RESERVE, d], top)
            domain[AVAILABLE, d] = min(domain[AVAILABLE, d], max(saved_w, floors_w))


@kernel
def fill_with_floors(node_static, domain_static, service_static, st_node, st_domain, scratch):
    """Fill the tree where floors do not fit: shed, and start over from the full ranges.

    Returns:
        The `fleet.plan.Shed` level reached.
    """
    node, domain, level = scratch.node, scratch.domain, scratch.level
    shed_level = 0
    domain[EMERGENCY] = 0
    is_settled = False
    while not is_settled:
        is_settled = True
        for d in range(len(domain_static) - 1, -1, -1):
            static = domain_static[d]
            start, end = static.node_start, static.node_end
            level[d] = fill_domain(
                d,
                domain[AVAILABLE, d],
                st_domain[d].level,
                scratch.weight[BID_WEIGHT, start:end],
                node[LO, start:end],
                node[HI, start:end],
                node[CAP_MAX, start:end],
                node[BOUND, start:end],
                domain[RESERVE, d],
                scratch,
            )
            if level[d] == np.inf:
                continue
            st_domain[d].level = level[d]
            shed_level = max(shed_level, 1)
            if level[d] >= 0.0:
                continue
            if domain[EMERGENCY, d] == 0:
                # floors change below this domain: start over from the full ranges, once per domain
                reached = shed(d, node_static, domain_static, service_static, st_node, scratch)
                shed_level = max(shed_level, reached)
                for i in range(len(node_static)):
                    node[BOUND, i] = -1
                    if node[KIND, i] == FREE:
                        node[HI, i] = node_static[i].cap_max_w
                is_settled = False
                break
            level[d] = 0.0
            for i in range(start, end):
                if node[LO, i] < node[HI, i]:
                    node[HI, i] = node[LO, i]
                    node[BOUND, i] = d
    return shed_level


@kernel
def set_targets(node_static, domain_static, service_static, st_node, st_domain, scratch):
    """Fill the tree; the targets end in the TARGET row.

    Returns:
        The `fleet.plan.Shed` level reached.
    """
    node, level, guess = scratch.node, scratch.level, scratch.guess
    if find_misfits(node[LO], scratch) > 0:
        shed_level = fill_with_floors(node_static, domain_static, service_static, st_node, st_domain, scratch)
    else:
        shed_level = 0
        for d in range(len(domain_static)):
            guess[d] = st_domain[d].level
        fill_tree(guess, scratch.weight[BID_WEIGHT], node[LO], node[HI], node[BOUND], level, scratch)
        for d in range(len(domain_static)):
            if level[d] < np.inf:
                st_domain[d].level = level[d]
                shed_level = 1
    for i in range(len(node_static)):
        node[TARGET, i] = node[HI, i]
    return shed_level


@kernel
def hold_targets(deadband_w, scratch):
    """Leave caps as they are where the target is hardly another: a write costs more than it brings.

    A cap is held above its target only where every domain that feeds the node has the watts for it.
    """
    node, domain = scratch.node, scratch.domain
    kind, target, before, spare, floor = node[KIND], node[TARGET], node[CAP_BEFORE], node[SPARE], node[FLOOR]
    held = 0
    for i in range(len(target)):
        target_w, cap_w = target[i], before[i]
        is_close = (abs(target_w - cap_w) < deadband_w) & (target_w != cap_w)
        is_kept = is_close & (kind[i] == FREE) & (cap_w >= floor[i])
        spare[i] = cap_w if is_kept else target_w
        held += is_kept
    if held == 0:
        return
    if find_misfits(spare, scratch) > 0:
        for d in range(domain.shape[1] - 1, -1, -1):
            start, end = scratch.tree[START, d], scratch.tree[END, d]
            if scratch.tree[MISFIT, d] == 0:
                continue
            charge_w = charge_of(spare[start:end], node[CAP_MAX, start:end], domain[RESERVE, d], scratch.top)
            if charge_w > domain[AVAILABLE, d]:
                for i in range(start, end):
                    spare[i] = min(spare[i], target[i])
    for i in range(len(target)):
        target[i] = spare[i]
