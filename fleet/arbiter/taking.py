"""Who gives when a meter takes watts back: the least important service of the domain first (FIELD.md section 5).

The targets are filled as if nothing were taken. Then every domain from which watts are withheld lowers the nodes of its
lowest priority towards their floors, all by the same share of what they have above them, and turns to the next priority
only when these are exhausted. A target falls with the others of its priority, so that a higher bid never lowers one's
own.
"""

from .compiled import kernel
from .scratch import AVAILABLE, BOUND, CAP_MAX, FREE, KIND, LO, RESERVE, SPARE, TAKEN, TARGET
from .water_filling import charge_of

SHARES = 4096
"""Steps in which the nodes of a priority give what they have above their floors."""

NO_PRIORITY = -(1 << 62)
"""Below that of any service."""


@kernel
def lend_taken(domain):
    """Give the domains what is withheld from them, while targets are filled."""
    for d in range(domain.shape[1]):
        domain[AVAILABLE, d] += domain[TAKEN, d]


@kernel
def next_priority(last, start, end, node_static, service_static, node):
    """The lowest priority above `last` of nodes that can give; `last` for none."""
    found = last
    for i in range(start, end):
        if node[KIND, i] == FREE and node[TARGET, i] > node[LO, i]:
            mine = service_static[node_static[i].service].priority
            if mine > last and (found == last or mine < found):
                found = mine
    return found


@kernel
def lower_to(share, priority, start, end, node_static, service_static, node):
    """Write targets into SPARE in which nodes of one priority keep `share` of SHARES of what is above their floors."""
    for i in range(start, end):
        above_w = node[TARGET, i] - node[LO, i]
        gives = node[KIND, i] == FREE and above_w > 0
        gives = gives and service_static[node_static[i].service].priority == priority
        node[SPARE, i] = node[LO, i] + above_w * share // SHARES if gives else node[TARGET, i]


@kernel
def take_from_least(node_static, domain_static, service_static, scratch):
    """Withhold again what `lend_taken` gave, and lower targets until they fit, least important services first."""
    node, domain, top = scratch.node, scratch.domain, scratch.top
    for d in range(len(domain_static) - 1, -1, -1):
        domain[AVAILABLE, d] -= domain[TAKEN, d]
        start, end = domain_static[d].node_start, domain_static[d].node_end
        available_w, reserve = domain[AVAILABLE, d], domain[RESERVE, d]
        last = NO_PRIORITY
        while charge_of(node[TARGET, start:end], node[CAP_MAX, start:end], reserve, top) > available_w:
            priority = next_priority(last, start, end, node_static, service_static, node)
            if priority == last:
                break
            low, high = 0, SHARES  # the largest share that fits; 0 where none does
            while high - low > 1:
                share = (low + high) // 2
                lower_to(share, priority, start, end, node_static, service_static, node)
                if charge_of(node[SPARE, start:end], node[CAP_MAX, start:end], reserve, top) <= available_w:
                    low = share
                else:
                    high = share
            lower_to(low, priority, start, end, node_static, service_static, node)
            for i in range(start, end):
                if node[SPARE, i] < node[TARGET, i]:
                    node[TARGET, i] = node[SPARE, i]
                    node[BOUND, i] = d
            last = priority
