"""A closed form for waiting and early rejection before prefill that holds from idle to overload.

`envs.serving_dynamics` takes the Allen-Cunneen wait at the load of the *present tick* and cuts its exponential off
where early rejection sets in. Beside the replay that goes wrong in three ways:

1. The load of one tick is a random number (one replica serves 4 to 9 prompts per second), and the mean wait is convex
   in it: at a long-run load of 0.5 the tick's load passes 0.98 often, and half of what comes is turned away. The
   realised arrivals also build the fluid backlog, so the same chance counts twice.
2. An infinite queue's tail is taken for the loss of one that turns requests away: those who would wait too long never
   join, so the queue stays short, and there is a stationary state at any load.
3. All prompts are taken as long as the mean. The rule turns *long* prompts away, whose own prefill leaves no time to
   wait: few requests, much work. Above the capacity of 20 replicas a few percent of the requests carry the work
   that cannot be done.

Here the work ahead of a new prompt, in seconds per replica, is a diffusion whose drift depends on its state: with w
ahead only prompts shorter than `room - w` join, a share B(room - w) of the work, so that

    density(w) ~ exp(-2 k / ((ca2 + cs2) S) * integral_0^w (1 - rho B(room - u)) du),   0 <= w <= room,

with probability `wait_frac` of waiting at all (Sakasegawa's exponent, as now). `rho` is the offered work over capacity
*smoothed over half a minute*, S the mean prefill of a prompt, room = 0.7 of the target less transfer and the wait for
decode. B of lognormal lengths is a normal distribution function. The sum over `POINTS` costs one exponential and one
error function per point and service; no memory.
"""

import itertools
import math
from dataclasses import dataclass

POINTS = 24
LENGTHS = 40
SMOOTHING_S = 30.0
"""Of `rho`: 10 to 60 s give the same within 1 %."""


@dataclass(frozen=True)
class Waiting:
    """Before prefill, at one load.

    Attributes:
        reject_frac: Share of requests turned away.
        reject_work_frac: Share of the work that they carry.
        ttft: (seconds of wait and own prefill, share of offered requests) of every class of admitted requests.
    """

    reject_frac: float
    reject_work_frac: float
    ttft: list[tuple[float, float]]

    def quantile_s(self, q: float) -> float:
        """Of wait and own prefill of admitted requests; NaN where nobody is admitted."""
        total = sum(m for _, m in self.ttft)
        below = 0.0
        for value_s, mass in sorted(self.ttft):
            below += mass
            if below >= q * total:
                return value_s
        return math.nan


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def length_classes(cs2: float, classes: int = LENGTHS) -> list[tuple[float, float]]:
    """(length over the mean, share of requests) of lognormal lengths; the last classes are the longest percents."""
    from statistics import NormalDist

    sigma = math.sqrt(math.log1p(cs2))
    edges = [i / classes for i in range(classes)] + [1 - 0.4 / classes, 1 - 0.1 / classes, 1.0]
    if sigma < 1e-9:
        return [(1.0, 1.0)]
    out = []
    for low, high in itertools.pairwise(edges):
        z = NormalDist().inv_cdf(0.5 * (low + high))
        out.append((math.exp(sigma * z - 0.5 * sigma * sigma), high - low))
    mean = sum(x * m for x, m in out)
    return [(x / mean, m) for x, m in out]


def prefill_waiting(rho: float, servers: int, service_s: float, ca2: float, cs2: float, room_s: float) -> Waiting:
    """Waiting and early rejection before prefill.

    Args:
        rho: Offered work over capacity, above 1 in overload.
        servers: Prefill replicas.
        service_s: Mean prefill of one prompt on one replica.
        ca2: Squared CV of the gaps between arrivals.
        cs2: Squared CV of prompt lengths, lognormal.
        room_s: Longest wait and own prefill together that early rejection lets in.
    """
    classes = length_classes(cs2)
    if room_s <= 0.0 or rho <= 0.0:
        lost = 1.0 if room_s <= 0.0 else 0.0
        return Waiting(lost, lost, [] if lost else [(service_s * x, m) for x, m in classes])
    sigma = math.sqrt(math.log1p(cs2))
    step_s = room_s / POINTS

    def joined(room: float) -> float:
        """Share of the work that prompts shorter than `room` carry."""
        if sigma < 1e-9:
            return 1.0 if room >= service_s else 0.0
        return _normal_cdf((math.log(room / service_s) - 0.5 * sigma * sigma) / sigma)

    exponent, exponents = 0.0, []
    for i in range(POINTS):
        exponent -= (
            2.0 * servers / ((ca2 + cs2) * service_s) * (1.0 - rho * joined(room_s - (i + 0.5) * step_s)) * step_s
        )
        exponents.append(exponent)
    top = max(exponents)
    density = [math.exp(e - top) for e in exponents]
    total = sum(density)
    density = [d / total for d in density]
    wait_frac = min(rho * joined(room_s), 1.0) ** (math.sqrt(2.0 * (servers + 1.0)) - 1.0)
    rejected = rejected_work = 0.0
    ttft: list[tuple[float, float]] = []
    for length, mass in classes:
        own_s = service_s * length
        if own_s > room_s:
            rejected += mass
            rejected_work += mass * length
            continue
        ttft.append((own_s, mass * (1.0 - wait_frac)))
        for i, share in enumerate(density):
            wait_s = (i + 0.5) * step_s
            if wait_s <= room_s - own_s:
                ttft.append((own_s + wait_s, mass * wait_frac * share))
            else:
                rejected += mass * wait_frac * share
                rejected_work += mass * wait_frac * share * length
    return Waiting(rejected, rejected_work, ttft)
