"""The serving law, fitted to measured step times and times to first token.

One joint robust regression in logarithms. Every coefficient of `laws.Law` is a shared value times a factor per GPU
product times a factor per serving engine, each factor held near 1 by a prior, so that a product or engine with few
rows borrows from the others and one without rows gets the shared law.
"""

from dataclasses import dataclass, field, fields, replace

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from ...envs.hardware import gpu_physics
from ...envs.laws import (
    LAW_NAMES,
    Job,
    Law,
    Number,
    aggregated_request_s,
    decode_terms,
    job,
    prompt_terms,
    stack,
)

SHARED = {
    # coefficient: (start, spread of the prior in logarithms)
    "step_s": (5e-4, 0.7),
    "layer_s": (2e-5, 0.7),
    "moe_layer_s": (3e-5, 0.7),
    "comm_layer_s": (1.4e-5, 0.7),
    "weights_eff": (0.82, 0.08),
    "experts_eff": (0.6, 0.4),
    "kv_eff": (0.8, 0.2),
    "flops_eff": (0.6, 0.2),
    "request_s": (2e-5, 0.7),
    "comm_eff": (0.4, 0.5),
    "half_factor": (1.2, 0.4),
    "interference": (0.9, 0.3),
    "mfu_bf16": (0.65, 0.15),
    "mfu_fp8": (0.5, 0.2),
    "mfu_fp4": (0.45, 0.25),
    "moe_prefill": (1.3, 0.4),
    "attention_eff": (0.4, 0.3),
    "prompt_s": (2e-2, 0.7),
    "dense_fp8": (1.1, 0.2),
    "dense_fp4": (1.4, 0.3),
    "moe_fp8": (1.15, 0.2),
    "moe_fp4": (1.0, 0.3),
}
PER_SKU = {
    "step_s": 0.3, "layer_s": 0.3, "moe_layer_s": 0.3, "comm_layer_s": 0.2, "weights_eff": 0.04, "experts_eff": 0.3,
    "kv_eff": 0.1, "flops_eff": 0.1, "request_s": 0.3, "mfu_bf16": 0.03, "mfu_fp8": 0.1, "mfu_fp4": 0.1,
    "prompt_s": 0.2,
}  # fmt: skip
PER_BACKEND = {
    "step_s": 0.3, "layer_s": 0.3, "moe_layer_s": 0.3, "comm_layer_s": 0.2, "experts_eff": 0.3, "kv_eff": 0.2,
    "request_s": 0.3, "half_factor": 0.3, "interference": 0.3, "prompt_s": 0.4,
}  # fmt: skip
SERVING = {"burst": (0.05, 0.7), "wait_steps": (2.0, 0.7), "queue_s": (1e-3, 1.0), "wait_mix": (1.0, 0.5)}
"""Of TTFT in a closed loop, per engine: others' prompts ahead, per request of the concurrency; steps until the next
admission; host work ahead, per request of the concurrency; and how the wait in steps grows with isl / osl, as its
ln(wait_mix)-th power: the more often requests come and go, the more of them meet."""

SERVING_SPREAD = 0.5
"""Spread of the prior of an engine's factor on `SERVING`."""

ENGINES_OF_TODAY = ("sglang", "trtllm", "vllm")
"""The median engine is the geometric mean of these; research engines and older builds have factors of their own."""

SCALE_STEP, SCALE_TTFT = 0.10, 0.20
"""Spread of a good row in logarithms; beyond it a row counts linearly."""


@dataclass(frozen=True)
class Points:
    """Rows as arrays, shape (R,), ready to predict."""

    job: Job
    sku: np.ndarray
    backend: np.ndarray
    is_agg: np.ndarray
    isl: np.ndarray
    osl: np.ndarray
    concurrency: np.ndarray
    batch: np.ndarray
    ttft_s: np.ndarray
    step_s: np.ndarray
    prefill_job: Job
    weight: np.ndarray

    def take(self, rows: np.ndarray) -> "Points":
        """Some rows."""
        jobs = {
            name: Job(**{f.name: getattr(getattr(self, name), f.name)[rows] for f in fields(Job)})
            for name in ("job", "prefill_job")
        }
        return Points(**{f.name: getattr(self, f.name)[rows] for f in fields(Points) if f.name not in jobs}, **jobs)


