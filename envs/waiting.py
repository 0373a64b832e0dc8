"""Waiting and early rejection before prefill, from idle to overload, once per step.

The work ahead of a new prompt, in seconds per replica, is a diffusion whose drift depends on its state: with w ahead
only prompts shorter than `room - w` join, a share B(room - w) of the work, so that its density is

    exp(-2 k / ((ca2 + cs2) S) * integral_0^w (1 - rho B(room - u)) du),   0 <= w <= room

(derived and held to a request-level replay in `experiments/replay/diffusion.py`). Sakasegawa's exponent gives the
probability of waiting at all; prompt lengths are lognormal.
"""

import math

from .approximations import exp_of, log_of
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
# Rows of `prefill_waiting`'s working memory, WAIT_POINTS each.
_JOINS, _WORKS, _IN_TIME, _WEIGHTS = range(0, 4 * WAIT_POINTS, WAIT_POINTS)
WAIT_WORK = 4 * WAIT_POINTS

_NEXT_LENGTH, _NEXT_WAIT = 0.7548776662466927, 0.5698402909980532  # the plastic number's: evenly over the square


@kernel(inline=True)
def histogram_bin(value_s):
    """Index of the logarithmic bin that holds a latency."""
    if value_s <= HISTOGRAM_LOW_S:
        return 0
    return min(int((log_of(value_s) - _LOG_LOW) * _BINS_PER_LOG), HISTOGRAM_BINS - 1)


@kernel(inline=True)
def normal_cdf(z):
    """Standard normal distribution within 1.5e-4 (Page 1977)."""
    z = min(max(z, -6.0), 6.0)
    return 1.0 / (1.0 + exp_of(-z * (1.5976 + 0.070565992 * z * z)))


@kernel(inline=True)
def normal_quantile(p):
    """Its inverse within 4.5e-4 (Abramowitz and Stegun 26.2.23)."""
    tail = min(max(min(p, 1.0 - p), 1e-9), 0.5)
    t = math.sqrt(-2.0 * log_of(tail))
    z = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)))
    return z if p > 0.5 else -z


@kernel
def prefill_waiting(rho, servers, service_s, ca2, cs2, room_s, spare_s, wait_log, work):
    """Who joins, who is in time and how long they wait.

    Args:
        rho: Offered work over capacity, above 1 in overload.
        servers: Prefill replicas.
        service_s: Mean prefill of one prompt on one replica.
        ca2: Squared CV of the gaps between arrivals.
        cs2: Squared CV of prompt lengths.
        room_s: Longest wait and own prefill together that early rejection lets in.
        spare_s: Longest that meets the target.
        wait_log: WAIT_POINTS numbers to write: logarithms of the density of waits.
        work: WAIT_WORK numbers of working memory; its last row is left with the density over its largest value.

    Returns:
        (share of requests that join, share of the work that they carry, share that joins and is in time,
        probability of waiting, mean wait of those who join, range of the waits).
    """
    if room_s <= 0.0:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    sigma = max(math.sqrt(log_of(1.0 + cs2)), 0.02)
    per_sigma, half = 1.0 / sigma, 0.5 * sigma
    rate = 2.0 * max(servers, 1.0) / (max(ca2 + cs2, 1e-3) * service_s)
    x = log_of(room_s / service_s) * per_sigma
    free_join, free_work = normal_cdf(x + half), normal_cdf(x - half)
    is_limited = spare_s < room_s
    free_ok = free_join
    if is_limited:
        free_ok = normal_cdf(log_of(max(spare_s, 1e-9) / service_s) * per_sigma + half)
    busy = min(max(rho * free_work, 1e-300), 1.0)
    wait_frac = exp_of((math.sqrt(2.0 * (max(servers, 1.0) + 1.0)) - 1.0) * log_of(busy))
    if wait_frac < 1e-3:
        return free_join, free_work, free_ok, 0.0, 0.0, 0.0
    range_s = min(room_s, 6.0 / (rate * max(1.0 - rho * free_work, 1e-6)))
    step_s = range_s / WAIT_POINTS
    per_service = 1.0 / service_s
    # each point by itself, so that all of them go through the same vector instructions, then the sums in their order
    for i in range(WAIT_POINTS):
        wait_s = (i + 0.5) * step_s
        x = log_of((room_s - wait_s) * per_service) * per_sigma
        is_all = x - half >= 3.5
        work[_JOINS + i] = 1.0 if is_all else normal_cdf(x + half)
        work[_WORKS + i] = 1.0 if is_all else normal_cdf(x - half)
        left_s = spare_s - wait_s
        in_time = normal_cdf(log_of(max(left_s, 1e-9) * per_service) * per_sigma + half)
        work[_IN_TIME + i] = in_time if left_s > 0.0 else 0.0
    log = before = top = 0.0
    for i in range(WAIT_POINTS):
        slope = rate * (rho * work[_WORKS + i] - 1.0)
        log += 0.5 * step_s * (before + slope)
        before = slope
        wait_log[i] = log
        top = log if i == 0 else max(top, log)
    for i in range(WAIT_POINTS):
        work[_WEIGHTS + i] = exp_of(wait_log[i] - top)
    in_time_row = _IN_TIME if is_limited else _JOINS
    total = join = carried = ok = wait = 0.0
    for i in range(WAIT_POINTS):
        weight, joins = work[_WEIGHTS + i], work[_JOINS + i]
        total += weight
        join += weight * joins
        carried += weight * work[_WORKS + i]
        ok += weight * work[in_time_row + i]
        wait += weight * joins * ((i + 0.5) * step_s)
    per = wait_frac / total
    join = (1.0 - wait_frac) * free_join + per * join
    carried = (1.0 - wait_frac) * free_work + per * carried
    ok = (1.0 - wait_frac) * free_ok + per * ok
    return join, carried, min(ok, join), wait_frac, per * wait / max(join, 1e-9), range_s


@kernel
def add_ttft(histogram, base_s, slot_s, service_s, cs2, room_s, wait_frac, range_s, requests, sv, work):
    """Add `requests` that joined: base_s, their own prefill, their wait before it and the luck of a decode slot.

    `SAMPLES` pairs of a length and a wait stand for them, at places that move from tick to tick and so fill both
    distributions evenly.

    Args:
        slot_s: Standard deviation of the wait for a decode slot, whose mean is within base_s.
        requests: Joined requests over the share that joins.
        sv: The service; holds the places of the samples, and of `prefill_waiting` logarithms that are overwritten.
        work: As `prefill_waiting` left it.
    """
    sigma = max(math.sqrt(log_of(1.0 + cs2)), 0.02)
    step_s = range_s / WAIT_POINTS
    total = 0.0
    if wait_frac > 0.0:
        for i in range(WAIT_POINTS):
            total += work[_WEIGHTS + i]
            sv.wait_log[i] = total
    sv.length_place = (sv.length_place + _NEXT_LENGTH) % 1.0
    sv.wait_place = (sv.wait_place + _NEXT_WAIT) % 1.0
    mass = requests / SAMPLES
    for i in range(SAMPLES):
        z = normal_quantile((i + sv.length_place) / SAMPLES)
        own_s = service_s * exp_of(sigma * (z - 0.5 * sigma))
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
