"""Watts at measured rates: ML.ENERGY's serving points and aiconfigurator's kernels."""

from pathlib import Path

import numpy as np
import pandas as pd

from ...envs.hardware import corrections, gpu_physics
from ..fit.kernels import kernel_draws
from ..fit.pipeline import PowerModel, fit_watts, predict_watts
from ..fit.power import shipped_fit
from ..fit.rows import mlenergy
from ..fit.select import model_fold, row_fold
from .findings import Finding, Series, finding, skipped

TARGET = 0.06
SOURCE = "mlenergy_v3"
FOLDS = 4
SMALL_TOKENS, LARGE_BATCH = 16.0, 128.0
"""Batches at or below which Hopper draws little, and at or above which dense decode draws most."""


def shipped_model() -> PowerModel:
    """The parameters in the package, for every product."""
    fits = {sku: shipped_fit(gpu) for sku, gpu in gpu_physics().items()}
    return PowerModel(fits, corrections().get("power", {}), corrections().get("power-load", {}))


def check_power(data: Path) -> list[Finding]:
    """Watts per GPU of every product, and of small and large batches apart."""
    rows = mlenergy(data)
    if rows is None:
        return [skipped("power.shipped", SOURCE)]
    predicted, out = predict_watts(shipped_model(), rows), []
    for sku in sorted(set(rows.sku)):
        at = (rows.sku == sku).to_numpy()
        out.append(_finding("power.shipped", sku, rows, predicted, at, TARGET))
        dense = at & np.array([not a.is_moe for a in rows.arch])
        per_gpu = (rows.batch / rows.gpus).to_numpy()
        for name, some in (
            ("power.small-batch", at & (per_gpu <= SMALL_TOKENS)),
            ("power.dense-large-batch", dense & (rows.batch.to_numpy() >= LARGE_BATCH)),
        ):
            out.append(_finding(name, sku, rows, predicted, some, TARGET))
    return out


def check_power_held_out(data: Path) -> list[Finding]:
    """Refits on a part of the rows, judged on the rest: split by rows, and by models."""
    rows = mlenergy(data)
    if rows is None:
        return [skipped("power.held-out", SOURCE)]
    fitted, out = predict_watts(fit_watts(rows), rows), []
    by_row = _held_out(rows, row_fold(rows, FOLDS))
    by_model = _held_out(rows, model_fold(rows, FOLDS))
    for sku in sorted(set(rows.sku)):
        at = (rows.sku == sku).to_numpy()
        out.append(_finding("power.in-sample", sku, rows, fitted, at, None))
        out.append(_finding("power.held-out-rows", sku, rows, by_row, at, TARGET))
        out.append(_finding("power.held-out-models", sku, rows, by_model, at, TARGET))
    return out


def _held_out(rows: pd.DataFrame, fold: np.ndarray) -> np.ndarray:
    out = np.full(len(rows), np.nan)
    for k in sorted(set(fold)):
        if (fold != k).any():
            model = fit_watts(rows[fold != k].reset_index(drop=True))
            out[fold == k] = predict_watts(model, rows[fold == k])
    return out


def _finding(
    check: str, sku: str, rows: pd.DataFrame, predicted: np.ndarray, at: np.ndarray, target: float | None
) -> Finding:
    return finding(check, sku, SOURCE, predicted[at], rows.gpu_w.to_numpy()[at], target)


def check_kernels(data: Path) -> list[Finding]:
    """Idle with a model, prefill and weight streaming against upper quantiles of kernel power."""
    draws = kernel_draws(data)
    if not draws:
        return [skipped("kernel", "aiconfigurator")]
    out = []
    for d in draws:
        gpu = gpu_physics()[d.sku]
        stream_w = min(
            gpu.pli_w + gpu.aw_w + gpu.am_w * gpu.power.read[0] / np.hypot(1.0, gpu.power.read[0]), gpu.tdp_w
        )
        for state, predicted, measured in (
            ("idle", gpu.pli_w, d.idle_w), ("prefill", gpu.prefill_w, d.prefill_w),
            ("weight-streaming", stream_w, d.memory_w),
        ):  # fmt: skip
            note = f"{predicted:.0f} against {measured:.0f} W, quantiles of {d.rows} kernels"
            target = TARGET if state == "prefill" else None
            out.append(
                finding(f"kernel.{state}", d.sku, "aiconfigurator", np.array([predicted]), np.array([measured]),
                        target, note)
            )  # fmt: skip
    return out


def series(data: Path) -> list[Series]:
    """Watts for the plots."""
    rows = mlenergy(data)
    if rows is None:
        return []
    kind = np.array(["sparse" if a.is_moe else "dense" for a in rows.arch])
    predicted = predict_watts(shipped_model(), rows)
    return [
        Series("GPU power, W", rows.sku.to_numpy(str), kind, rows.batch.to_numpy(), rows.gpu_w.to_numpy(), predicted)
    ]
