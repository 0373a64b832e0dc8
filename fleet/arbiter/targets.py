"""Target caps: the range of every node, and the caps that fill every domain with what its limit allows."""

import numpy as np

from ..tables import DECODE, PARKED, TRAINING
from .compiled import kernel
from .limits import SAVE_FRAC
from .scratch import (
    AVAILABLE,
    BID_WEIGHT,
    BOUND,
    CAP_MAX,
    CHARGE,
    DOWN,
    DRAINED,
    EMERGENCY,
    END,
    FLOOR,
    FREE,
    FRESH,
    HELD,
    HI,
    KIND,
    LO,
    MISFIT,
    MOVING,
    PARKING,
    RESERVE,
    SILENT,
    SPARE,
    START,
    TARGET,
    WISH,
)
from .shedding import shed
from .state import BANK_FRAC
from .tree_filling import fill_tree, find_misfits
from .water_filling import charge_of, fill_domain, push_top

UNSHED_MARGIN = 0.02
"""A node parked by shedding returns when this share of a domain's watts stays free above all floors."""


@kernel
def classify(node_static, fleet, sn_node, st_node, node):
    """Say what every node counts as, and what it is charged at now.

    A silent node is charged at what was possible for it before, and the reserve for the rest (`set_reserves`).

    Returns:
        The number of silent nodes.
    """
    silent = 0
    for i in range(len(node_static)):
        st, sn = st_node[i], sn_node[i]
        if sn.is_silent != 0:
            kind = SILENT
            silent += 1
        elif node[FRESH, i] == 0 or st.unacked_s > fleet.lease_ttl_s:
            kind = HELD
        elif st.stage_cmd == PARKED:
            kind = PARKING
        elif st.is_drained != 0:
            kind = DRAINED
        elif sn.is_up == 0:
            kind = DOWN
        elif sn.stage != st.stage_cmd or sn.moving_s > 0.0:
            kind = MOVING
        else:
            kind = FREE
        node[KIND, i] = kind
        node[CAP_MAX, i] = node_static[i].cap_max_w
        charge_w = node_static[i].parked_max_w if st.is_parked != 0 else st.cap_possible_w
        node[CHARGE, i] = st.silent_w if kind == SILENT else charge_w
    return silent


@kernel
def set_reserves(silent, domain_static, node, domain, top):
    """Write how many nodes the reserve of each domain stands for, and take what it cannot cover from its watts.

    Any `unknown_reserve` nodes may be unknown at once, and others as soon as these are known again. So the reserve
    stays whole while nodes are silent: a silent node is one of those that it stands for. Silent nodes beyond it
    count at their maximum; the reserve stands for those with the largest distances to it.
    """
    for d in range(len(domain_static)):
        static = domain_static[d]
        start, end = static.node_start, static.node_end
        reserve = min(static.unknown_reserve, end - start)
        domain[RESERVE, d] = reserve
        if silent <= reserve:
            continue
        count, above_w = 0, 0
        for j in range(reserve):
            top[j] = 0
        for i in range(start, end):
            if node[KIND, i] == SILENT:
                count += 1
                above_w += node[CAP_MAX, i] - node[CHARGE, i]
                if reserve > 0:
                    push_top(top, reserve, node[CAP_MAX, i] - node[CHARGE, i])
        if count > reserve:
            for j in range(reserve):
                above_w -= top[j]
            domain[AVAILABLE, d] -= above_w


@kernel(inline=True)
def decode_floor(static, service_static):
    """Smallest cap of a node that serves decode: latency collapses below it; a training gang only slows down."""
    if service_static[static.service].kind == TRAINING:
        return static.cap_min_w
    return max(static.cap_min_w, static.decode_floor_w)


@kernel
def bound_targets(node_static, domain, domain_static, service_static, st_node, node):
    """Write the range of every node's target cap.

    Nodes that may not obey count at what they may be running. A parked node counts at its bound for parking;
    one that was not yet seen parked at its smallest cap, unless floors do not fit.
    """
    for i in range(len(node_static)):
        kind, static = node[KIND, i], node_static[i]
        lo, hi = static.cap_min_w, static.cap_min_w
        if kind in (SILENT, HELD):
            lo = hi = node[CHARGE, i]
            if kind == HELD and st_node[i].hold_s > 0.0:
                # nobody is shed for watts that the firmware's lag alone still holds
                lo = hi = min(node[CHARGE, i], st_node[i].settling_w)
        elif kind == PARKING:
            if node[WISH, i] < 0 and st_node[i].is_parked != 0:
                lo = hi = static.parked_max_w
        elif kind == FREE:
            hi = static.cap_max_w
            if st_node[i].stage_cmd == DECODE:
                lo = min(decode_floor(static, service_static), hi)
        node[FLOOR, i] = lo
        node[LO, i] = lo
        node[HI, i] = hi
        node[BOUND, i] = -1
    for d in range(len(domain_static)):
        domain[EMERGENCY, d] = 0


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
def hold_targets(deadband_w, domain_static, st_node, scratch):
    """Leave caps as they are where the target is hardly another: a write costs more than it brings.

    A cap is held above its target only where every domain that feeds the node has the watts for it.
    """
    node, domain = scratch.node, scratch.domain
    n = len(st_node)
    is_held = False
    for i in range(n):
        target_w, cap_w = node[TARGET, i], st_node[i].cap_cmd_w
        is_close = (abs(target_w - cap_w) < deadband_w) & (target_w != cap_w)
        is_kept = is_close & (node[KIND, i] == FREE) & (cap_w >= node[FLOOR, i])
        node[SPARE, i] = cap_w if is_kept else target_w
        is_held |= is_kept
    if not is_held:
        return
    if find_misfits(node[SPARE], scratch) > 0:
        for d in range(len(domain_static) - 1, -1, -1):
            start, end = scratch.tree[START, d], scratch.tree[END, d]
            if scratch.tree[MISFIT, d] == 0:
                continue
            charge_w = charge_of(node[SPARE, start:end], node[CAP_MAX, start:end], domain[RESERVE, d], scratch.top)
            if charge_w > domain[AVAILABLE, d]:
                for i in range(start, end):
                    node[SPARE, i] = min(node[SPARE, i], node[TARGET, i])
    for i in range(n):
        node[TARGET, i] = node[SPARE, i]
