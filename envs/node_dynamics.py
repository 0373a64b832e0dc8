"""Cap writes, clocks and draw of nodes, one environment at a time."""

from ..fleet.tables import PARKED, PREFILL
from .compiled import kernel
from .physics import (
    PHI_MIN,
    clock_under_cap,
    compute_share,
    decode_step_s,
    decode_use,
    hash_uniform,
)
from .thermal import THROTTLE_HIGH_C, THROTTLE_LOW_C

STREAM_LATENCY, STREAM_LOST, STREAM_DROPOUT = 1, 2, 5
"""Streams of the counter-based generator: independent draws for independent causes."""


@kernel
def receive_plan(b, tick, node_static, params, node, plan):
    """Hand a plan to the agents of environment `b`: writes are late, and some are lost."""
    pr = params[b]
    for n in range(node.shape[1]):
        nd = node[b, n]
        cmd = plan[b, n]
        if nd.agent_down == 1:
            continue
        nd.is_drained = 1 if cmd.is_drained == 1 else 0
        nd.ceiling = min(max(cmd.clock_frac, PHI_MIN), 1.0)
        if cmd.stage != nd.stage and nd.moving_s <= 0.0:
            if cmd.stage == PARKED:
                nd.stage = PARKED
            else:
                nd.stage = cmd.stage
                nd.moving_s = pr.role_move_s
        if cmd.seq > nd.ack_seq and not (nd.pending_s >= 0.0 and nd.pending_seq == cmd.seq):
            if hash_uniform(pr.parameter_seed, tick, n, STREAM_LOST) < pr.lost_write_frac:
                continue
            u = hash_uniform(pr.parameter_seed, tick, n, STREAM_LATENCY)
            nd.pending_w = cmd.cap_w
            nd.pending_seq = cmd.seq
            nd.pending_s = pr.cap_latency_low_s + u * (pr.cap_latency_high_s - pr.cap_latency_low_s)


@kernel
def node_step(b, dt_s, measured, node_static, profiles, params, node, service, totals):
    """Advance caps, clocks and draw of every node of environment `b` by `dt_s`."""
    pr = params[b]
    for n in range(node.shape[1]):
        nd = node[b, n]
        ns = node_static[n]
        prof = profiles[ns.service, ns.sku]
        gpus = float(ns.gpus)
        if nd.agent_down == 1 and nd.down_s <= 0.0:
            # a rebooted host comes back with the driver's default cap (SERVERS.md)
            nd.agent_down = 0
            nd.cap_w = ns.cap_max_w
            nd.pending_s = -1.0
        if nd.pending_s >= 0.0:
            nd.pending_s -= dt_s
            if nd.pending_s < 0.0:
                if nd.pending_w != nd.cap_w and measured:
                    totals[b].cap_changes += 1.0
                nd.cap_w = nd.pending_w
                nd.ack_seq = nd.pending_seq
        if nd.moving_s > 0.0 and nd.down_s <= 0.0:
            nd.moving_s = max(nd.moving_s - dt_s, 0.0)
        cap_gpu_w = float(nd.cap_w // ns.gpus)
        if nd.down_s > 0.0 or nd.stage == PARKED:
            draw_w = prof.p0_w if nd.agent_down == 0 else 0.0
            nd.demand_w = prof.p0_w * gpus
            nd.phi = 1.0
        elif nd.moving_s > 0.0:
            draw_w = prof.pli_w
            nd.demand_w = prof.pli_w * gpus
            nd.phi = 1.0
        else:
            ceiling = nd.ceiling
            if nd.temp_c > THROTTLE_LOW_C:
                hot = min((nd.temp_c - THROTTLE_LOW_C) / (THROTTLE_HIGH_C - THROTTLE_LOW_C), 1.0)
                ceiling = min(ceiling, 1.0 - 0.5 * hot)
            if nd.stage == PREFILL or nd.is_training == 1:  # training computes as prefill does
                phi, busy_w, free_w = clock_under_cap(
                    nd.phi, cap_gpu_w, ceiling, 1.0, prof.um_prefill, prof.mfu_prefill, prof, pr.power_scale,
                    pr.v_min, pr.phi_knee, pr.kappa, pr.phi_mem, 2,
                )  # fmt: skip
                busy = nd.util_frac
            else:
                replicas = float((ns.gpus - nd.gpus_down) // int(prof.tp))
                batch = nd.batch / replicas
                context = max(service[b, ns.service].context, 1.0)
                u_m, u_c = decode_use(prof, batch, context, decode_step_s(prof, batch, context))
                phi, busy_w, free_w = clock_under_cap(
                    nd.phi, cap_gpu_w, ceiling, compute_share(batch), u_m, u_c, prof, pr.power_scale,
                    pr.v_min, pr.phi_knee, pr.kappa, pr.phi_mem, 2,
                )  # fmt: skip
                busy = min(batch, 1.0)
            nd.phi = phi
            # the firmware holds its cap on a shorter clock than this step, within its overshoot
            busy_w = min(busy_w, cap_gpu_w * (1.0 + pr.firmware_overshoot_frac))
            idle_w = min(prof.pli_w, busy_w)
            draw_w = idle_w + busy * (busy_w - idle_w)
            free_w = min(free_w, prof.tdp_w)
            nd.demand_w = gpus * (prof.pli_w + busy * max(free_w - prof.pli_w, 0.0))
        nd.gpu_w = draw_w * gpus
        nd.tick_gpu_ws += nd.gpu_w * dt_s
        nd.non_gpu_w = float(ns.non_gpu_max_w) * pr.non_gpu_frac
        if measured and (nd.is_drained == 1):
            totals[b].drained_node_s += dt_s
