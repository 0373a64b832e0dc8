"""What a check against measurements says."""

from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Finding:
    """Errors of one check on one GPU product's rows of one source.

    Attributes:
        check: What is predicted, for which models, with which parameters, e.g. "itl.dense.shipped".
        sku: GPU product, or "all".
        source: Folder of the data.
        n: Rows.
        mape: Mean of |predicted / measured - 1|.
        bias: Mean of predicted / measured - 1.
        p90: 90th percentile of |predicted / measured - 1|.
        target: Largest mape that passes; None where the figure is for information.
        passed: Whether it does; None without a target or without rows.
        note: What was left out and why, in one line.
    """

    check: str
    sku: str
    source: str
    n: int
    mape: float
    bias: float
    p90: float
    target: float | None
    passed: bool | None
    note: str = ""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def finding(
    check: str, sku: str, source: str, predicted: np.ndarray, measured: np.ndarray, target: float | None, note: str = ""
) -> Finding:
    """Errors of `predicted` against `measured`, shape (R,) each; rows without either are dropped."""
    error = np.asarray(predicted, float) / np.asarray(measured, float) - 1.0
    error = error[np.isfinite(error)]
    if not len(error):
        return Finding(check, sku, source, 0, np.nan, np.nan, np.nan, target, None, note or "no rows")
    size = np.abs(error)
    mape = float(size.mean())
    passed = None if target is None else mape <= target
    median = f"median {100 * np.median(size):.1f} %"
    return Finding(
        check, sku, source, len(error), mape, float(error.mean()), float(np.quantile(size, 0.9)), target, passed,
        f"{median}; {note}" if note else median,
    )  # fmt: skip


def skipped(check: str, source: str) -> Finding:
    """A source folder that is not there."""
    return Finding(check, "all", source, 0, np.nan, np.nan, np.nan, None, None, f"skipped: no {source} folder")


@dataclass(frozen=True)
class Series:
    """Predicted against measured, to be drawn: one panel per product.

    Attributes:
        name: Of the quantity, with its unit. Arrays have shape (R,).
    """

    name: str
    sku: np.ndarray
    kind: np.ndarray
    batch: np.ndarray
    measured: np.ndarray
    predicted: np.ndarray
