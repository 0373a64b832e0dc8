"""What every node counts as in a settlement, what it is charged at now, and the range of its target cap."""

from ..tables import DECODE, PARKED, TRAINING
from .compiled import kernel
from .scratch import (
    AVAILABLE,
    BOUND,
    CAP_BEFORE,
    CAP_MAX,
    CHARGE,
    DOWN,
    DRAINED,
    FLOOR,
    FREE,
    FRESH,
    HELD,
    HI,
    IS_APART,
    KIND,
    LO,
    MOVING,
    PARKING,
    RESERVE,
    SILENT,
    WISH,
)
from .water_filling import push_top


@kernel(inline=True)
def decode_floor(static, service_static):
    """Smallest cap of a node that serves decode: latency collapses below it; a training gang only slows down."""
    cap_min_w, floor_w = static.cap_min_w, static.decode_floor_w
    return cap_min_w if service_static[static.service].kind == TRAINING else max(cap_min_w, floor_w)


@kernel(inline=True)
def kind_of(is_obeying, sn, st):
    """What a node counts as."""
    if sn.is_silent != 0:
        return SILENT
    if not is_obeying:
        return HELD
    if st.stage_cmd == PARKED:
        return PARKING
    if st.is_drained != 0:
        return DRAINED
    if sn.is_up == 0:
        return DOWN
    return MOVING if sn.stage != st.stage_cmd or sn.moving_s > 0.0 else FREE


@kernel(inline=True)
def judge(i, is_obeying, wish, static, service_static, sn, st, node):
    """Write what one node counts as, its charge and its range.

    A silent node is charged at what was possible for it before, and the reserve for the rest (`set_reserves`). Nodes
    that may not obey count at what they may be running. A parked node counts at its bound for parking; one that was
    not yet seen parked, or that wishes to leave, at its smallest cap, unless floors do not fit.
    """
    kind = kind_of(is_obeying, sn, st)
    charge_w = static.parked_max_w if st.is_parked != 0 else st.cap_possible_w
    charge_w = st.silent_w if kind == SILENT else charge_w
    lo, hi = static.cap_min_w, static.cap_min_w
    if kind == FREE:
        hi = static.cap_max_w
        lo = min(decode_floor(static, service_static), hi) if st.stage_cmd == DECODE else lo
    elif kind == SILENT:
        lo = hi = charge_w
    elif kind == HELD:
        # nobody is shed for watts that the firmware's lag alone still holds
        lo = hi = min(charge_w, st.settling_w) if st.hold_s > 0.0 else charge_w
    elif kind == PARKING and wish < 0 and st.is_parked != 0:
        lo = hi = static.parked_max_w
    _write(i, kind, charge_w, (st.is_parked != 0) | (kind == SILENT), lo, hi, static, st, node)


@kernel(inline=True)
def judge_usual(i, static, service_static, st, node):
    """`judge` for a node that is known to be FREE."""
    hi, cap_min_w = static.cap_max_w, static.cap_min_w
    floor_w = min(decode_floor(static, service_static), hi)
    lo = floor_w if st.stage_cmd == DECODE else cap_min_w  # a select: stages follow no pattern
    _write(i, FREE, st.cap_possible_w, 0, lo, hi, static, st, node)


@kernel(inline=True)
def _write(i, kind, charge_w, is_apart, lo, hi, static, st, node):
    node[KIND, i] = kind
    node[CHARGE, i] = charge_w
    node[IS_APART, i] = is_apart
    node[CAP_BEFORE, i] = st.cap_cmd_w
    node[CAP_MAX, i] = static.cap_max_w
    node[FLOOR, i] = lo
    node[LO, i] = lo
    node[HI, i] = hi
    node[BOUND, i] = -1


@kernel
def judge_again(node_static, service_static, sn_node, st_node, node):
    """Judge every node anew: health or stages changed some since they were read."""
    for i in range(len(node_static)):
        judge(
            i, node[FRESH, i] != 0, node[WISH, i], node_static[i], service_static, sn_node[i], st_node[i], node
        )  # fmt: skip


@kernel
def set_reserves(domain_static, node, domain, top):
    """Write how many nodes the reserve of each domain stands for, and take what it cannot cover from its watts.

    Any `unknown_reserve` nodes may be unknown at once, and others as soon as these are known again. So the reserve
    stays whole while nodes are silent: a silent node is one of those that it stands for. Silent nodes beyond it
    count at their maximum; the reserve stands for those with the largest distances to it.
    """
    silent = 0
    for i in range(node.shape[1]):
        silent += node[KIND, i] == SILENT
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
