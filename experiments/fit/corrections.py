"""What the laws leave over for models that were measured: factors by model, precision and GPU product.

A group's mean residual is shrunk towards none by n / (n + SHRINK): three rows move a prediction by a third of what
they say, thirty by most of it. Models without rows keep the law. A model has two factors: one on all that it takes,
and one more on what grows with its load (`fit_tilts`), as a constant cannot say both of a batch of 8 and of 1024.
"""

from collections.abc import Mapping

import numpy as np

SHRINK = 5.0
"""Rows that weigh as much as the law itself."""

SHRINK_MODELS = 2.0
"""Models that weigh as much as the law where a variant's factor applies to every model."""

LIMIT = 0.5
"""Largest correction in logarithms: more says that rows and law do not describe one thing."""

TILT_PRIOR = 0.3
"""Prior of a tilt, as the sum of squares of the load's share that weighs as much as the law itself: some five rows
from nearly no load to nearly all of it."""

TILT_LIMIT = 0.7
"""Largest tilt of one level in logarithms."""

Factors = Mapping[str, Mapping[str, float]]
"""Product -> "model/precision" -> factor. Product "any" holds what all of a model's products share; keys with an
variant ("@vllm:dense", "llama-70b/fp8@vllm:dense", "@x8") apply to that variant's rows on top."""


def group_names(model: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """ "model/precision" of rows, shape (R,)."""
    return np.array([f"{m}/{p}" for m, p in zip(model, precision, strict=True)])


def fit_factors(
    sku: np.ndarray, group: np.ndarray, log_ratio: np.ndarray, backend: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """Factors from `log_ratio` = ln(measured / predicted) of rows, shape (R,).

    First by model, then by model on a product, then by variant (`backend`: the engine and kind of model for times,
    the replica's width for power) on a product, then by model and variant on a product; each level is fitted to what
    the levels above leave.
    """
    out: dict[str, dict[str, float]] = {"any": {}, **{str(s): {} for s in sorted(set(sku))}}
    left = log_ratio.astype(float).copy()
    for place, key in _levels(sku, group, backend):
        for where, name in sorted(set(zip(place.tolist(), key.tolist(), strict=True))):
            rows = (place == where) & (key == name)
            value = _shrunk(left[rows])
            if name.startswith("@"):  # what few models share says little about others
                models = len(set(group[rows]))
                value *= models / (models + SHRINK_MODELS)
            out[where][name] = value
            left[rows] -= value
    return {s: {g: float(np.exp(v)) for g, v in of.items()} for s, of in out.items()}


def fit_tilts(
    sku: np.ndarray,
    group: np.ndarray,
    log_ratio: np.ndarray,
    share: np.ndarray,
    backend: np.ndarray | None = None,
    shared: bool = True,
) -> dict[str, dict[str, float]]:
    """Factors on what grows with the load, in levels as `fit_factors`, but for variants that all models share.

    Args:
        sku: GPU product of rows, shape (R,), as all.
        group: "model/precision".
        log_ratio: ln(measured / predicted).
        share: d ln(predicted) / d ln(what grows with the load), in [0, 1] or near it.
        backend: Variant.
        shared: Whether a model's variants share one as well; otherwise each variant has its own only.

    Returns:
        As `fit_factors`. Only differences within a group count: its mean is for `fit_factors` to take, afterwards.
    """
    out: dict[str, dict[str, float]] = {"any": {}, **{str(s): {} for s in sorted(set(sku))}}
    left = log_ratio.astype(float).copy()
    for place, key in _levels(sku, group, backend):
        for where, name in sorted(set(zip(place.tolist(), key.tolist(), strict=True))):
            if name.startswith("@") or ("@" not in name and not shared):
                continue
            rows = np.flatnonzero((place == where) & (key == name))
            rows = rows[np.abs(left[rows] - np.median(left[rows])) < LIMIT]
            if not len(rows):
                continue
            x, y = share[rows] - share[rows].mean(), left[rows] - left[rows].mean()
            tilt = float(np.clip(x @ y / (x @ x + TILT_PRIOR), -TILT_LIMIT, TILT_LIMIT))
            out[where][name] = tilt
            left[rows] -= tilt * x
    return {s: {g: float(np.exp(v)) for g, v in of.items()} for s, of in out.items()}


def recentred(
    factors: dict[str, dict[str, float]], sku: np.ndarray, group: np.ndarray, shift: np.ndarray, backend: np.ndarray
) -> dict[str, dict[str, float]]:
    """`factors` with the mean of `shift` of each model, product and variant added to its own logarithm.

    Undoes what tilts move on average, where only variants are tilted: factors that variants share stay as they are.
    """
    out = {s: dict(of) for s, of in factors.items()}
    place, key = _levels(sku, group, backend)[-1]
    for where, name in sorted(set(zip(place.tolist(), key.tolist(), strict=True))):
        out[where][name] *= float(np.exp(shift[(place == where) & (key == name)].mean()))
    return out


def _levels(sku: np.ndarray, group: np.ndarray, backend: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
    levels = [(np.full(len(sku), "any"), group), (sku, group)]
    if backend is not None:
        engine = np.char.add("@", backend.astype(str))
        levels += [(sku, engine), (sku, np.char.add(group.astype(str), engine))]
    return levels


def _shrunk(values: np.ndarray) -> float:
    """Mean without the rows far off the median, shrunk."""
    near = values[np.abs(values - np.median(values)) < LIMIT]
    return float(np.clip(near.sum() / (len(near) + SHRINK), -LIMIT, LIMIT))


def factor(factors: Factors, sku: np.ndarray, group: np.ndarray, backend: np.ndarray | None = None) -> np.ndarray:
    """Factors of rows, shape (R,); 1 for models, products and engines without any."""
    out = np.ones(len(sku))
    for place, key in _levels(sku, group, backend):
        out *= [factors.get(w, {}).get(k, 1.0) for w, k in zip(place.tolist(), key.tolist(), strict=True)]
    return out
