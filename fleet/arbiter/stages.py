"""Which stage each node serves: at most one move per service and tick, with dwell, rate and margins."""

import numpy as np

from ..tables import DECODE, DISAGGREGATED, PARKED, PREFILL, STAGES
from .compiled import kernel
from .scratch import COMMANDED, FRESH, NODES_BID, SERVING, USABLE_PARKED, UTIL_COUNT, UTIL_SUM, WISH

DECODE_MARGIN = 1.25
"""Decode pools keep 25 % above what they use (RL.md, lesson 8: role rounding once left one decode node)."""

MAX_CREDIT = 2.0
"""Moves that may be saved up."""

CHANGE_NODES = 0.75
"""A pool changes when its averaged target is at least this far away: targets are rounded up, but a policy that
hovers between two splits must not move nodes to and fro."""


@kernel
def node_to_move(service, stage, dwell_s, node_static, sn_node, st_node, node):
    """Lowest id that serves `stage` (or is parked), has dwelt, is fresh and obeys; -1 for none."""
    for i in range(len(node_static)):
        if (
            node_static[i].service == service
            and st_node[i].stage_cmd == stage
            and st_node[i].is_drained == 0
            and node[FRESH, i] != 0
            and sn_node[i].is_up != 0
            and sn_node[i].stage == stage
            and not sn_node[i].moving_s > 0.0
            and st_node[i].dwell_s >= dwell_s
        ):
            return i
    return -1


@kernel
def spare_nodes(service, stage, service_static, pool):
    """Nodes that a pool can give away: above its minimum and, for decode, above its margin."""
    p = STAGES * service + stage
    commanded = pool[COMMANDED, p]
    if stage == PREFILL:
        return commanded - service_static[service].min_prefill_nodes
    util = pool[UTIL_SUM, p] / pool[UTIL_COUNT, p] if pool[UTIL_COUNT, p] > 0.0 else 1.0
    # nodes that still load decode no use yet: the margin counts what serves now
    in_use = np.ceil(DECODE_MARGIN * util * pool[SERVING, p] - 1e-9)
    # shedding may take the last node; bids for nodes are shares of those that serve, and would never bring one back
    return commanded - max(in_use, max(service_static[service].min_decode_nodes, 1))


@kernel
def command_stage(i, stage, st_node):
    """Move a node to a stage."""
    st_node[i].stage_cmd = stage
    st_node[i].dwell_s = 0.0
    st_node[i].is_parked = 0
    st_node[i].shed_from = 0


@kernel
def update_stages(dt_s, node_static, service_static, fleet, sn_node, st_node, st_service, node, pool):
    """Start moves between stages and into parking; mark nodes that should leave parking in the WISH row.

    Leaving parking takes watts, so it is only wished for here and granted when the watts are free.

    Returns:
        Moves started, and nodes that wish to leave parking.
    """
    moves, wishes = 0, 0
    for i in range(len(node_static)):
        node[WISH, i] = -1
    for s in range(len(service_static)):
        credit = st_service[s].move_credit + fleet.moves_per_min / 60.0 * dt_s
        if not credit >= 0.0:
            credit = 0.0
        st_service[s].move_credit = min(credit, MAX_CREDIT)
        pre, dec = STAGES * s + PREFILL, STAGES * s + DECODE
        if service_static[s].kind != DISAGGREGATED:
            pool[NODES_BID, pre] = pool[NODES_BID, dec]  # one stage: its bid alone decides about parking
        parked = pool[USABLE_PARKED, pre]
        if parked > 0.0:
            # nodes that shedding parked come back first: nobody bid for them to leave
            for i in range(len(node_static)):
                if (
                    node_static[i].service == s
                    and st_node[i].shed_from > 0
                    and st_node[i].is_parked != 0
                    and st_node[i].is_drained == 0
                    and node[FRESH, i] != 0
                    and st_node[i].dwell_s >= fleet.dwell_s
                ):
                    node[WISH, i] = st_node[i].shed_from - 1
                    wishes += 1
                    break
        if st_service[s].move_credit < 1.0:
            continue
        n_pre, n_dec = pool[COMMANDED, pre], pool[COMMANDED, dec]
        target_pre = n_pre * np.exp(pool[NODES_BID, pre])
        target_dec = n_dec * np.exp(pool[NODES_BID, dec])
        available = n_pre + n_dec + parked
        if target_pre + target_dec > available:
            scale = available / (target_pre + target_dec)
            target_pre *= scale
            target_dec *= scale
        up_pre, up_dec = target_pre - n_pre, target_dec - n_dec
        grow = PREFILL if up_pre > up_dec else DECODE
        shrink = STAGES - 1 - grow
        up, down = max(up_pre, up_dec), min(up_pre, up_dec)
        if up >= CHANGE_NODES:
            if parked > 0.0:
                i = node_to_move(s, PARKED, fleet.dwell_s, node_static, sn_node, st_node, node)
                if i >= 0:
                    node[WISH, i] = grow
                    wishes += 1
                    continue
            if down > -CHANGE_NODES or spare_nodes(s, shrink, service_static, pool) < 1.0:
                continue
            i = node_to_move(s, shrink, fleet.dwell_s, node_static, sn_node, st_node, node)
            if i >= 0:
                command_stage(i, grow, st_node)
                st_service[s].move_credit -= 1.0
                moves += 1
        elif down <= -CHANGE_NODES and pool[NODES_BID, pre] < 0.0 and pool[NODES_BID, dec] < 0.0:
            if spare_nodes(s, shrink, service_static, pool) < 1.0:
                continue
            i = node_to_move(s, shrink, fleet.dwell_s, node_static, sn_node, st_node, node)
            if i >= 0:
                command_stage(i, PARKED, st_node)
                st_service[s].move_credit -= 1.0
                moves += 1
    return moves, wishes