def points(rows: pd.DataFrame) -> Points:
    """Rows of `rows.py` as arrays."""
    gpus = gpu_physics()

    def jobs(count: str, dp: str) -> Job:
        made = []
        for r in rows.itertuples():
            n = getattr(r, count, np.nan)
            d = getattr(r, dp, np.nan)
            n, d = (r.gpus, r.dp) if not np.isfinite(n) else (n, d)
            made.append(job(r.arch, r.precision, gpus[r.sku], max(n / d, 1.0), n, d))
        return stack(made)

    return Points(
        jobs("gpus", "dp"), rows.sku.to_numpy(str), rows.backend.to_numpy(str), (rows["mode"] == "agg").to_numpy(),
        rows.isl.to_numpy(float), rows.osl.to_numpy(float), rows.concurrency.to_numpy(float),
        rows.batch.to_numpy(float), rows.ttft_s.to_numpy(float), rows.step_s.to_numpy(float),
        jobs("prefill_gpus", "prefill_dp"), np.ones(len(rows)),
    )  # fmt: skip


@dataclass(frozen=True)
class ServingLaw:
    """Fitted coefficients: `skus[name]` under the median engine, and factors per engine.

    An engine's factor is relative to the geometric mean over engines; a product or engine that was not fitted uses
    `shared`, or 1.
    """

    shared: dict[str, float]
    skus: dict[str, dict[str, float]]
    backends: dict[str, dict[str, float]]
    serving: dict[str, dict[str, float]] = field(default_factory=dict)

    def law(self, sku: np.ndarray, backend: np.ndarray) -> Law:
        """Coefficients of rows, shape (R,)."""
        values = {}
        for n in LAW_NAMES:
            by_sku = {s: self.skus.get(s, self.shared)[n] for s in set(sku)}
            by_engine = {b: self.backends.get(b, {}).get(n, 1.0) for b in set(backend)}
            values[n] = np.array([by_sku[s] * by_engine[b] for s, b in zip(sku, backend, strict=True)])
        return Law(**values)

    def waits(self, backend: np.ndarray) -> dict[str, np.ndarray]:
        """`SERVING` of rows, shape (R,); engines that were not fitted get the geometric mean of those that were."""
        out = {}
        for n, (start, _) in SERVING.items():
            known = [v[n] for v in self.serving.values()]
            middle = float(np.exp(np.mean(np.log(known)))) if known else start
            by = {b: self.serving.get(b, {}).get(n, middle) for b in set(backend)}
            out[n] = np.array([by[b] for b in backend])
        return out


