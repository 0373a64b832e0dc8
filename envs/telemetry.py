"""What the arbiter is told of the plant: late, rounded, sometimes missing, meters with a bias."""

import numpy as np

from ..fleet.tables import NEVER_S, UNKNOWN_W
from .compiled import kernel
from .event_dynamics import METER_DEAD, METER_OK
from .node_dynamics import STREAM_DROPOUT
from .physics import hash_uniform
from .tiles import DEMAND, ENERGY, MOVING, PENDING, PHI, TEMP, UTIL


@kernel
def tell(
    b, tick, tick_s, measured, limits, params, node, domain, service, totals, node_told, domain_told, service_told,
    lease_ttl_s, tiles,
):  # fmt: skip
    """Write environment `b`'s snapshot after a tick.

    A cap that came into force is acknowledged. A node that is not heard keeps its last values and ages.

    Args:
        limits: (D, 3) float64: demanded limit, announced next limit, seconds until it starts.
    """
    pr = params[b]
    chance, dropout_frac = tiles.chance, pr.dropout_frac
    if dropout_frac > 0.0 or pr.event_count > 0:
        seed = pr.parameter_seed
        for n in range(node.shape[1]):
            chance[n] = hash_uniform(seed, tick, n, STREAM_DROPOUT)
    else:
        chance[:] = 1.0
    for t in range(tiles.static.shape[0]):
        column = tiles.column[t]
        for i in range(tiles.static[t].count):
            n = tiles.node[t, i]
            nd = node[b, n]
            out = node_told[b, n]
            energy_j = column[ENERGY + i]
            column[ENERGY + i] = 0.0
            if nd.pending_s >= 0.0:
                nd.pending_s = column[PENDING + i]
                if nd.pending_s < 0.0:
                    if measured and nd.pending_w != nd.cap_w:
                        totals[b].cap_changes += 1.0
                    nd.cap_w = nd.pending_w
                    nd.ack_seq = nd.pending_seq
            if nd.agent_down == 1 or chance[n] < max(dropout_frac, nd.mute_frac):
                out.age_s = min(out.age_s + tick_s, NEVER_S)
                out.is_silent = 1 if out.age_s > lease_ttl_s else 0
                if out.is_silent == 1:
                    out.is_up = 0
                    out.cap_w = UNKNOWN_W
                continue
            out.age_s = 0.0
            out.is_silent = 0
            out.power_w = energy_j / tick_s
            out.demand_w = column[DEMAND + i]
            out.util_frac = column[UTIL + i]
            out.clock_frac = column[PHI + i]
            out.temp_c = column[TEMP + i]
            out.cap_w = nd.cap_w
            out.ack_seq = nd.ack_seq
            out.stage = nd.stage
            out.moving_s = column[MOVING + i]
            out.is_up = 1 if nd.down_s <= 0.0 else 0
            out.xid = nd.xid
    for d in range(domain.shape[1]):
        dm = domain[b, d]
        out = domain_told[b, d]
        if dm.meter_state == METER_OK:
            out.meter_w = dm.meter_ws / tick_s * (1.0 + pr.meter_bias_frac) * (1.0 + dm.meter_bias)
            out.meter_age_s = 0.0
        elif dm.meter_state == METER_DEAD:
            out.meter_w = np.nan
            out.meter_age_s = min(out.meter_age_s + tick_s, NEVER_S)
        dm.meter_ws = 0.0
        out.limit_w = np.int64(limits[d, 0])
        out.next_limit_w = np.int64(limits[d, 1])
        out.next_in_s = limits[d, 2]
    for s in range(service.shape[1]):
        sv = service[b, s]
        out = service_told[b, s]
        out.arrival_rps = sv.tick_req / tick_s
        if sv.tick_req > 0.0:
            out.prompt_tokens = sv.tick_prompt_tok / sv.tick_req
            out.output_tokens = sv.tick_out_tok / sv.tick_req
            out.reject_frac = sv.tick_rejected / sv.tick_req
        else:
            out.reject_frac = 0.0
        admitted = sv.tick_req - sv.tick_rejected
        if admitted > 1e-9:
            out.ttft_s = sv.tick_ttft_s / admitted
            out.ttft_ok_frac = min(sv.tick_ttft_ok / admitted, 1.0)
        if sv.tick_tok > 0.0:
            out.itl_s = sv.tick_itl_s / sv.tick_tok
            out.itl_ok_frac = min(sv.tick_itl_ok / sv.tick_tok, 1.0)
        out.backlog_s = sv.backlog_s
        out.active = sv.active
        out.kv_frac = sv.kv_frac
        out.age_s = 0.0
        sv.tick_req = 0.0
        sv.tick_prompt_tok = 0.0
        sv.tick_out_tok = 0.0
        sv.tick_rejected = 0.0
        sv.tick_ttft_s = 0.0
        sv.tick_ttft_ok = 0.0
        sv.tick_tok = 0.0
        sv.tick_itl_s = 0.0
        sv.tick_itl_ok = 0.0
