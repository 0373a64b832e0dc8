"""What a node falls back to when its lease expires: its share of what the deepest cut leaves."""

from .compiled import kernel
from .scratch import CAP_MAX, EQUAL_WEIGHT, FALLBACK_AVAILABLE, HI, LO, SPARE
from .water_filling import fill_domain


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
