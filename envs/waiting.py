"""Waiting and early rejection before prefill, from idle to overload, once per step.

The work ahead of a new prompt, in seconds per replica, is a diffusion whose drift depends on its state: with w ahead
only prompts shorter than `room - w` join, a share B(room - w) of the work, so that its density is

    exp(-2 k / ((ca2 + cs2) S) * integral_0^w (1 - rho B(room - u)) du),   0 <= w <= room

(derived and held to a request-level replay in `experiments/replay/diffusion.py`). Sakasegawa's exponent gives the
probability of waiting at all; prompt lengths are lognormal.
"""

import math

from .compiled import kernel
from .plant_tables import HISTOGRAM_BINS, HISTOGRAM_HIGH_S, HISTOGRAM_LOW_S, WAIT_POINTS

SMOOTHING_S = 15.0
"""Load is a mean over this long: the load of one tick is a random number, and waiting is convex in it."""

LIMITLESS_LOAD = 0.98
"""Where nobody is turned away the fluid backlog rules beyond this load."""

SAMPLES = 4
"""Requests per tick that stand for all in the TTFT histogram; they move from tick to tick."""

_LOG_LOW = math.log(HISTOGRAM_LOW_S)
_BINS_PER_LOG = HISTOGRAM_BINS / (math.log(HISTOGRAM_HIGH_S) - math.log(HISTOGRAM_LOW_S))
_NEXT_LENGTH, _NEXT_WAIT = 0.7548776662466927, 0.5698402909980532  # the plastic number's: evenly over the square


@kernel(inline=True)
def histogram_bin(value_s):
    """Index of the logarithmic bin that holds a latency."""
    if value_s <= HISTOGRAM_LOW_S:
        return 0
    return min(int((math.log(value_s) - _LOG_LOW) * _BINS_PER_LOG), HISTOGRAM_BINS - 1)


@kernel(inline=True)
def normal_cdf(z):
    """Standard normal distribution within 1.5e-4 (Page 1977)."""
    z = min(max(z, -6.0), 6.0)
    return 1.0 / (1.0 + math.exp(-z * (1.5976 + 0.070565992 * z * z)))


@kernel(inline=True)
def normal_quantile(p):
    """Its inverse within 4.5e-4 (Abramowitz and Stegun 26.2.23)."""
    tail = min(max(min(p, 1.0 - p), 1e-9), 0.5)
    t = math.sqrt(-2.0 * math.log(tail))
    z = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)))
    return z if p > 0.5 else -z


