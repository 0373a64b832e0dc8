"""Step times and times to first token against end-to-end measurements."""

from pathlib import Path

import numpy as np
import pandas as pd

from ...envs.hardware import corrections
from ..fit.pipeline import LatencyModel, fit_latency, predict_latency, serving_rows
from ..fit.profiles import shipped_serving
from ..fit.select import is_multimodal, is_queueing, is_stalled, model_fold, row_fold, usable_step, usable_ttft
from .findings import Finding, Series, finding, skipped

ITL_TARGETS = {"dense": 0.12, "moe": 0.15}
TTFT_TARGET = 0.20
FOLDS = 4
SOURCES = "aiconfigurator, mlenergy_v3 and splitwise_sim"


def shipped_model() -> LatencyModel:
    """The parameters in the package."""
    kinds = ("decode", "prefill", "decode-load", "prefill-load")
    return LatencyModel(shipped_serving(), *(corrections().get(k, {}) for k in kinds))


def _kinds(rows: pd.DataFrame) -> np.ndarray:
    return np.array(["moe" if a.is_moe else "dense" for a in rows.arch])


def check_latency(data: Path) -> list[Finding]:
    """ITL by dense and sparse, and TTFT of rows that are no queue, per product and source."""
    every = serving_rows(data)
    if every is None:
        return [skipped("latency.shipped", SOURCES)]
    use = usable_step(every)
    rows = every[use].reset_index(drop=True)
    step_s, first_s, _ = predict_latency(shipped_model(), rows)
    out = _itl("shipped", rows, step_s, True) + _ttft("shipped", rows, first_s, True)
    for source in sorted(set(every.source[~use])):
        left = int((~use & (every.source == source).to_numpy()).sum())
        note = (
            f"{left} rows left out: no number of workers or concurrency, no whole server, or more waiting than decoding"
        )
        out.append(Finding("itl.left-out", "all", source, 0, np.nan, np.nan, np.nan, None, None, note))
    return out


def check_latency_held_out(data: Path) -> list[Finding]:
    """Refits on a part of the rows, judged on the rest: split by rows, and by models."""
    every = serving_rows(data)
    if every is None:
        return [skipped("latency.held-out", SOURCES)]
    rows = every[usable_step(every)].reset_index(drop=True)
    step_s, first_s, _ = predict_latency(fit_latency(rows), rows)
    out = _itl("in-sample", rows, step_s, False) + _ttft("in-sample", rows, first_s, False)
    for name, fold in (("held-out-rows", row_fold(rows, FOLDS)), ("held-out-models", model_fold(rows, FOLDS))):
        step_s, first_s = _held_out(rows, fold)
        out += _itl(name, rows, step_s, True) + _ttft(name, rows, first_s, True)
    return out


def _held_out(rows: pd.DataFrame, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    step_s, first_s = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    for k in sorted(set(fold)):
        if (fold != k).any():
            model = fit_latency(rows[fold != k].reset_index(drop=True))
            step_s[fold == k], first_s[fold == k], _ = predict_latency(model, rows[fold == k].reset_index(drop=True))
    return step_s, first_s


def _itl(split: str, rows: pd.DataFrame, step_s: np.ndarray, judged: bool) -> list[Finding]:
    kind, stalled, images, out = _kinds(rows), is_stalled(rows), is_multimodal(rows), []
    measured = rows.step_s.to_numpy()
    for source, sku, k in sorted(set(zip(rows.source, rows.sku, kind, strict=True))):
        at = ((rows.source == source) & (rows.sku == sku)).to_numpy() & (kind == k)
        target = ITL_TARGETS[k] if judged else None
        free = at & ~stalled & ~images
        note = ""
        if (at & ~free).any():
            note = (
                f"of {int(at.sum())} rows, {int((at & images).sum())} serve images or video and "
                f"{int((at & stalled & ~images).sum())} ran 1.5 x slower than a larger batch"
            )
            out.append(finding(f"itl.{k}.{split}.every-row", sku, source, step_s[at], measured[at], None))
        out.append(finding(f"itl.{k}.{split}", sku, source, step_s[free], measured[free], target, note))
    return out


def _ttft(split: str, rows: pd.DataFrame, first_s: np.ndarray, judged: bool) -> list[Finding]:
    use, queue, out = usable_ttft(rows), is_queueing(rows), []
    for source, sku in sorted(set(zip(rows.source, rows.sku, strict=True))):
        at = ((rows.source == source) & (rows.sku == sku) & np.isfinite(rows.ttft_s)).to_numpy()
        if not (at & use).any():
            continue
        note = f"{int((at & queue).sum())} of {int(at.sum())} rows dropped as queues"
        measured = rows.ttft_s.to_numpy()[at & use]
        target = TTFT_TARGET if judged else None
        out.append(finding(f"ttft.{split}", sku, source, first_s[at & use], measured, target, note))
    return out


def series(data: Path) -> list[Series]:
    """Step times and TTFT for the plots."""
    rows = serving_rows(data)
    if rows is None:
        return []
    rows = rows[usable_step(rows)].reset_index(drop=True)
    step_s, first_s, batch = predict_latency(shipped_model(), rows)
    kind, sku, use = _kinds(rows), rows.sku.to_numpy(str), usable_ttft(rows)
    first = Series("time to first token, s", sku[use], kind[use], batch[use], rows.ttft_s.to_numpy()[use], first_s[use])
    return [Series("inter-token latency, s", sku, kind, batch, rows.step_s.to_numpy(), step_s), first]
