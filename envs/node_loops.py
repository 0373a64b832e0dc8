"""What every node does in a physics step: its capacity, its decode step, its clock under the cap, draw and heat.

Loops over tiles (`tiles.py`) in single precision. No branches inside: both sides are computed and one is selected.
"""

import numpy as np

from .compiled import kernel
from .physics import (
    PHI_MIN,
    busy_power_w,
    compute_share,
    decode_batch_within,
    decode_step_s,
    decode_use,
    full_power_w,
    kv_batch,
    prompt_s,
    relative_rate,
)
from .single import single, single_row
from .thermal import THROTTLE_HIGH_C, THROTTLE_LOW_C
from .tiles import (
    ADMISSIBLE,
    BATCH,
    CAP,
    CEILING,
    DARK,
    DECODES,
    DEMAND,
    DRAINED,
    ENERGY,
    GPU_W,
    GPUS,
    HBM_RATE,
    KV_ROOM,
    LANDS,
    MIX,
    MOVING,
    NODE_W,
    NON_GPU,
    OFF,
    PEAK_W,
    PENDING,
    PENDING_CAP,
    PHI,
    PREFILL_RATE,
    PREFILL_REPLICAS,
    PREFILLS,
    REPLICAS,
    RESETTING,
    SLOTS,
    TEMP,
    TILE,
    TOKENS,
    UTIL,
)  # fmt: skip

ITL_MARGIN = 0.97
"""SLO-aware admission fills decode steps to this share of the ITL target."""

CHUNK_TOK = 2048.0
"""Prompt tokens that chunked prefill adds to a decode step at most (vLLM's default `max_num_batched_tokens`)."""

CLOCK_EXPONENT = 2.2
"""Newton's slope for the clock under a cap is that of P ~ P0 + c phi^2.2: two steps are within 0.5 % of the root."""

_power_w = single(busy_power_w)
_full_w = single(full_power_w)
_share = single(compute_share)
_within = single(decode_batch_within)
_step_s = single(decode_step_s)
_use = single(decode_use)
_rate = single(relative_rate)

_f = np.float32
_ZERO, _ONE, _HALF, _TWENTY, _HIGH = _f(0.0), _f(1.0), _f(0.5), _f(20.0), _f(1e9)
_CHUNK = _f(CHUNK_TOK)
_PHI_MIN, _MARGIN, _EXPONENT = _f(PHI_MIN), _f(ITL_MARGIN), _f(CLOCK_EXPONENT)
_THROTTLE_LOW, _PER_THROTTLE = _f(THROTTLE_LOW_C), _f(1.0 / (THROTTLE_HIGH_C - THROTTLE_LOW_C))


@kernel
def offer_capacity(s, prompt_tok, cached_tok, context, itl_s, is_aware, is_mixed, phi_mem, tiles, profiles):
    """What the nodes of service `s` can prefill and hold in decode at the clocks of now, into `tiles.sums`.

    Args:
        cached_tok: Of a prompt's tokens, those whose KV a cache holds already.
        is_mixed: Decode nodes prefill too, in chunks between their decode steps: up to CHUNK_TOK tokens per step and,
            where admission is aware of the target, no longer than decode leaves of it.
    """
    sums = tiles.sums
    sums[:] = _ZERO
    phi_mem = _f(phi_mem)
    t, end = tiles.start[s], tiles.start[s + 1]
    while t < end:
        sku = tiles.static[t].sku
        row = profiles[s, sku]
        prof = single_row(row)
        # attention reads the cached prefix too: only its own work is saved
        work_s = prompt_s(row, prompt_tok) - prompt_s(row, cached_tok) + row.prompt_fixed_s
        replica_tok_s = _f(prompt_tok / work_s)
        room_req = kv_batch(row, context)
        room = _f(room_req)
        # compute share at the batch that the node can admit; it moves slowly with the batch
        share = _f(compute_share(min(room_req, max(decode_batch_within(row, context, itl_s), 1.0))))
        context_tok = _f(context)
        itl = _f(itl_s) if is_aware else _HIGH
        limit_s = itl * _MARGIN
        while t < end and tiles.static[t].sku == sku:
            column = tiles.column[t]
            for i in range(TILE):
                phi = column[PHI + i]
                is_serving = (column[OFF + i] + column[DRAINED + i] <= _ZERO) & (column[MOVING + i] <= _ZERO)
                replicas = column[REPLICAS + i] if is_serving else _ZERO
                prefilling = replicas * column[PREFILLS + i]
                decoding = replicas * column[DECODES + i]
                within = _within(prof, context_tok, limit_s * _rate(phi, share, phi_mem))
                slots = decoding * min(room, max(within, _ONE))
                column[ADMISSIBLE + i] = slots
                column[MIX + i] = _ZERO
                sums[PREFILL_RATE + i] += prefilling * replica_tok_s * phi
                sums[PREFILL_REPLICAS + i] += prefilling
                sums[SLOTS + i] += slots
                sums[KV_ROOM + i] += decoding * room
            if is_mixed:
                _mix(column, sums, prof, replica_tok_s, context_tok, itl, phi_mem)
            t += 1