@kernel
def prefill_waiting(rho, servers, service_s, ca2, cs2, room_s, spare_s, wait_log):
    """Who joins, who is in time and how long they wait.

    Args:
        rho: Offered work over capacity, above 1 in overload.
        servers: Prefill replicas.
        service_s: Mean prefill of one prompt on one replica.
        ca2: Squared CV of the gaps between arrivals.
        cs2: Squared CV of prompt lengths.
        room_s: Longest wait and own prefill together that early rejection lets in.
        spare_s: Longest that meets the target.
        wait_log: WAIT_POINTS of working memory: logarithms of the density of waits.

    Returns:
        (share of requests that join, share of the work that they carry, share that joins and is in time,
        probability of waiting, mean wait of those who join, range of the waits, scale of their density).
    """
    if room_s <= 0.0:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    sigma = max(math.sqrt(math.log1p(cs2)), 0.02)
    per_sigma, half = 1.0 / sigma, 0.5 * sigma
    rate = 2.0 * max(servers, 1.0) / (max(ca2 + cs2, 1e-3) * service_s)
    x = math.log(room_s / service_s) * per_sigma
    free_join, free_work = normal_cdf(x + half), normal_cdf(x - half)
    is_limited = spare_s < room_s
    free_ok = free_join
    if is_limited:
        free_ok = normal_cdf(math.log(max(spare_s, 1e-9) / service_s) * per_sigma + half)
    wait_frac = min(rho * free_work, 1.0) ** (math.sqrt(2.0 * (max(servers, 1.0) + 1.0)) - 1.0)
    if wait_frac < 1e-3:
        return free_join, free_work, free_ok, 0.0, 0.0, 0.0, 0.0
    range_s = min(room_s, 6.0 / (rate * max(1.0 - rho * free_work, 1e-6)))
    step_s = range_s / WAIT_POINTS
    log, before, top = 0.0, 0.0, 0.0
    total = join = work = ok = wait = 0.0
    for i in range(WAIT_POINTS):
        wait_s = (i + 0.5) * step_s
        x = math.log((room_s - wait_s) / service_s) * per_sigma
        joins = works = 1.0
        if x - half < 3.5:
            joins, works = normal_cdf(x + half), normal_cdf(x - half)
        slope = rate * (rho * works - 1.0)
        log += 0.5 * step_s * (before + slope)
        before = slope
        wait_log[i] = log
        if i == 0 or log > top:  # keep the sums in range
            shrink = math.exp(top - log) if i > 0 else 0.0
            total, join, work, ok, wait = total * shrink, join * shrink, work * shrink, ok * shrink, wait * shrink
            top = log
        weight = math.exp(log - top)
        total += weight
        join += weight * joins
        work += weight * works
        wait += weight * joins * wait_s
        if not is_limited:
            ok += weight * joins
        elif spare_s > wait_s:
            ok += weight * normal_cdf(math.log((spare_s - wait_s) / service_s) * per_sigma + half)
    per = wait_frac / total
    join = (1.0 - wait_frac) * free_join + per * join
    work = (1.0 - wait_frac) * free_work + per * work
    ok = (1.0 - wait_frac) * free_ok + per * ok
    return join, work, min(ok, join), wait_frac, per * wait / max(join, 1e-9), range_s, top


@kernel
def add_ttft(histogram, base_s, slot_s, service_s, cs2, room_s, wait_frac, range_s, top, requests, sv):
    """Add `requests` that joined: base_s, their own prefill, their wait before it and the luck of a decode slot.

    `SAMPLES` pairs of a length and a wait stand for them, at places that move from tick to tick and so fill both
    distributions evenly.

    Args:
        slot_s: Standard deviation of the wait for a decode slot, whose mean is within base_s.
        requests: Joined requests over the share that joins.
        sv: The service; holds the densities of `prefill_waiting` and the places of the samples.
    """
    sigma = max(math.sqrt(math.log1p(cs2)), 0.02)
    step_s = range_s / WAIT_POINTS
    total = 0.0
    if wait_frac > 0.0:
        for i in range(WAIT_POINTS):
            total += math.exp(sv.wait_log[i] - top)
            sv.wait_log[i] = total
    sv.length_place = (sv.length_place + _NEXT_LENGTH) % 1.0
    sv.wait_place = (sv.wait_place + _NEXT_WAIT) % 1.0
    mass = requests / SAMPLES
    for i in range(SAMPLES):
        z = normal_quantile((i + sv.length_place) / SAMPLES)
        own_s = service_s * math.exp(sigma * (z - 0.5 * sigma))
        if own_s > room_s:
            continue
        place = ((2 * i + 1) % (SAMPLES + 1) + sv.wait_place) / SAMPLES
        own_base_s = max(base_s - slot_s * normal_quantile(place), 0.0) if slot_s > 0.0 else base_s
        histogram[histogram_bin(own_base_s + own_s)] += mass * (1.0 - wait_frac)
        if wait_frac <= 0.0:
            continue
        # of the waits those short enough to join, and among them the one at the sample's place
        left = (room_s - own_s) / step_s
        whole = min(int(left), WAIT_POINTS)
        below = sv.wait_log[whole - 1] if whole > 0 else 0.0
        if whole < WAIT_POINTS:
            below += (left - whole) * (sv.wait_log[whole] - below)
        asked = place * below
        j, under = 0, 0.0
        while j < WAIT_POINTS - 1 and sv.wait_log[j] < asked:
            under = sv.wait_log[j]
            j += 1
        wait_s = (j + (asked - under) / max(sv.wait_log[j] - under, 1e-300)) * step_s
        histogram[histogram_bin(own_base_s + own_s + wait_s)] += mass * wait_frac * below / total
