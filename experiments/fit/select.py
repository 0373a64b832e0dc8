"""Which rows count: what a row must say about itself to be predicted, and the splits for held-out errors."""

import zlib

import numpy as np
import pandas as pd

QUEUE_SHARE = 0.1
"""TTFT beyond this share of a request's life (times isl / 8 osl for prompt-heavy rows, at most one half) is a queue."""

PREFILL_DEPTH = 2.0
"""Requests per prefill worker up to which a disaggregated row's TTFT is not a queue."""


def is_queueing(rows: pd.DataFrame) -> np.ndarray:
    """Rows whose TTFT is mostly waiting, judged from their own columns, shape (R,).

    Aggregated: ttft > share x (ttft + osl step), share = 0.1 max(1, isl / (8 osl)), at most 0.5: an engine that has
    slots admits within a few steps, so that TTFT is 1-5 % of the request's life in rows with free slots. Disaggregated:
    more than two requests in the system per prefill worker, or workers not stated.
    """
    ttft, life = rows.ttft_s.to_numpy(float), (rows.ttft_s + rows.osl * rows.step_s).to_numpy(float)
    share = np.minimum(QUEUE_SHARE * np.maximum(1.0, (rows.isl / (8.0 * rows.osl)).to_numpy(float)), 0.5)
    agg = ttft > share * life
    workers = rows.prefill_workers.to_numpy(float) if "prefill_workers" in rows else np.full(len(rows), np.nan)
    disagg = ~(rows.concurrency.to_numpy(float) <= PREFILL_DEPTH * workers)
    return np.where((rows["mode"] == "agg").to_numpy(), agg, disagg)


STALL = 1.5
"""A step this many times longer than that of a larger batch of the same model on the same GPUs waited for its host."""


def is_stalled(rows: pd.DataFrame) -> np.ndarray:
    """Rows in which something else than the GPU set the pace, judged from their own source's columns, shape (R,).

    ML.ENERGY's B200 rows hold runs in which Qwen3-14B decodes 8 requests at 34 ms and 320 W in one task, and 64
    requests at 15 ms and 697 W in another. No law of model, batch and GPU gives both.
    """
    out = np.zeros(len(rows), bool)
    step, batch = rows.step_s.to_numpy(float), rows.batch.to_numpy(float)
    own = (rows.source == "mlenergy_v3").to_numpy()
    key = rows.model.astype(str) + rows.sku.astype(str) + rows.gpus.astype(str)
    for name in set(key[own]):
        at = np.flatnonzero(own & (key == name).to_numpy())
        for i in at:
            best = step[at[batch[at] >= batch[i]]].min()
            out[i] = step[i] > STALL * best
    return out


def is_multimodal(rows: pd.DataFrame) -> np.ndarray:
    """Rows that serve images or video, whose encoder and host-side decoding the plant does not model, shape (R,)."""
    return rows.task.isin(["image-chat", "video-chat"]).to_numpy() if "task" in rows else np.zeros(len(rows), bool)


def usable_step(rows: pd.DataFrame) -> np.ndarray:
    """Rows whose step time can be predicted, shape (R,).

    Layout and load are stated, times are positive, and either the batch was measured or requests spend less than half
    of their life waiting for the first token: beyond that nobody knows how many decode.
    """
    waiting = rows.ttft_s.to_numpy(float) > 0.5 * (rows.ttft_s + rows.osl * rows.step_s).to_numpy(float)
    known = np.isfinite(rows.batch.to_numpy(float)) | ~waiting
    load = np.isfinite(rows.concurrency.to_numpy(float)) | np.isfinite(rows.batch.to_numpy(float))
    return (
        rows.is_stated.to_numpy(bool)
        & load
        & known
        & (rows.step_s.to_numpy(float) > 0)
        & (rows.osl.to_numpy(float) > 0)
    )


def usable_ttft(rows: pd.DataFrame) -> np.ndarray:
    """Rows whose TTFT can be predicted and is not a queue, shape (R,). Prompts batched together are left out."""
    batched = (rows.source == "splitwise_sim").to_numpy() & (rows.concurrency.to_numpy(float) > 1)
    return usable_step(rows) & (rows.ttft_s.to_numpy(float) > 0) & ~is_queueing(rows) & ~batched


def hash_fold(keys: pd.Series, folds: int) -> np.ndarray:
    """Fold of each key, the same on every machine, shape (R,)."""
    return np.array([zlib.crc32(str(k).encode()) % folds for k in keys])


def model_fold(rows: pd.DataFrame, folds: int = 4) -> np.ndarray:
    """Folds that keep every row of an architecture together: held-out models."""
    return hash_fold(pd.Series([a.name for a in rows.arch]), folds)


def row_fold(rows: pd.DataFrame, folds: int = 4) -> np.ndarray:
    """Folds by row: held-out rows. Measurements of one configuration stay together."""
    return hash_fold(rows.source + rows.sku + rows.step_s.astype(str), folds)
