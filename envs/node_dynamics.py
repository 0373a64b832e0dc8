"""Cap writes and faults of nodes, one environment at a time."""

import math

from ..fleet.tables import PARKED
from .compiled import kernel
from .physics import PHI_MIN, hash_uniform
from .serving_dynamics import lose_node

STREAM_LATENCY, STREAM_LOST, STREAM_FAULT, STREAM_CLASS, STREAM_DROPOUT, STREAM_METER = 1, 2, 3, 4, 5, 6
"""Streams of the counter-based generator: independent draws for independent causes."""

FAULT_Q10_LOG = math.log(1.6) / 10.0
"""Rates grow by 1.6 per 10 C above 65 C (MODEL.md section 9)."""

RESET_S = 360.0
REBOOT_S = 7920.0
"""GPU reset 6 min, node reboot 2.2 h (MODEL.md section 9)."""

RESET_SHARE = 0.6
"""Share of faults that end in a GPU reset; the others take the host down (A; FIELD.md section 2 has both)."""

XID_RESET, XID_REBOOT = 95, 79
"""Uncontained ECC: reset; fell off the bus: reboot (FIELD.md section 2)."""


@kernel
def receive_plan(b, tick, tick_s, measured, params, node, plan, totals):
    """Hand a plan to the agents of environment `b`: writes are late, and some are lost."""
    pr = params[b]
    drained = 0
    for n in range(node.shape[1]):
        nd = node[b, n]
        cmd = plan[b, n]
        if nd.agent_down == 0:
            nd.is_drained = 1 if cmd.is_drained == 1 else 0
            nd.ceiling = min(max(cmd.clock_frac, PHI_MIN), 1.0)
            if cmd.stage != nd.stage and nd.moving_s <= 0.0:
                nd.stage = cmd.stage
                if cmd.stage != PARKED:
                    nd.moving_s = pr.role_move_s
            is_new = cmd.seq > nd.ack_seq and not (nd.pending_s >= 0.0 and nd.pending_seq == cmd.seq)
            if is_new and hash_uniform(pr.parameter_seed, tick, n, STREAM_LOST) >= pr.lost_write_frac:
                u = hash_uniform(pr.parameter_seed, tick, n, STREAM_LATENCY)
                nd.pending_w = cmd.cap_w
                nd.pending_seq = cmd.seq
                nd.pending_s = pr.cap_latency_low_s + u * (pr.cap_latency_high_s - pr.cap_latency_low_s)
        drained += nd.is_drained
    if measured:
        totals[b].drained_node_s += drained * tick_s


@kernel
def fault_tick(b, tick, dt_s, measured, node_static, params, node, service, totals):
    """Break and repair nodes of environment `b` once per tick."""
    pr = params[b]
    if pr.fault_scale <= 0.0:
        for n in range(node.shape[1]):
            nd = node[b, n]
            if nd.down_s > 0.0:
                _repair(b, n, dt_s, measured, pr, nd, totals)
        return
    for n in range(node.shape[1]):
        nd = node[b, n]
        if nd.down_s > 0.0:
            _repair(b, n, dt_s, measured, pr, nd, totals)
            continue
        if nd.stage == PARKED:
            continue
        nd.fault_margin -= dt_s * nd.fault_rate * pr.fault_scale * math.exp(FAULT_Q10_LOG * (nd.temp_c - 65.0))
        if nd.fault_margin <= 0.0:
            lose_node(b, n, measured, node_static, node, service, totals)
            nd.fault_margin = -math.log(1.0 - hash_uniform(pr.fault_seed, tick, n, STREAM_FAULT))
            if hash_uniform(pr.fault_seed, tick, n, STREAM_CLASS) < RESET_SHARE:
                nd.xid = XID_RESET
                nd.down_s = RESET_S
            else:
                nd.xid = XID_REBOOT
                nd.down_s = REBOOT_S
                nd.agent_down = 1


@kernel(inline=True)
def _repair(b, n, dt_s, measured, pr, nd, totals):
    nd.down_s -= dt_s
    if measured:
        totals[b].down_node_s += dt_s
    if nd.down_s <= 0.0:
        nd.down_s = 0.0
        nd.xid = 0
        nd.moving_s = pr.role_move_s  # the model loads again
        if measured:
            totals[b].repairs += 1.0
