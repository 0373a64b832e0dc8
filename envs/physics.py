"""Equations of MODEL.md sections 2-4 and 7-8 as scalar functions that the plant's kernels compile.

Watts and rates are per GPU unless a name says node. `v_min`, `phi_knee`, `kappa`, `phi_mem` are the uncertain
parameters that scenarios draw.
"""

import math

import numpy as np

from .compiled import kernel

PHI_MIN = 0.18
"""Lowest clock fraction (MODEL.md section 2)."""


@kernel(inline=True)
def voltage(phi, v_min, phi_knee):
    """Voltage fraction at clock fraction `phi` (MODEL.md section 2)."""
    return max(v_min, 1.0 - (1.0 - v_min) * (1.0 - phi) / (1.0 - phi_knee))


@kernel(inline=True)
def relative_rate(phi, cb, phi_mem):
    """Rate relative to full clock for a compute-bound share `cb` (MODEL.md section 3).

    1 / (cb / phi + (1 - cb) max(1, phi_mem / phi)) with one division: loops over nodes spend their time in them.
    """
    return phi / (cb + (1.0 - cb) * max(phi, phi_mem))


@kernel(inline=True)
def compute_share(batch):
    """Compute-bound share of decode by batch: 0.02 at 8, 0.20 at 64, 0.45 at 256 (MODEL.md section 3).

    b / (b + 300) passes within 0.03 of the three points and has no corners.
    """
    return batch / (batch + 300.0)


@kernel(inline=True)
def busy_power_w(phi, cb, u_m, u_c, prof, scale, v_min, phi_knee, kappa, phi_mem):
    """Draw of one busy GPU at clock fraction `phi`.

    MODEL.md section 4 with the root moved from memory to compute: over ML.ENERGY's rows, whose batches span three
    decades, draw grows linearly with the time that memory works and as the root of the arithmetic done
    (docs/plant.md has both errors).
    """
    v = voltage(phi, v_min, phi_knee)
    vv = v * v
    rel = relative_rate(phi, cb, phi_mem)
    return (
        prof.p0_w
        + (prof.pli_w - prof.p0_w + prof.aw_w * prof.hbm_frac) * phi * vv
        + scale * prof.am_w * min(u_m * rel, 1.0) * (kappa + (1.0 - kappa) * vv)
        + scale * prof.ac_w * math.sqrt(u_c * rel) * vv
    )


@kernel(inline=True)
def full_power_w(u_m, u_c, prof, scale):
    """`busy_power_w` at full clock, where voltage and rate are 1."""
    return prof.pli_w + prof.aw_w * prof.hbm_frac + scale * (prof.am_w * min(u_m, 1.0) + prof.ac_w * math.sqrt(u_c))


@kernel(inline=True)
def clock_under_cap(phi, cap_w, ceiling, cb, u_m, u_c, prof, scale, v_min, phi_knee, kappa, phi_mem, steps):
    """Clock fraction that the firmware settles at under `cap_w`, and the uncapped draw.

    Newton steps from the clock fraction `phi` of a moment ago on P ~ P0 + c phi^2.2; two steps are within 0.5 %
    of the root, and the caller bounds the draw by the cap whatever the residue.

    Returns:
        (clock fraction, draw at it, draw with neither cap nor ceiling), the draws in watts.
    """
    free_w = busy_power_w(1.0, cb, u_m, u_c, prof, scale, v_min, phi_knee, kappa, phi_mem)
    if free_w <= cap_w and ceiling >= 1.0:
        return 1.0, free_w, free_w
    phi = min(max(phi, PHI_MIN), ceiling)
    draw_w = busy_power_w(phi, cb, u_m, u_c, prof, scale, v_min, phi_knee, kappa, phi_mem)
    for _ in range(steps):
        slope = 2.2 * max(draw_w - prof.p0_w, 20.0) / phi
        phi = min(max(phi + (cap_w - draw_w) / slope, PHI_MIN), ceiling)
        draw_w = busy_power_w(phi, cb, u_m, u_c, prof, scale, v_min, phi_knee, kappa, phi_mem)
    return phi, draw_w, free_w


