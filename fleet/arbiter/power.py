"""Two-phase caps: what a node may draw, what it should get, and what it can be given now.

Target caps fill every domain with what its limit allows. Lower commands go out at once; raises come only from
watts whose release was acknowledged, so the sum of what is *possible* never rises above a limit.

What is possible. `cap_possible_w` is the largest cap that a node may be running. A command joins it when it is
sent. When the agent reads back a sequence at or above `wait_seq`, every older command is dead: after the
firmware's lag the node may run the cap that was read back or any command sent after `wait_seq` (`since_w`), and
nothing else. `wait_seq` then moves to the newest sequence, so a node whose command changes at every tick is
released as fast as one whose command stands still. A node that reads back more than the very command that it
acknowledges cannot obey (a GPU that nobody reaches any more): it counts at its read-back until it does. A node
that was silent may have rebooted: its maximum is possible until it is heard again.
"""

import numpy as np

from ..tables import DECODE, PARKED, STAGES, UNKNOWN_W
from .compiled import kernel
from .scratch import (
    ALLOWED,
    AVAILABLE,
    BID_WEIGHT,
    BOUND,
    CAP_MAX,
    CHARGE,
    CURSOR,
    DOWN,
    DRAINED,
    EMERGENCY,
    EQUAL_WEIGHT,
    FALLBACK_AVAILABLE,
    FLOOR,
    FREE,
    FRESH,
    HELD,
    HI,
    KIND,
    LO,
    MOVING,
    PARKING,
    RESERVE,
    SILENT,
    SIZE,
    SPARE,
    TARGET,
    WISH,
)
from .water_filling import charge_of, fill_domain

UNSHED_MARGIN = 0.02
"""A node parked by shedding returns when this share of a domain's watts stays free above all floors."""


@kernel
def acknowledge(static, sn, st, is_fresh, hold_step_s, firmware_lag_s, lease_ttl_s):
    """Advance one node's record of what it may be running by what its telemetry says."""
    is_silent = sn.is_silent != 0
    if is_silent:
        st.cap_possible_w = max(st.cap_possible_w, static.cap_max_w)
        st.hold_s = 0.0
        st.is_parked = 0
        st.unacked_s = 0.0
        return
    if st.hold_s > 0.0:
        st.hold_s -= hold_step_s
        if not st.hold_s > 0.0:
            st.hold_s = 0.0
            st.cap_possible_w = st.settling_w
    if not is_fresh:
        return
    if st.stage_cmd == PARKED and sn.stage == PARKED and not sn.moving_s > 0.0 and sn.ack_seq >= st.seq:
        st.is_parked = 1
    elif sn.stage != PARKED:
        st.is_parked = 0
    has_answered = sn.ack_seq >= st.wait_seq
    if sn.ack_seq >= st.seq and sn.cap_w > st.cap_cmd_w:
        st.unacked_s = max(st.unacked_s, lease_ttl_s + hold_step_s)  # it cannot obey: held from now on
    elif not has_answered:
        st.unacked_s += hold_step_s
    elif st.unacked_s <= lease_ttl_s or sn.cap_w <= st.cap_cmd_w:
        st.unacked_s = 0.0
    if sn.ack_seq >= st.seq:
        st.fallback_possible_w = st.fallback_w
    if sn.cap_w == UNKNOWN_W:  # an inconclusive read changes nothing
        return
    if sn.cap_w > st.cap_possible_w:  # rebooted, or another writer
        st.cap_possible_w = sn.cap_w
        st.hold_s = 0.0
    if st.hold_s > 0.0:
        st.settling_w = max(st.settling_w, sn.cap_w)
        return
    if has_answered:
        possible_w = max(max(sn.cap_w, st.since_w), st.cap_cmd_w)
        st.wait_seq = st.seq
        st.since_w = 0
        if possible_w < st.cap_possible_w:
            if firmware_lag_s > 0.0:
                st.settling_w = possible_w
                st.hold_s = firmware_lag_s
            else:
                st.cap_possible_w = possible_w


