"""The ladder where floors do not fit: decode floors first, then parking by priority."""

import numpy as np

from ..tables import DECODE, PARKED, STAGES
from .compiled import kernel
from .scratch import (
    AVAILABLE,
    CAP_MAX,
    CURSOR,
    DRAINED,
    EMERGENCY,
    FREE,
    HI,
    KIND,
    LO,
    MOVING,
    PARKING,
    RESERVE,
    SIZE,
    WISH,
)
from .water_filling import charge_of


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
