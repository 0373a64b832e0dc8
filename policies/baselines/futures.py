"""Futures that a planner may imagine: what was heard lately goes on, its noise resampled."""

import numpy as np

from ...fleet.topology import Timing
from ..work import OUTPUT, PROMPT, REQUESTS

HISTORY = 24
"""Decisions that a future's noise is resampled from: two minutes at the default interval."""


def remember(heard: np.ndarray, arrival_rps: np.ndarray) -> np.ndarray:
    """What was heard lately, newest first, shape (B, S, HISTORY), with one more rate, shape (B, S)."""
    return np.concatenate([arrival_rps[..., None], heard[..., :-1]], -1)


def sample_futures(
    timing: Timing, time_s: float, heard: np.ndarray, work: np.ndarray, steps: int, count: int, noise: float
) -> np.ndarray:
    """Futures of one environment.

    The first has no noise; the others repeat stretches of the noise heard lately from a random place on.

    Args:
        timing: The site's clock.
        time_s: Now: the seed, so that the same moment is imagined the same way.
        heard: Requests/s of the last decisions, newest first, shape (S, HISTORY); NaN for none.
        work: Fast averages of requests/s, prompt and output tokens/s, shape (S, 3).
        steps: Control intervals ahead.
        count: How many futures.
        noise: How much of the noise heard lately is in them, as an exponent of its ratios.

    Returns:
        Requests per tick, mean prompt and mean output tokens, shape (count, ticks, S, 3).
    """
    rng = np.random.default_rng([int(time_s * 1000), 7])
    rate = np.maximum(work[:, REQUESTS], 1e-6)
    known = np.isfinite(heard)
    mean = np.where(known, heard, 0.0).sum(-1) / np.maximum(known.sum(-1), 1)
    ratio = np.where(known, heard, mean[:, None])[:, ::-1] / np.maximum(mean, 1e-6)[:, None]
    ratio = np.clip(ratio, 0.1, 10.0) ** noise
    ratio /= ratio.mean(-1, keepdims=True)
    out = np.empty((count, steps, len(rate), 3))
    for m in range(count):
        at = (rng.integers(HISTORY) + np.arange(steps)) % HISTORY
        out[m, ..., 0] = rate * timing.tick_s * (ratio[:, at].T if m else 1.0)
    out[..., 1] = np.maximum(work[:, PROMPT] / rate, 1.0)
    out[..., 2] = np.maximum(work[:, OUTPUT] / rate, 1.0)
    return out.repeat(round(timing.control_s / timing.tick_s), axis=1)
