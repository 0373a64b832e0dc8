"""Kernels of the nominal model: clocks under a cap, rates at it, and where the next watt earns most.

Clocks are tabled over caps and batches (`PlantModel`), because the power equation has no inverse; everything else is
the plant's own equations.
"""

import math

import numpy as np

from ..fleet.tables import DECODE, STAGES
from .compiled import kernel
from .physics import (
    busy_power_w,
    compute_share,
    decode_batch_within,
    decode_step_s,
    decode_use,
    kv_batch,
    prompt_s,
    relative_rate,
)

POOL_ROW = np.dtype([(name, "f8") for name in ("low_w", "high_w", "gpus", "replicas", "sku")], align=True)
"""A pool as the model tables it: legal caps per GPU, GPUs and replicas of a node, its service's commonest product."""


@kernel
def prefill_draws(prof, nominal, phis, out):
    """Draw of a prefilling GPU at each clock fraction; `prof` is one row as shape (1,)."""
    row = prof[0]
    for i in range(len(phis)):
        out[i] = busy_power_w(
            phis[i], 1.0, row.um_prefill, row.mfu_prefill, row, 1.0, nominal[0], nominal[1], nominal[2], nominal[3]
        )


@kernel
def decode_draws(prof, nominal, phis, batch, context, out):
    """Draw of a GPU that decodes a batch at each clock fraction."""
    row = prof[0]
    u_m, u_c = decode_use(row, batch, context, decode_step_s(row, batch, context))
    cb = compute_share(batch)
    for i in range(len(phis)):
        out[i] = busy_power_w(phis[i], cb, u_m, u_c, row, 1.0, nominal[0], nominal[1], nominal[2], nominal[3])


@kernel(inline=True)
def _clock(caps, log_batches, table, cap_w, batch):
    """Clock fraction from `table`, bilinear in (log batch, cap), clipped at its ends."""
    last = len(caps) - 1
    x = min(max((cap_w - caps[0]) / (caps[1] - caps[0]), 0.0), last - 1e-6)
    i = int(x)
    fx = x - i
    log_batch = math.log(max(batch, 1.0))
    j = 0
    while j < len(log_batches) - 2 and log_batch >= log_batches[j + 1]:
        j += 1
    fy = min(max((log_batch - log_batches[j]) / (log_batches[j + 1] - log_batches[j]), 0.0), 1.0)
    low = table[j, i] * (1.0 - fx) + table[j, i + 1] * fx
    high = table[j + 1, i] * (1.0 - fx) + table[j + 1, i + 1] * fx
    return low * (1.0 - fy) + high * fy


@kernel
def decode_steps(prof, caps, log_batches, table, phi_mem, cap_w, batch, context, out):
    """Decode step times under caps, elementwise over flat arrays."""
    row = prof[0]
    for i in range(len(out)):
        phi = _clock(caps, log_batches, table, cap_w[i], batch[i])
        out[i] = decode_step_s(row, batch[i], context[i]) / relative_rate(phi, compute_share(batch[i]), phi_mem)


@kernel
def decode_batches(prof, caps, log_batches, table, phi_mem, itl_s, cap_w, context, out):
    """Requests that one replica decodes within `itl_s` and its KV memory under caps, elementwise over flat arrays."""
    row = prof[0]
    for i in range(len(out)):
        room = max(kv_batch(row, context[i]), 1.0)
        batch = min(max(decode_batch_within(row, context[i], itl_s), 1.0), room)
        for _ in range(2):  # the clock depends on the batch: two fixed-point steps (MODEL.md section 7)
            phi = _clock(caps, log_batches, table, cap_w[i], batch)
            rel = relative_rate(phi, compute_share(batch), phi_mem)
            batch = min(max(decode_batch_within(row, context[i], itl_s * rel), 1.0), room)
        out[i] = batch


@kernel(inline=True)
def _context_at(context, log_low, per_log, points):
    """Row of the context tables and the share of the next one."""
    x = min(max((math.log(max(context, 1.0)) - log_low) * per_log, 0.0), points - 1.000001)
    return int(x), x - int(x)


