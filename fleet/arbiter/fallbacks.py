"""What a node falls back to when its lease expires: its share of what the deepest cut leaves.

A node that is silent may have rebooted and one that does not obey may hold an old fallback: they will not fall, so
they count at the most that they may draw, and the others' shares make room for it.
"""

from .compiled import kernel
from .scratch import CAP_MAX, EQUAL_WEIGHT, FALLBACK_AVAILABLE, HI, KIND, LO, SILENT, SPARE
from .water_filling import fill_domain


@kernel
def reserve_for_lost(lease_ttl_s, node_static, domain_static, st_node, node, domain):
    """Take what silent and disobedient nodes may draw above their smallest cap from what fallbacks may share."""
    for i in range(len(node_static)):
        st = st_node[i]
        possible_w = 0
        if node[KIND, i] == SILENT:
            possible_w = st.cap_possible_w
        elif st.unacked_s > lease_ttl_s:
            possible_w = max(st.cap_possible_w, st.fallback_possible_w)
        above_w = possible_w - node_static[i].cap_min_w
        d = node_static[i].domain
        while above_w > 0 and d >= 0:
            domain[FALLBACK_AVAILABLE, d] -= above_w
            d = domain_static[d].parent


@kernel
def set_fallbacks(lease_ttl_s, node_static, domain_static, st_node, st_domain, scratch):
    """Give every node an equal share of what is left after the deepest cut, when what is left has changed."""
    node, domain = scratch.node, scratch.domain
    reserve_for_lost(lease_ttl_s, node_static, domain_static, st_node, node, domain)
    is_current = True
    for d in range(len(domain_static)):
        is_current = is_current and st_domain[d].fallback_available_w == domain[FALLBACK_AVAILABLE, d]
        st_domain[d].fallback_available_w = domain[FALLBACK_AVAILABLE, d]
    if is_current:
        return
    for i in range(len(node_static)):
        static = node_static[i]
        node[LO, i] = static.cap_min_w
        is_lost = node[KIND, i] == SILENT or st_node[i].unacked_s > lease_ttl_s
        node[HI, i] = static.cap_min_w if is_lost else static.cap_max_w
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