@kernel
def _mix(column, sums, prof, replica_tok_s, context_tok, itl_s, phi_mem):
    """Let the decode nodes of one tile prefill between their decode steps."""
    for i in range(TILE):
        phi = column[PHI + i]
        is_serving = (column[OFF + i] + column[DRAINED + i] <= _ZERO) & (column[MOVING + i] <= _ZERO)
        replicas = column[REPLICAS + i] if is_serving else _ZERO
        decoding = replicas * column[DECODES + i]
        batch = column[BATCH + i] / max(column[REPLICAS + i], _ONE)
        # an empty replica has no decode steps to wait for
        step_s = min(batch, _ONE) * _step_s(prof, batch, context_tok) / _rate(phi, _share(batch), phi_mem)
        chunk_s = _CHUNK / (replica_tok_s * phi)
        mix = min(chunk_s / (chunk_s + step_s), max(_ONE - step_s / itl_s, _ZERO))
        column[MIX + i] = mix
        sums[PREFILL_RATE + i] += decoding * mix * replica_tok_s * phi
        sums[PREFILL_REPLICAS + i] += decoding


@kernel
def decode_and_draw(s, dt_s, fill, busy, context, params, tiles, profiles):
    """Advance the nodes of service `s`: tokens decoded (into `tiles.sums`), caps, clocks and draw.

    Args:
        fill: Active requests as a share of what decode nodes admit.
        busy: Share of time that prefill nodes work.
        params: The environment's row of `PLANT_PARAMS`.
    """
    sums = tiles.sums
    dt, per_dt = _f(dt_s), _f(1.0 / dt_s)
    fill, busy, context = _f(fill), _f(busy), _f(context)
    v_min, phi_knee = _f(params.v_min), _f(params.phi_knee)
    kappa, phi_mem = _f(params.kappa), _f(params.phi_mem)
    scale = _f(params.power_scale)
    # rounded down, so that no rounding of singles puts a node above its bound
    overshoot = _f((1.0 + params.firmware_overshoot_frac) * (1.0 - 3e-7))
    t, end = tiles.start[s], tiles.start[s + 1]
    while t < end:
        sku = tiles.static[t].sku
        prof = single_row(profiles[s, sku])
        while t < end and tiles.static[t].sku == sku:
            column = tiles.column[t]
            for i in range(TILE):
                phi, temp_c, off, moving_s = column[PHI + i], column[TEMP + i], column[OFF + i], column[MOVING + i]
                is_serving = (off + column[DRAINED + i] <= _ZERO) & (moving_s <= _ZERO)
                serves = _ONE if is_serving else _ZERO
                # decode
                batch = column[ADMISSIBLE + i] * fill
                per_replica = batch / max(column[REPLICAS + i], _ONE)
                step_s = _step_s(prof, per_replica, context)
                share = _share(per_replica)
                # what chunks of prompts take of the time stretches the decode steps between them
                mix = column[MIX + i] * busy * serves
                hot = column[HBM_RATE + i]
                sums[TOKENS + i] += batch * dt * hot * (_ONE - mix) * _rate(phi, share, phi_mem) / step_s
                u_m, u_c = _use(prof, per_replica, context, step_s)
                prefills = column[PREFILLS + i]
                is_prefill = prefills > _ZERO
                working = serves * (prefills * busy + column[DECODES + i] * max(min(per_replica, _ONE), mix))
                column[BATCH + i] = batch
                column[UTIL + i] = serves * (prefills * busy + column[DECODES + i] * fill)
                mix = _ONE if is_prefill else mix
                share += mix * (_ONE - share)
                u_m += mix * (prof.um_prefill - u_m)
                u_c += mix * (prof.mfu_prefill - u_c)
                # a cap written a while ago comes into force
                waits_s = column[PENDING + i]
                left_s = waits_s - dt
                is_landing = (waits_s >= _ZERO) & (left_s < _ZERO)
                cap_w, next_w = column[CAP + i], column[PENDING_CAP + i]
                cap_w = next_w if is_landing else cap_w
                column[CAP + i] = cap_w
                column[PENDING + i] = left_s if waits_s >= _ZERO else waits_s
                is_off = off > _ZERO
                moving_s = max(moving_s - dt, _ZERO)
                column[MOVING + i] = moving_s
                # the clock under it
                heat = min(max((temp_c - _THROTTLE_LOW) * _PER_THROTTLE, _ZERO), _ONE)
                ceiling = min(column[CEILING + i], _ONE - _HALF * heat)
                free_w = _full_w(u_m, u_c, prof, scale)
                phi = min(max(phi, _PHI_MIN), ceiling)
                draw_w = _power_w(phi, share, u_m, u_c, prof, scale, v_min, phi_knee, kappa, phi_mem)
                step = phi * (cap_w - draw_w) / (_EXPONENT * max(draw_w - prof.p0_w, _TWENTY))
                phi = min(max(phi + step, _PHI_MIN), ceiling)
                draw_w = _power_w(phi, share, u_m, u_c, prof, scale, v_min, phi_knee, kappa, phi_mem)
                step = phi * (cap_w - draw_w) / (_EXPONENT * max(draw_w - prof.p0_w, _TWENTY))
                phi = min(max(phi + step, _PHI_MIN), ceiling)
                draw_w = _power_w(phi, share, u_m, u_c, prof, scale, v_min, phi_knee, kappa, phi_mem)
                is_free = (free_w <= cap_w) & (ceiling >= _ONE)
                phi = _ONE if is_free else phi
                draw_w = free_w if is_free else draw_w
                # the firmware holds its cap on a shorter clock than this step, within its overshoot
                draw_w = min(draw_w, cap_w * overshoot)
                idle_w = min(prof.pli_w, draw_w)
                draw_w = idle_w + working * (draw_w - idle_w)
                demand_w = prof.pli_w + working * max(min(free_w, prof.tdp_w) - prof.pli_w, _ZERO)
                # loading a model, or nothing loaded
                is_moving = moving_s > _ZERO
                draw_w = prof.pli_w if is_moving else draw_w
                demand_w = prof.pli_w if is_moving else demand_w
                parked_w = prof.p0_w if column[DARK + i] <= _ZERO else _ZERO
                draw_w = parked_w if is_off else draw_w
                demand_w = prof.p0_w if is_off else demand_w
                column[PHI + i] = _ONE if is_off | is_moving else phi
                gpu_w = draw_w * column[GPUS + i] + parked_w * column[RESETTING + i]
                # until its cap comes into force the node draws what it drew
                before_w, non_gpu_w = column[GPU_W + i], column[NON_GPU + i]
                lands = waits_s * per_dt if is_landing else _ZERO
                lands = _ZERO if is_off | is_moving else lands
                mean_w = gpu_w + lands * (before_w - gpu_w)
                peak_w = max(before_w, gpu_w) if lands > _ZERO else gpu_w
                column[LANDS + i] = lands
                column[GPU_W + i] = gpu_w
                column[DEMAND + i] = demand_w * column[GPUS + i] + prof.p0_w * column[RESETTING + i]
                column[ENERGY + i] += mean_w * dt
                column[NODE_W + i] = mean_w + non_gpu_w
                column[PEAK_W + i] = peak_w + non_gpu_w
            t += 1
