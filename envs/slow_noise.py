"""Slowly varying noise: the recursion that a loop in Python would spend most of a reset on."""

import numpy as np

from .compiled import kernel


def ornstein_uhlenbeck(
    rngs: list[np.random.Generator], shape: tuple[int, int, int], tick_s: float, corr_s: float
) -> np.ndarray:
    """Standard normal processes whose correlation falls as exp(-t / corr_s).

    Args:
        rngs: One generator per environment.
        shape: (B, T, S).
        tick_s: Length of a tick.
        corr_s: Time in which the correlation falls by a factor e.

    Returns:
        Three processes per service, shape (B, T, S, 3).
    """
    noise = np.empty((*shape, 3))
    for rng, rows in zip(rngs, noise, strict=True):
        rng.standard_normal(out=rows)
    keep = float(np.exp(-tick_s / corr_s))
    _remember(keep, float(np.sqrt(1 - keep**2)), noise.reshape(shape[0], shape[1], -1))
    return noise


@kernel
def _remember(keep, fresh, noise):
    """Turn independent numbers of shape (B, T, K) into processes that keep `keep` of their last value."""
    for b in range(noise.shape[0]):
        for t in range(1, noise.shape[1]):
            for i in range(noise.shape[2]):
                noise[b, t, i] = keep * noise[b, t - 1, i] + fresh * noise[b, t, i]