@kernel(inline=True)
def _prompt_tok_s(profiles, pool_rows, p, prompt_tok):
    """Prefill tokens/s of a GPU at full clock with prompts of a mean length."""
    prof = profiles[p // STAGES, int(pool_rows[p].sku)]
    length = max(prompt_tok, 1.0)
    return length / (prof.tp * prompt_s(prof, length))


@kernel
def node_rates(profiles, pool_rows, contexts, prefill_phi, slots, rates, cap_w, context, prompt_tok, out, out_slots):
    """Tokens/s of a node of every pool under caps; see `PlantModel.node_tok_s`.

    Args:
        profiles: `hardware.PROFILE`, shape (S, K).
        pool_rows: `POOL_ROW`, shape (P,).
        contexts: (log of the first context, rows per unit of log).
        prefill_phi: Clock fractions of a prefilling GPU at each tabled cap, shape (P, J).
        slots: Requests per decoding node, shape (P, C, J).
        rates: Tokens/s per decoding node, shape (P, C, J).
        cap_w: Caps per GPU, shape (B, P).
        context: Mean context, shape (B, S).
        prompt_tok: Mean prompt length, shape (B, S).
        out: Shape (B, P).
        out_slots: Requests within the ITL target of a decoding node, 0 for prefill; shape (B, P).
    """
    last = prefill_phi.shape[1] - 1
    for b in range(len(cap_w)):
        for p in range(len(pool_rows)):
            row = pool_rows[p]
            x = min(max((cap_w[b, p] - row.low_w) / max(row.high_w - row.low_w, 1e-9), 0.0), 1.0) * last
            j = min(int(x), last - 1)
            fx = x - j
            if p % STAGES == DECODE:
                c, fc = _context_at(context[b, p // STAGES], contexts[0], contexts[1], slots.shape[1])
                out_slots[b, p] = _between(slots, p, c, fc, j) * (1.0 - fx) + _between(slots, p, c, fc, j + 1) * fx
                out[b, p] = _between(rates, p, c, fc, j) * (1.0 - fx) + _between(rates, p, c, fc, j + 1) * fx
            elif row.gpus == 0.0:
                out[b, p], out_slots[b, p] = 0.0, 0.0
            else:
                out_slots[b, p] = 0.0
                phi = prefill_phi[p, j] * (1.0 - fx) + prefill_phi[p, j + 1] * fx
                out[b, p] = phi * row.gpus * _prompt_tok_s(profiles, pool_rows, p, prompt_tok[b, p // STAGES])


@kernel(inline=True)
def _between(table, p, c, share, j):
    return table[p, c, j] + share * (table[p, c + 1, j] - table[p, c, j])


@kernel(inline=True)
def _utility(
    p, j, c, fc, prefill_phi, slots, rates, prompt_tok_s, nodes, gpus, asked_tok_s, active, value, sharpness
):  # fmt: skip
    """Utility of pool `p` at its j-th tabled cap."""
    if p % STAGES == DECODE:
        cover = nodes * _between(rates, p, c, fc, j) / asked_tok_s
        # the batch in flight must be decoded within the ITL target whatever arrives next
        cover = min(cover, nodes * _between(slots, p, c, fc, j) / max(active, 1.0))
    else:
        cover = gpus * prefill_phi[p, j] * prompt_tok_s / asked_tok_s
    return value * (1.0 - math.exp(-sharpness * cover))


@kernel
def marginal_caps(
    profiles, pool_rows, contexts, prefill_phi, slots, rates, nodes, gpus, asked_tok_s, value, active, context,
    prompt_tok, sharpness, budget_w, work, out,
):  # fmt: skip
    """Caps per GPU that spend a budget where the next watt earns most; see `PlantModel.marginal_caps`.

    A merge over pools: each offers its next piece of cap at a slope that never rises again (concave envelope from
    the left), and the steepest is taken; ties go to the pool that stands first.

    Args:
        work: Scratch, shape (P, 6).
        out: Shape (B, P), watts per GPU.

    The other arguments are as in `node_rates`, and shape (B, P) or, for `active`, `context` and `prompt_tok`, (B, S).
    """
    pools = len(pool_rows)
    pieces = prefill_phi.shape[1] - 1
    for b in range(len(budget_w)):
        spare_w = budget_w[b]
        c, fc, prompt_tok_s = 0, 0.0, 0.0
        for p in range(pools):
            row, s = pool_rows[p], p // STAGES
            spare_w -= row.low_w * gpus[b, p]
            if p % STAGES == DECODE:
                c, fc = _context_at(context[b, s], contexts[0], contexts[1], slots.shape[1])
            elif row.gpus > 0.0:
                prompt_tok_s = _prompt_tok_s(profiles, pool_rows, p, prompt_tok[b, s])
            first = _utility(
                p, 0, c, fc, prefill_phi, slots, rates, prompt_tok_s, nodes[b, p], gpus[b, p],
                asked_tok_s[b, p], active[b, s], value[b, p], sharpness,
            )  # fmt: skip
            second = _utility(
                p, 1, c, fc, prefill_phi, slots, rates, prompt_tok_s, nodes[b, p], gpus[b, p],
                asked_tok_s[b, p], active[b, s], value[b, p], sharpness,
            )  # fmt: skip
            width_w = max(max(gpus[b, p], 1.0) * (row.high_w - row.low_w) / pieces, 1e-9)
            work[p, 0] = 0.0  # pieces taken
            work[p, 1] = second
            work[p, 2] = (second - first) / width_w
            work[p, 3] = width_w
            work[p, 4] = fc + c
            work[p, 5] = prompt_tok_s
        while spare_w > 0.0:
            best = -1
            for p in range(pools):
                if work[p, 0] < pieces and (best < 0 or work[p, 2] > work[best, 2]):
                    best = p
            if best < 0:
                break
            width_w = work[best, 3]
            if width_w >= spare_w:
                work[best, 0] += spare_w / width_w
                break
            spare_w -= width_w
            taken = int(work[best, 0]) + 1
            work[best, 0] = taken
            if taken < pieces:
                c = int(work[best, 4])
                utility = _utility(
                    best, taken + 1, c, work[best, 4] - c, prefill_phi, slots, rates, work[best, 5],
                    nodes[b, best], gpus[b, best], asked_tok_s[b, best], active[b, best // STAGES], value[b, best],
                    sharpness,
                )  # fmt: skip
                work[best, 2] = min(work[best, 2], (utility - work[best, 1]) / width_w)
                work[best, 1] = utility
        for p in range(pools):
            row = pool_rows[p]
            out[b, p] = row.low_w + work[p, 0] / pieces * (row.high_w - row.low_w)