@kernel(inline=True)
def decode_step_s(prof, batch, context):
    """Decode step of one replica at full clock, seconds: `batch` requests of mean context `context` tokens.

    The share of experts that a batch touches saturates as b / (b + half); dense models have no expert term.
    """
    return (
        prof.step_fixed_s
        + prof.step_experts_s * batch / (batch + prof.experts_half)
        + batch * (prof.step_request_s + prof.step_context_s * context)
    )


@kernel(inline=True)
def decode_batch_within(prof, context, itl_s):
    """Largest batch of one replica whose step at full clock takes at most `itl_s`; 0 if none does.

    With x = itl - fixed, s the time per request, e and h the experts' terms: s b^2 + (s h + e - x) b - x h = 0.
    """
    x = itl_s - prof.step_fixed_s
    if x <= 0.0:
        return 0.0
    s = prof.step_request_s + prof.step_context_s * context
    p = s * prof.experts_half + prof.step_experts_s - x
    q = math.sqrt(p * p + 4.0 * s * x * prof.experts_half)
    # the root that does not cancel
    return (q - p) / (2.0 * s) if p <= 0.0 else 2.0 * x * prof.experts_half / (p + q)


@kernel(inline=True)
def prompt_s(prof, prompt_tok):
    """Prefill of one prompt of `prompt_tok` tokens on one replica at full clock, seconds."""
    return prof.prompt_fixed_s + prompt_tok * (prof.prompt_token_s + prompt_tok * prof.prompt_token2_s)


@kernel(inline=True)
def decode_use(prof, batch, context, step_s):
    """Activity of memory and of compute over a decode step of `step_s` at full clock (envs/power_law.py).

    Returns:
        (share of the step in which HBM, links and launches draw, in [0, 1); weighted arithmetic over the peak).
    """
    x = (
        prof.um_fixed_s
        + prof.um_experts_s * batch / (batch + prof.experts_half)
        + batch * (prof.um_request_s + context * prof.um_context_s)
    ) / step_s
    return x / math.sqrt(1.0 + x * x), prof.uc_request_s * batch / step_s


@kernel(inline=True)
def kv_batch(prof, context):
    """Requests whose KV fits one replica: 90 % of HBM less the weights (MODEL.md section 7)."""
    return max((0.9 * prof.tp * prof.hbm - prof.weight_bytes) / (context * prof.kv_bytes_token), 0.0)


@kernel(inline=True)
def queue_wait(load, servers, service_s, ca2, cs2):
    """Allen-Cunneen wait of a G/G/k queue with Sakasegawa's exponent.

    Args:
        load: Utilisation, below 1 for a stationary queue; clipped at 0.98, beyond which the fluid backlog rules.
        servers: k.
        service_s: Mean service time.
        ca2: Squared coefficient of variation of inter-arrival times.
        cs2: The same of service times.

    Returns:
        (probability of waiting, mean wait of those who wait in seconds).
    """
    rho = min(max(load, 0.0), 0.98)
    k = max(servers, 1.0)
    wait_frac = rho ** (math.sqrt(2.0 * (k + 1.0)) - 1.0)
    return wait_frac, 0.5 * (ca2 + cs2) * service_s / (k * (1.0 - rho))


@kernel(inline=True)
def breaker_heat(heat, ratio, dt_s, constant_s):
    """Thermal state of a breaker: trips at 1 (MODEL.md section 8).

    x = 1.1 of the rating trips after 17 minutes, 1.4 after a minute with `constant_s` 9.3.
    """
    if ratio > 1.0:
        return heat + dt_s * (ratio - 1.0) ** 2.04 / constant_s
    return heat * math.exp(-dt_s / 600.0) if heat > 0.0 else 0.0


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


@kernel(inline=True)
def hash_uniform(seed, tick, index, stream):
    """A uniform number in [0, 1) from a counter: splitmix64's finaliser (Steele et al., OOPSLA 2014), twice.

    Counter-based, so that an environment's draws do not depend on who else is in the batch. Arguments are
    non-negative integers; arithmetic wraps in 64 bits.
    """
    z = np.uint64(seed) * _GOLDEN + np.uint64(tick) * _MIX_A + np.uint64(index) * _MIX_B + np.uint64(stream)
    for _ in range(2):
        z = z + _GOLDEN
        z = (z ^ (z >> _S30)) * _MIX_A
        z = (z ^ (z >> _S27)) * _MIX_B
        z = z ^ (z >> _S31)
    return float(z >> _S11) * (1.0 / 9007199254740992.0)