@kernel
def command_cap(st, cap_w, fallback_w, is_changed):
    """Record a command; the sequence rises only when something in it changed."""
    if is_changed or cap_w != st.cap_cmd_w or fallback_w != st.fallback_w:
        st.seq += 1
        st.since_w = max(st.since_w, cap_w)
    st.cap_cmd_w = cap_w
    st.fallback_w = fallback_w
    st.cap_possible_w = max(st.cap_possible_w, cap_w)
    st.fallback_possible_w = max(st.fallback_possible_w, fallback_w)
    if st.hold_s > 0.0:
        st.settling_w = max(st.settling_w, cap_w)


@kernel
def classify(node_static, fleet, sn_node, st_node, node):
    """Say what every node counts as, and what it is charged at now."""
    for i in range(len(node_static)):
        st, sn = st_node[i], sn_node[i]
        if sn.is_silent != 0:
            kind = SILENT
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
        node[CHARGE, i] = node_static[i].parked_max_w if st.is_parked != 0 else st.cap_possible_w


@kernel
def set_reserves(domain_static, node, domain):
    """Nodes that may still jump per domain: the reserve less those that already count at their maximum."""
    for d in range(len(domain_static)):
        static = domain_static[d]
        reserve = static.unknown_reserve
        if reserve > 0:
            for i in range(static.node_start, static.node_end):
                if node[KIND, i] == SILENT:
                    reserve -= 1
        domain[RESERVE, d] = max(0, min(reserve, static.node_end - static.node_start))


@kernel
def bound_targets(node_static, domain, domain_static, st_node, node):
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
                lo = max(static.cap_min_w, min(static.decode_floor_w, hi))
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
def drop_wishes(node_static, domain_static, st_node, node, domain, top):
    """Forget wishes to leave parking that the floors above them leave no room for."""
    for i in range(len(node_static)):
        if node[WISH, i] >= 0:
            margin = UNSHED_MARGIN if st_node[i].shed_from > 0 else 0.0
            # it will need the floor of the stage that it goes to, not only the smallest cap
            static = node_static[i]
            node[LO, i] = max(static.cap_min_w, static.decode_floor_w) if node[WISH, i] == DECODE else static.cap_min_w
            if fits_above(static.domain, LO, domain_static, node, domain, top, margin):
                node[LO, i] = static.cap_min_w
            else:
                node[WISH, i] = -1
                node[LO, i] = static.parked_max_w
                node[HI, i] = static.parked_max_w


