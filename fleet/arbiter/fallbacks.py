"""What a node falls back to when its lease expires: its share of what the deepest cut leaves.

Who will not fall counts at the most that it may draw, and the others' shares make room for it: a node that is silent
may have rebooted, one that does not obey may hold any old fallback, and one that has not acknowledged a lowered
fallback within the grace holds the old one. Until then a raise waits for releases, as it does for caps: no share rises
above what its node may hold already while the larger of both, summed, does not fit.

Where even the smallest caps do not fit the lowest limit in force or announced, nodes park on expiry: their fallback is
`PARKS_W`, lowest priority first. The deepest cut alone parks nobody: it is an allowance, not a limit.
"""

from ..tables import PARKED
from .compiled import kernel
from .scratch import (
    CAP_MAX,
    CHARGE,
    EQUAL_WEIGHT,
    FALLBACK_AVAILABLE,
    FALLBACK_LIMIT,
    HI,
    KIND,
    LO,
    PARKS,
    SILENT,
    SPARE,
)
from .state import NO_LIMIT_W
from .water_filling import fill_domain

PARKS_W = 0
"""The fallback of a node that parks when its lease expires."""

LOWEST_PRIORITY = -(1 << 62)
"""Below that of any service."""

STAYS, STAYS_TOLD, FALLS, WILL_PARK = range(4)
"""Values of PARKS: lost, so that nothing it is told counts; the same, and told to park; falls to a cap; parks."""


@kernel(inline=True)
def held_w(fallback_w, parked_max_w):
    """What a node draws after it fell back to a fallback."""
    return parked_max_w if fallback_w == PARKS_W else fallback_w


@kernel(inline=True)
def lost_w(lease_ttl_s, answer_s, is_silent, st, parked_max_w):
    """The most that a node which may not fall can draw; -1 for one that will."""
    if is_silent:
        return st.cap_possible_w
    if st.unacked_s > lease_ttl_s:
        return max(st.cap_possible_w, st.fallback_possible_w)
    if st.unacked_s >= answer_s and st.fallback_possible_w > st.fallback_w:
        return held_w(min(st.cap_possible_w, st.fallback_possible_w), parked_max_w)
    return -1


@kernel
def reserve_for_lost(lease_ttl_s, answer_s, node_static, domain_static, st_node, node, domain):
    """Take what nodes that may not fall can draw above parking from what fallbacks may share."""
    for i in range(len(node_static)):
        if node[KIND, i] != SILENT and not st_node[i].unacked_s >= answer_s:
            continue
        parked_w = node_static[i].parked_max_w
        above_w = lost_w(lease_ttl_s, answer_s, node[KIND, i] == SILENT, st_node[i], parked_w) - parked_w
        d = node_static[i].domain
        while above_w > 0 and d >= 0:
            domain[FALLBACK_AVAILABLE, d] -= above_w
            domain[FALLBACK_LIMIT, d] -= above_w
            d = domain_static[d].parent


@kernel
def park(i, node_static, node):
    """Let a node park on expiry; the watts that this leaves to others."""
    parked_w = node_static[i].parked_max_w
    left_w = node[LO, i] - parked_w
    node[PARKS, i] = WILL_PARK
    node[LO, i] = parked_w
    node[HI, i] = parked_w
    return left_w


@kernel
def park_on_expiry(d, node_static, domain_static, service_static, st_node, scratch):
    """Let nodes of a domain park when their leases expire, until the others' smallest caps fit its lowest limit.

    First nodes that are parked already, which costs nothing; then the lowest priority, by id.
    """
    node = scratch.node
    start, end = domain_static[d].node_start, domain_static[d].node_end
    deficit_w = -scratch.domain[FALLBACK_LIMIT, d]
    for i in range(start, end):
        deficit_w += node[LO, i]
    if deficit_w <= 0:
        return
    for i in range(start, end):
        if deficit_w > 0 and node[PARKS, i] == FALLS and st_node[i].stage_cmd == PARKED:
            deficit_w -= park(i, node_static, node)
    last = LOWEST_PRIORITY
    while deficit_w > 0:
        priority = last
        for i in range(start, end):
            mine = service_static[node_static[i].service].priority
            if node[PARKS, i] == FALLS and mine > last and (priority == last or mine < priority):
                priority = mine
        if priority == last:
            break
        for i in range(start, end):
            is_next = service_static[node_static[i].service].priority == priority
            if deficit_w > 0 and node[PARKS, i] == FALLS and is_next:
                deficit_w -= park(i, node_static, node)
        last = priority
    if deficit_w > 0:  # not even that fits: lost nodes are told the same, for when they hear it
        for i in range(start, end):
            if node[PARKS, i] == STAYS:
                node[PARKS, i] = STAYS_TOLD


