"""Intervals over windows: bootstrap means and paired differences."""

import math

import numpy as np

RESAMPLES = 2000


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, list[float]]:
    """Mean and 95 % bootstrap interval over windows; NaN are left out.

    Returns:
        (mean, [low, high]); NaN where fewer than one, equal bounds where one window is left.
    """
    kept = np.asarray(values, float)
    kept = kept[np.isfinite(kept)]
    if len(kept) == 0:
        return math.nan, [math.nan, math.nan]
    rng = np.random.default_rng(seed)
    draws = kept[rng.integers(len(kept), size=(RESAMPLES, len(kept)))].mean(-1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(kept.mean()), [float(low), float(high)]


def paired(values: np.ndarray, base: np.ndarray, seed: int = 0) -> tuple[float, list[float]]:
    """Mean difference of paired windows relative to the base's mean, with its 95 % interval.

    Returns:
        (relative difference, [low, high]); NaN where the base's mean is zero.
    """
    a, b = np.asarray(values, float), np.asarray(base, float)
    keep = np.isfinite(a) & np.isfinite(b)
    if not keep.any() or b[keep].mean() == 0:
        return math.nan, [math.nan, math.nan]
    scale = b[keep].mean()
    mean, (low, high) = interval(a[keep] - b[keep], seed)
    bounds = sorted((low / scale, high / scale))
    return mean / scale, bounds