@kernel
def next_to_park(end, keep_minimum, node_static, service_static, st_node, node, pool):
    """Next node to park: lowest priority, then the larger pool, then the lowest id; -1 for none."""
    while True:
        best = -1
        for p in range(pool.shape[1]):
            if pool[CURSOR, p] >= end:
                continue
            service = service_static[p // STAGES]
            at_least = service.min_decode_nodes if p % STAGES == DECODE else service.min_prefill_nodes
            if keep_minimum and pool[SIZE, p] - 1 < at_least:
                continue
            if best >= 0:
                priority = service_static[best // STAGES].priority
                if service.priority > priority:
                    continue
                if service.priority == priority and pool[SIZE, p] <= pool[SIZE, best]:
                    continue
            best = p
        if best < 0:
            return -1
        i = np.int64(pool[CURSOR, best])
        while i < end:
            kind = node[KIND, i]
            if (
                STAGES * node_static[i].service + st_node[i].stage_cmd == best
                and st_node[i].stage_cmd != PARKED
                and (kind in (FREE, MOVING, DRAINED))
            ):
                break
            i += 1
        pool[CURSOR, best] = i + 1
        if i < end:
            pool[SIZE, best] -= 1
            return i


@kernel
def shed(d, node_static, domain_static, service_static, st_node, scratch):
    """Make room where floors do not fit: decode floors first, then parking by priority.

    Returns:
        The `fleet.plan.Shed` level reached.
    """
    node, domain, pool, top = scratch.node, scratch.domain, scratch.pool, scratch.top
    static = domain_static[d]
    start, end = static.node_start, static.node_end
    reserve, available_w = domain[RESERVE, d], domain[AVAILABLE, d]
    domain[EMERGENCY, d] = 1
    for i in range(start, end):
        if node[KIND, i] == FREE:
            node[LO, i] = node_static[i].cap_min_w
    if charge_of(node[LO, start:end], node[CAP_MAX, start:end], reserve, top) <= available_w:
        return 2
    for i in range(start, end):
        if node[KIND, i] == PARKING:
            node[WISH, i] = -1
            node[LO, i] = node_static[i].parked_max_w
            node[HI, i] = node_static[i].parked_max_w
    for p in range(pool.shape[1]):
        pool[SIZE, p] = 0.0
    for i in range(len(node_static)):
        if st_node[i].stage_cmd != PARKED and st_node[i].is_drained == 0:
            pool[SIZE, STAGES * node_static[i].service + st_node[i].stage_cmd] += 1.0
    for keep_minimum in (True, False):
        for p in range(pool.shape[1]):
            pool[CURSOR, p] = start
        while True:
            deficit_w = charge_of(node[LO, start:end], node[CAP_MAX, start:end], reserve, top) - available_w
            if deficit_w <= 0:
                return 3
            has_parked = False
            while deficit_w > 0:
                i = next_to_park(end, keep_minimum, node_static, service_static, st_node, node, pool)
                if i < 0:
                    break
                deficit_w -= node[LO, i] - node_static[i].parked_max_w
                st_node[i].shed_from = 1 + st_node[i].stage_cmd
                st_node[i].stage_cmd = PARKED
                st_node[i].dwell_s = 0.0
                node[KIND, i] = PARKING
                node[LO, i] = node_static[i].parked_max_w
                node[HI, i] = node_static[i].parked_max_w
                has_parked = True
            if not has_parked:
                break
    return 4


@kernel
def set_targets(node_static, domain_static, service_static, st_node, st_domain, scratch):
    """Fill the tree, children first; the targets end in the TARGET row.

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
    for i in range(len(node_static)):
        node[TARGET, i] = node[HI, i]
    return shed_level


@kernel
def hold_targets(deadband_w, domain_static, st_node, node, domain, top):
    """Leave caps as they are where the target is hardly another: a write costs more than it brings.

    A cap is held above its target only where every domain that feeds the node has the watts for it.
    """
    n = len(st_node)
    is_held = False
    for i in range(n):
        target_w, cap_w = node[TARGET, i], st_node[i].cap_cmd_w
        node[SPARE, i] = target_w
        is_close = abs(target_w - cap_w) < deadband_w
        if node[KIND, i] == FREE and is_close and cap_w >= node[FLOOR, i] and target_w != cap_w:
            node[SPARE, i] = cap_w
            is_held = True
    if not is_held:
        return
    for d in range(len(domain_static) - 1, -1, -1):
        start, end = domain_static[d].node_start, domain_static[d].node_end
        charge_w = charge_of(node[SPARE, start:end], node[CAP_MAX, start:end], domain[RESERVE, d], top)
        if charge_w > domain[AVAILABLE, d]:
            for i in range(start, end):
                node[SPARE, i] = min(node[SPARE, i], node[TARGET, i])
    for i in range(n):
        node[TARGET, i] = node[SPARE, i]


@kernel
def level_above(d, domain_static, level):
    """The level that binds nodes of a domain: the lowest on the way to the root, infinity for none."""
    lowest = np.inf
    while d >= 0:
        lowest = min(lowest, level[d])
        d = domain_static[d].parent
    return lowest


@kernel
def set_allowed(dt_s, node_static, domain_static, fleet, st_node, node, weight, level):
    """Turn targets into the caps that could be commanded now (ALLOWED), before asking whether watts are free."""
    ramp_w = np.int64(fleet.raise_w_per_s * dt_s)
    for i in range(len(node_static)):
        kind, cap_w = node[KIND, i], st_node[i].cap_cmd_w
        if kind in (SILENT, HELD):
            lowest = level_above(node_static[i].domain, domain_static, level)
            if lowest < np.inf:
                share_w = np.int64(lowest * weight[BID_WEIGHT, i])
                cap_w = min(cap_w, max(share_w, node_static[i].cap_min_w))
            node[ALLOWED, i] = cap_w
        elif kind == PARKING:
            node[ALLOWED, i] = node_static[i].cap_min_w
        else:
            node[ALLOWED, i] = min(node[TARGET, i], cap_w + ramp_w)


@kernel
def grant(node_static, domain_static, st_node, scratch):
    """Grant raises out of released watts: lower ALLOWED to what can be commanded now.

    Wishes to leave parking come first: they were waited for, and others were lowered for them. Where what is
    possible already exceeds a limit, nothing below that limit is raised.

    Returns:
        Nodes that leave parking now.
    """
    node, domain, top = scratch.node, scratch.domain, scratch.top
    leaving = 0
    n = len(node_static)
    for i in range(n):
        if node[WISH, i] >= 0:
            parked_w = node[CHARGE, i]
            node[CHARGE, i] = max(st_node[i].cap_possible_w, node[ALLOWED, i])
            if fits_above(node_static[i].domain, CHARGE, domain_static, node, domain, top, 0.0):
                leaving += 1
            else:
                node[CHARGE, i] = parked_w
                node[WISH, i] = -1
    for i in range(n):
        node[LO, i] = node[CHARGE, i]
        # a parked node counts at its bound for parking, whatever its cap
        hi = node[ALLOWED, i] if st_node[i].is_parked == 0 else node[CHARGE, i]
        node[HI, i] = max(hi, node[CHARGE, i])
    for d in range(len(domain_static) - 1, -1, -1):
        static = domain_static[d]
        start, end = static.node_start, static.node_end
        level = fill_domain(
            d,
            domain[AVAILABLE, d],
            0.0,
            scratch.weight[BID_WEIGHT, start:end],
            node[LO, start:end],
            node[HI, start:end],
            node[CAP_MAX, start:end],
            node[SPARE, start:end],
            domain[RESERVE, d],
            scratch,
        )
        if level < 0.0:
            for i in range(start, end):
                node[HI, i] = node[LO, i]
                # not even within what is possible for it: its release is what everybody waits for
                node[ALLOWED, i] = min(node[ALLOWED, i], st_node[i].cap_cmd_w)
    for i in range(n):
        if st_node[i].is_parked == 0 or node[WISH, i] >= 0:
            node[ALLOWED, i] = min(node[HI, i], node[ALLOWED, i])
    return leaving


@kernel
def set_fallbacks(node_static, domain_static, st_node, st_domain, scratch):
    """Give every node an equal share of what is left after the deepest cut, when what is left has changed."""
    node, domain = scratch.node, scratch.domain
    is_current = True
    for d in range(len(domain_static)):
        is_current = is_current and st_domain[d].fallback_available_w == domain[FALLBACK_AVAILABLE, d]
        st_domain[d].fallback_available_w = domain[FALLBACK_AVAILABLE, d]
    if is_current:
        return
    for i in range(len(node_static)):
        static = node_static[i]
        node[LO, i] = static.cap_min_w
        node[HI, i] = static.cap_max_w
        scratch.weight[EQUAL_WEIGHT, i] = static.cap_max_w
    for d in range(len(domain_static) - 1, -1, -1):
        static = domain_static[d]
        start, end = static.node_start, static.node_end
        level = fill_domain(
            d,
            domain[FALLBACK_AVAILABLE, d],
            0.0,
            scratch.weight[EQUAL_WEIGHT, start:end],
            node[LO, start:end],
            node[HI, start:end],
            node[CAP_MAX, start:end],
            node[SPARE, start:end],
            0,  # on expiry every node is on its own: who is silent then is already at its fallback
            scratch,
        )
        if level < 0.0:
            for i in range(start, end):
                node[HI, i] = node[LO, i]
    for i in range(len(node_static)):
        st_node[i].fallback_share_w = node[HI, i]
