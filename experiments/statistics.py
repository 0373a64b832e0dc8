"""Intervals, bounds and tests over windows and training seeds, all from one crossed bootstrap.

A policy that comes as several training seeds has values of shape (seeds, windows): both are drawn anew with
replacement, so that intervals cover another training as well as another day. What comes as one policy, every
baseline, has one row, and windows alone are drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.05
"""Of tests and of one-sided bounds."""

FLIPS = 8192
"""Sign patterns tried at most; up to 13 windows that is all of them."""

METHOD = (
    f"bounds: one-sided 95 %, bootstrap over windows and training seeds ({RESAMPLES} draws); p: the larger of that "
    "bootstrap's and of a one-sided sign-flip test over windows; Holm over a policy's rows"
)
"""How p-values and bounds come about; printed with them."""


def resampled_means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Bootstrap means; NaN are left out.

    Args:
        values: Shape (..., seeds, windows); what stands in leading axes is drawn alike, so that it stays paired.
        seed: Of the draws.

    Returns:
        Shape (..., RESAMPLES); NaN where a draw met nothing finite.
    """
    values = np.asarray(values, float)
    seeds, windows = values.shape[-2:]
    rng = np.random.default_rng(seed)
    window_counts = rng.multinomial(windows, np.full(windows, 1.0 / windows), size=RESAMPLES)
    # of one seed there is nothing to choose: every draw takes it once
    seed_counts = rng.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=RESAMPLES)
    known = np.isfinite(values)

    def total(table: np.ndarray) -> np.ndarray:
        # (..., windows, draws) times the draws' counts of windows
        return ((np.swapaxes(table, -1, -2) @ seed_counts.T) * window_counts.T).sum(-2)

    count = total(known.astype(float))
    return np.where(count > 0, total(np.where(known, values, 0.0)) / np.where(count > 0, count, 1.0), math.nan)


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, list[float]]:
    """Mean and 95 % bootstrap interval; NaN are left out.

    Args:
        values: Shape (windows,) or (seeds, windows).
        seed: Of the draws.

    Returns:
        (mean, [low, high]); NaN where fewer than one, equal bounds where one value is left.
    """
    kept = _finite_windows(values)
    if kept.size == 0:
        return math.nan, [math.nan, math.nan]
    low, high = np.nanquantile(resampled_means(kept, seed), [0.025, 0.975])
    return float(np.nanmean(kept)), [float(low), float(high)]


def paired(values: np.ndarray, base: np.ndarray, seed: int = 0) -> tuple[float, list[float]]:
    """Mean difference of paired windows relative to the base's mean, with its 95 % interval.

    Args:
        values: Shape (windows,) or (seeds, windows).
        base: The same windows, shape (windows,) or (1, windows).
        seed: Of the draws.

    Returns:
        (relative difference, [low, high]); NaN where the base's mean is zero.
    """
    difference, scale = _difference(values, base)
    if not np.isfinite(difference).any() or scale == 0:
        return math.nan, [math.nan, math.nan]
    mean, (low, high) = interval(difference, seed)
    return mean / scale, sorted((low / scale, high / scale))


@dataclass(frozen=True)
class Bounds:
    """What is known of a mean difference.

    Attributes:
        mean: The difference.
        lower: One-sided 95 % lower bound.
        upper: One-sided 95 % upper bound.
        p: Of "it is not above zero": the larger of the bootstrap's and the sign-flip test's. The bootstrap knows
            training seeds, but of a handful of windows it is too sure, which sign flips never are.
    """

    mean: float
    lower: float
    upper: float
    p: float


def bounds(values: np.ndarray, base: np.ndarray, is_relative: bool, seed: int = 0) -> Bounds:
    """Bounds of the mean paired difference and the p-value of superiority.

    Args:
        values: Shape (windows,) or (seeds, windows).
        base: The same windows, shape (windows,) or (1, windows).
        is_relative: Whether the difference is a share of the base's mean.
        seed: Of the draws.
    """
    difference, scale = _difference(values, base)
    kept = _finite_windows(difference)
    if kept.size == 0 or (is_relative and scale == 0):
        return Bounds(math.nan, math.nan, math.nan, 1.0)
    scale = scale if is_relative else 1.0
    draws = resampled_means(kept, seed) / scale
    lower, upper = np.nanquantile(draws, [LEVEL, 1.0 - LEVEL])
    p = max((1 + int((draws <= 0).sum())) / (1 + RESAMPLES), sign_flip(np.nanmean(kept, 0), seed))
    return Bounds(float(np.nanmean(kept)) / scale, float(lower), float(upper), p)


def sign_flip(differences: np.ndarray, seed: int = 0) -> float:
    """One-sided p-value of "the mean is not above zero", by flipping the signs of paired differences.

    Args:
        differences: One per window, finite.
        seed: Of the patterns, where there are too many to try all.
    """
    d = np.asarray(differences, float)
    if 2 ** len(d) <= FLIPS:
        patterns = (np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1
        known = 0
    else:
        patterns = np.random.default_rng(seed).integers(2, size=(FLIPS, len(d)))
        known = 1  # the pattern that was seen is one of those that could have been
    sums = (1.0 - 2.0 * patterns) @ d
    reached = int((sums >= d.sum() - 1e-12 * np.abs(d).sum()).sum())
    return (reached + known) / (len(patterns) + known)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for several tests (Holm, Scandinavian Journal of Statistics 6, 1979), in the order given."""
    out = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min((len(p_values) - rank) * p_values[i], 1.0))
        out[i] = largest
    return out


def share_of_gap(values: np.ndarray, base: np.ndarray, reference: np.ndarray, seed: int = 0):
    """How much of the way from a base to a reference was gone: (values - base) / (reference - base), of means.

    Args:
        values: Shape (windows,) or (seeds, windows).
        base: The same windows, shape (windows,) or (1, windows).
        reference: The same windows, shape (windows,) or (1, windows).
        seed: Of the draws.

    Returns:
        (share, [low, high]): the interval is over draws of windows and seeds in which the reference lies above the
        base; NaN where it does not in the mean.
    """
    values, base, reference = (np.atleast_2d(np.asarray(a, float)) for a in (values, base, reference))
    shape = np.broadcast_shapes(values.shape, base.shape, reference.shape)
    stack = np.stack([np.broadcast_to(values - base, shape), np.broadcast_to(reference - base, shape)])
    stack = np.where(np.isfinite(stack).all(0), stack, math.nan)
    if not np.isfinite(stack).any():
        return math.nan, [math.nan, math.nan]
    gained, gap = np.nanmean(stack, (-2, -1))
    if gap <= 0:
        return math.nan, [math.nan, math.nan]
    gained_draws, gap_draws = resampled_means(stack, seed)
    kept = gap_draws > 0
    low, high = np.quantile(gained_draws[kept] / gap_draws[kept], [0.025, 0.975])
    return float(gained / gap), [float(low), float(high)]


def _difference(values: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, float]:
    """Paired differences, NaN where either is missing, and the base's mean over the windows that are left."""
    a, b = np.atleast_2d(np.asarray(values, float)), np.atleast_2d(np.asarray(base, float))
    keep = np.isfinite(a) & np.isfinite(b)
    difference = np.where(keep, a - b, math.nan)
    used = np.broadcast_to(b, keep.shape)[keep]
    return difference, float(used.mean()) if used.size else 0.0


def _finite_windows(values: np.ndarray) -> np.ndarray:
    """As (seeds, windows), without windows in which nothing is finite."""
    table = np.atleast_2d(np.asarray(values, float))
    return table[:, np.isfinite(table).any(0)]
