"""Scores: how much of the way from the static stage table to the bound a policy went, family by family.

score = 100 (goodput - static) / (bound - static), over windows and training seeds by the interquartile mean with a
stratified bootstrap interval (Agarwal et al., NeurIPS 2021): windows and seeds are both resampled.
"""

from dataclasses import dataclass

import numpy as np

from ..statistics import RESAMPLES

ATTAINMENT_LOSS_FRAC = 0.01
"""A family is lost where more than one point of attainment is given up for goodput."""

MIN_GAP_FRAC = 0.02
"""Below this distance between bound and static table a family has no score: noise would decide (DESIGN.md 9)."""


@dataclass(frozen=True)
class Windows:
    """One policy's windows of one family.

    Attributes:
        goodput: `goodput_tok_s_per_mw`, shape (seeds, windows).
        attainment: `slo_attainment_frac`, the same shape.
        violation_ws: `budget_violation_ws`, the same shape.
    """

    goodput: np.ndarray
    attainment: np.ndarray
    violation_ws: np.ndarray


@dataclass(frozen=True)
class Score:
    """Score of one family.

    Attributes:
        score: 0 is the static table, 100 the bound; None where the family is lost or has no score.
        ci95: Its interval.
        reason: Why there is none; empty otherwise.
    """

    score: float | None
    ci95: tuple[float, float] | None
    reason: str = ""


def iqm(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Interquartile mean: the mean of the middle half, with fractional weights at its ends."""
    ordered = np.sort(np.asarray(values, float).reshape(-1) if axis is None else values, axis=-1)
    n = ordered.shape[-1]
    edges = np.arange(n + 1) / n
    inside = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return ordered @ (inside / inside.sum())


def score(policy: Windows, static: Windows, bound: Windows, seed: int = 0) -> Score:
    """Score a policy's windows of one family.

    Args:
        policy: Of the submission.
        static: Of the tuned static stage table, (1, windows): the same windows.
        bound: Of the bound, (1, windows).
        seed: Of the bootstrap.
    """
    if (policy.violation_ws > 0).any():
        return Score(None, None, "a limit in force was exceeded")
    lost = float(static.attainment.mean() - policy.attainment.mean())
    if lost > ATTAINMENT_LOSS_FRAC:
        return Score(None, None, f"{100 * lost:.1f} points of attainment lost")
    gap = float(bound.goodput.mean() - static.goodput.mean())
    if gap < MIN_GAP_FRAC * float(static.goodput.mean()):
        return Score(None, None, f"the bound is within {100 * MIN_GAP_FRAC:g} % of the static table")
    scores = 100.0 * (policy.goodput - static.goodput[0]) / gap
    rng = np.random.default_rng(seed)
    seeds, windows = scores.shape
    draws = np.stack(
        [
            scores[np.ix_(rng.integers(seeds, size=seeds), rng.integers(windows, size=windows))].reshape(-1)
            for _ in range(RESAMPLES)
        ]
    )
    low, high = np.quantile(iqm(draws, axis=-1), [0.025, 0.975])
    return Score(float(iqm(scores)), (float(low), float(high)))
