"""Cap writes on nodes, one environment at a time."""

from ..fleet.tables import PARKED
from .compiled import kernel
from .physics import PHI_MIN, hash_uniform
from .tiles import CEILING, DRAINED, MOVING, PENDING, PENDING_CAP, set_stage, whole_w

STREAM_LATENCY, STREAM_LOST, STREAM_DROPOUT = 1, 2, 5
"""Streams of the counter-based generator: independent draws for independent causes."""


@kernel
def receive_plan(b, tick, tick_s, measured, node_static, params, node, plan, totals, tiles):
    """Hand a plan to the agents of environment `b`: writes are late, and some are lost.

    What changes is written to the nodes and to their columns, which are gathered already.
    """
    pr, flat = params[b], tiles.flat
    drained = 0
    for n in range(node.shape[1]):
        nd = node[b, n]
        cmd = plan[b, n]
        if nd.agent_down == 0:
            nd.is_drained = 1 if cmd.is_drained == 1 else 0
            nd.ceiling = min(max(cmd.clock_frac, PHI_MIN), 1.0)
            at = tiles.lane[n]
            flat[at + DRAINED] = nd.is_drained
            flat[at + CEILING] = nd.ceiling
            if cmd.stage != nd.stage and flat[at + MOVING] <= 0.0:
                nd.stage = cmd.stage
                set_stage(at, nd, flat)
                if cmd.stage != PARKED:
                    flat[at + MOVING] = pr.role_move_s
            is_new = cmd.seq > nd.ack_seq and not (nd.pending_s >= 0.0 and nd.pending_seq == cmd.seq)
            if is_new and hash_uniform(pr.parameter_seed, tick, n, STREAM_LOST) >= pr.lost_write_frac:
                u = hash_uniform(pr.parameter_seed, tick, n, STREAM_LATENCY)
                nd.pending_w = cmd.cap_w
                nd.pending_seq = cmd.seq
                nd.pending_s = pr.cap_latency_low_s + u * (pr.cap_latency_high_s - pr.cap_latency_low_s)
                flat[at + PENDING] = nd.pending_s
                flat[at + PENDING_CAP] = whole_w(cmd.cap_w, 1.0 / node_static[n].gpus)
        drained += nd.is_drained
    if measured:
        totals[b].drained_node_s += drained * tick_s