def predict(
    law: Law, serving: dict[str, np.ndarray], p: Points, load: Number = 1.0, prompt_load: Number = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step times, decode batches and times to first token of rows, shape (R,) each.

    `load` multiplies what requests add to a step, `prompt_load` what a prompt's tokens add to its prefill.

    Where a row gives the concurrency C only, the batch in flight is what Little's law leaves of it after the
    row's measured wait for the first token: b = C osl step / (ttft + osl step), with measured times.
    """
    decode, prompt = decode_terms(law, p.job), prompt_terms(law, p.prefill_job)
    extra = np.where(p.is_agg, aggregated_request_s(law, prompt, p.isl, p.osl), 0.0)
    batch = in_flight(p)
    decode = replace(decode, request_s=(decode.request_s + extra) * load, context_s=decode.context_s * load)
    prompt = replace(prompt, token_s=prompt.token_s * prompt_load, token2_s=prompt.token2_s * prompt_load)
    step_s = decode.step_s(batch, p.isl + 0.5 * p.osl)
    own_s = prompt.prompt_s(p.isl)
    concurrency = np.where(np.isfinite(p.concurrency), p.concurrency, 1.0)
    wait_s = np.where(
        p.is_agg,
        (serving["burst"] * (own_s - prompt.fixed_s) + serving["queue_s"]) * concurrency / p.job.dp
        + serving["wait_steps"] * step_s * (p.isl / p.osl) ** np.log(serving["wait_mix"]),
        0.0,
    )
    return step_s, batch, own_s + wait_s


def in_flight(p: Points) -> np.ndarray:
    """Mean decode batch of rows: measured, or Little's law over the row's own times, shape (R,)."""
    decoding_s = p.osl * p.step_s
    share = np.where(np.isfinite(p.ttft_s), decoding_s / (decoding_s + np.nan_to_num(p.ttft_s)), 1.0)
    return np.where(np.isfinite(p.batch), p.batch, p.concurrency * share)


class _Layout:
    """Where each coefficient's logarithms sit in the parameter vector."""

    def __init__(self, skus: list[str], backends: list[str]):
        self.skus, self.backends = skus, backends
        start, spread = [], []

        def add(count: int, at: float, width: float) -> np.ndarray:
            first = len(start)
            start.extend([at] * count)
            spread.extend([width] * count)
            return np.arange(first, first + count)

        self.shared = {n: add(1, np.log(v), s) for n, (v, s) in SHARED.items()}
        self.sku = {n: add(len(skus), 0.0, s) for n, s in PER_SKU.items()}
        self.backend = {n: add(len(backends), 0.0, s) for n, s in PER_BACKEND.items()}
        self.serving = {n: add(1, np.log(v), s) for n, (v, s) in SERVING.items()}
        self.engine = {n: add(len(backends), 0.0, SERVING_SPREAD) for n in SERVING}
        self.start, self.spread = np.array(start), np.array(spread)

    def law(self, x: np.ndarray, sku: np.ndarray, backend: np.ndarray) -> Law:
        """Coefficients of rows given their indices of product and engine."""
        out = {}
        for n, at in self.shared.items():
            v = x[at]
            if n in self.sku:
                v = v + x[self.sku[n]][sku]
            if n in self.backend:
                v = v + x[self.backend[n]][backend]
            out[n] = np.exp(v) if len(v) > 1 else np.full(len(sku), np.exp(v[0]))
        return Law(**out)

    def waits(self, x: np.ndarray, backend: np.ndarray) -> dict[str, np.ndarray]:
        """`SERVING` of rows given their index of engine."""
        return {n: np.exp(x[at] + x[self.engine[n]][backend]) for n, at in self.serving.items()}

    def result(self, x: np.ndarray) -> ServingLaw:
        """The parameter vector by name."""
        today = [i for i, b in enumerate(self.backends) if b in ENGINES_OF_TODAY] or list(range(len(self.backends)))
        mid = {n: x[at[today]].mean() for n, at in self.backend.items()}
        shared = {n: float(np.exp(x[at][0] + mid.get(n, 0.0))) for n, at in self.shared.items()}
        skus = {
            s: {n: shared[n] * (float(np.exp(x[self.sku[n][i]])) if n in self.sku else 1.0) for n in LAW_NAMES}
            for i, s in enumerate(self.skus)
        }
        backends = {
            b: {n: float(np.exp(x[at[i]] - mid[n])) for n, at in self.backend.items()}
            for i, b in enumerate(self.backends)
        }
        today_only = any(b in ENGINES_OF_TODAY for b in self.backends)
        serving = {
            b: {n: float(np.exp(x[at][0] + x[self.engine[n][i]])) for n, at in self.serving.items()}
            for i, b in enumerate(self.backends)
            if b in ENGINES_OF_TODAY or not today_only
        }
        return ServingLaw(shared, skus, backends, serving)


def fit_serving(p: Points, use_ttft: np.ndarray | None = None, evaluations: int = 15) -> ServingLaw:
    """Fit the law to rows.

    Args:
        p: Rows with measured `step_s`.
        use_ttft: Rows whose `ttft_s` counts too, shape (R,); none by default.
        evaluations: Limit of Gauss-Newton steps.
    """
    skus, backends = sorted({str(s) for s in p.sku}), sorted({str(b) for b in p.backend})
    layout = _Layout(skus, backends)
    sku = np.array([skus.index(s) for s in p.sku])
    backend = np.array([backends.index(b) for b in p.backend])
    ttft = np.zeros(len(sku), bool) if use_ttft is None else use_ttft & np.isfinite(p.ttft_s) & (p.ttft_s > 0)
    step = np.isfinite(p.step_s) & (p.step_s > 0)

    def residuals(x: np.ndarray) -> np.ndarray:
        step_s, _, first_s = predict(layout.law(x, sku, backend), layout.waits(x, backend), p)
        return np.concatenate([
            np.log(step_s[step] / p.step_s[step]) * p.weight[step] / SCALE_STEP,
            np.log(first_s[ttft] / p.ttft_s[ttft]) * p.weight[ttft] / SCALE_TTFT,
            (x - layout.start) / layout.spread,
        ])  # fmt: skip

    x = least_squares(residuals, layout.start, loss="soft_l1", x_scale="jac", max_nfev=evaluations).x
    return layout.result(x)
