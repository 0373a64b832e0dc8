"""Cap writes, clocks, draw, temperature and faults of nodes, one environment at a time."""

import math

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
from .serving_dynamics import lose_node

STREAM_LATENCY, STREAM_LOST, STREAM_FAULT, STREAM_CLASS, STREAM_DROPOUT, STREAM_METER = 1, 2, 3, 4, 5, 6
"""Streams of the counter-based generator: independent draws for independent causes."""

THERMAL_R_C_PER_W = 0.06
THERMAL_TAU_S = 45.0
"""Air-cooled GPU (MODEL.md section 8)."""

THROTTLE_LOW_C, THROTTLE_HIGH_C = 83.0, 90.0
"""The clock is throttled linearly between them, to half (MODEL.md section 8)."""

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


@kernel
def node_step(b, dt_s, measured, node_static, profiles, params, node, service, totals):
    """Advance caps, clocks, draw and temperature of every node of environment `b` by `dt_s`."""
    pr = params[b]
    decay = 1.0 - math.exp(-dt_s / THERMAL_TAU_S)
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
            if nd.stage == PREFILL:
                phi, busy_w, free_w = clock_under_cap(
                    nd.phi, cap_gpu_w, ceiling, 1.0, prof.um_prefill, prof.mfu_prefill, prof, pr.power_scale,
                    pr.v_min, pr.phi_knee, pr.kappa, pr.phi_mem, 2,
                )  # fmt: skip
                busy = nd.util_frac
            else:
                replicas = float(ns.gpus // int(prof.tp))
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
        nd.temp_c += (pr.inlet_c + THERMAL_R_C_PER_W * draw_w - nd.temp_c) * decay
        nd.hbm_hot = 1 if nd.temp_c > 95.0 else 0
        if measured and (nd.is_drained == 1):
            totals[b].drained_node_s += dt_s