@kernel
def fill_fallbacks(node_static, domain_static, service_static, st_node, st_domain, scratch):
    """Write equal shares of what the domains' records leave into HI, and who parks."""
    node, domain = scratch.node, scratch.domain
    for i in range(len(node_static)):
        static = node_static[i]
        is_lost = node[PARKS, i] <= STAYS_TOLD
        node[PARKS, i] = STAYS if is_lost else FALLS
        node[LO, i] = static.parked_max_w if is_lost else static.cap_min_w
        node[HI, i] = static.parked_max_w if is_lost else static.cap_max_w
        scratch.weight[EQUAL_WEIGHT, i] = static.cap_max_w
    for d in range(len(domain_static) - 1, -1, -1):
        static = domain_static[d]
        domain[FALLBACK_AVAILABLE, d] = st_domain[d].fallback_available_w
        domain[FALLBACK_LIMIT, d] = st_domain[d].fallback_limit_w
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
            park_on_expiry(d, node_static, domain_static, service_static, st_node, scratch)
            for i in range(start, end):
                node[HI, i] = node[LO, i]
            # the smallest caps exceed what the deepest cut leaves: the limit itself is what they are held to
            domain[FALLBACK_AVAILABLE, d] = domain[FALLBACK_LIMIT, d]


@kernel
def charge_late(answer_s, node_static, domain_static, st_node, st_domain, node):
    """Count nodes that are late to answer, and whose share fell below what they may hold, as lost.

    Returns:
        Whether there was one that did not count as such yet: what others share is less.
    """
    is_less = False
    for i in range(len(node_static)):
        st, parked_w = st_node[i], node_static[i].parked_max_w
        if node[PARKS, i] <= STAYS_TOLD or st.unacked_s < answer_s:
            continue
        above_w = held_w(min(st.cap_possible_w, st.fallback_possible_w), parked_w) - parked_w
        if node[PARKS, i] == FALLS and above_w + parked_w <= node[HI, i]:
            continue
        node[PARKS, i] = STAYS
        is_less = True
        d = node_static[i].domain
        while above_w > 0 and d >= 0:
            st_domain[d].fallback_available_w -= above_w
            st_domain[d].fallback_limit_w -= above_w
            d = domain_static[d].parent
    return is_less


@kernel
def hold_raises(node_static, domain_static, st_node, st_domain, scratch):
    """Keep shares within what nodes may hold already, where both together do not fit yet.

    The smaller of share and possible joins no new watts: what may be held stays what it was. The domain's record is
    voided, so that the next settlement looks again.
    """
    node, domain, total = scratch.node, scratch.domain, scratch.total
    total[0, 0] = 0
    for i in range(len(node_static)):
        st, parked_w = st_node[i], node_static[i].parked_max_w
        node[CHARGE, i] = held_w(min(st.cap_possible_w, st.fallback_possible_w), parked_w)
        charge_w = node[LO, i] if node[PARKS, i] <= STAYS_TOLD else max(node[HI, i], node[CHARGE, i])
        total[0, i + 1] = total[0, i] + charge_w
    for d in range(len(domain_static)):
        start, end = domain_static[d].node_start, domain_static[d].node_end
        if total[0, end] - total[0, start] <= domain[FALLBACK_AVAILABLE, d]:
            continue
        for i in range(start, end):
            if node[PARKS, i] == FALLS and node[HI, i] > node[CHARGE, i]:
                node[HI, i] = node[CHARGE, i]
                if st_node[i].fallback_possible_w == PARKS_W:
                    node[PARKS, i] = WILL_PARK
                st_domain[d].fallback_available_w = NO_LIMIT_W


@kernel
def set_fallbacks(lease_ttl_s, answer_s, node_static, domain_static, service_static, st_node, st_domain, scratch):
    """Give every node an equal share of what is left after the deepest cut, when what is left has changed.

    Args:
        lease_ttl_s: A node that has not obeyed for longer counts at its largest possible cap.
        answer_s: One that has not acknowledged a lower fallback for that long, counted from the first look after it was
            sent, counts at the old one: the grace less the tick until that look.
    """
    node, domain = scratch.node, scratch.domain
    answer_s = min(answer_s, lease_ttl_s)
    reserve_for_lost(lease_ttl_s, answer_s, node_static, domain_static, st_node, node, domain)
    is_current = True
    for d in range(len(domain_static)):
        record = st_domain[d]
        is_current = is_current and record.fallback_available_w == domain[FALLBACK_AVAILABLE, d]
        is_current = is_current and record.fallback_limit_w == domain[FALLBACK_LIMIT, d]
        record.fallback_available_w = domain[FALLBACK_AVAILABLE, d]
        record.fallback_limit_w = domain[FALLBACK_LIMIT, d]
    if is_current:
        return
    for i in range(len(node_static)):
        possible_w = lost_w(lease_ttl_s, answer_s, node[KIND, i] == SILENT, st_node[i], node_static[i].parked_max_w)
        node[PARKS, i] = STAYS if possible_w >= 0 else FALLS
    fill_fallbacks(node_static, domain_static, service_static, st_node, st_domain, scratch)
    while charge_late(answer_s, node_static, domain_static, st_node, st_domain, node):
        fill_fallbacks(node_static, domain_static, service_static, st_node, st_domain, scratch)
    hold_raises(node_static, domain_static, st_node, st_domain, scratch)
    for i in range(len(node_static)):
        share_w = node[HI, i]
        if node[PARKS, i] == WILL_PARK or node[PARKS, i] == STAYS_TOLD:
            share_w = PARKS_W
        elif node[PARKS, i] == STAYS:
            # what it is told counts only once it has acknowledged it, and must fit then
            share_w = min(node_static[i].cap_min_w, st_node[i].fallback_w)
        st_node[i].fallback_share_w = share_w
