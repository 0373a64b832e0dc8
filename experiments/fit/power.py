"""The power equation, fitted to measured watts at measured rates.

What a row measured (rate and batch, hence the step time) gives u_m and u_c; watts follow from
P = pli + aw wf + am u_m + ac sqrt(u_c), rounded off at the product's limit. Weights by kind of kernel, held near those
of dense 16-bit ones by a prior.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from ...envs.hardware import GpuPhysics
from ...envs.laws import Job, job, stack
from ...envs.power_law import CLASSES, PowerLaw, use_terms

LIMIT_ROUNDING, LIMIT_REACHED = 0.015, 0.98
"""Width of the corner at the limit, and what of the limit is drawn on average: firmware averages excursions away."""

SCALE = 0.05
"""Spread of a good row in logarithms."""


@dataclass(frozen=True)
class PowerPoints:
    """Rows of one GPU product with watts, shape (R,)."""

    job: Job
    hbm_frac: np.ndarray
    batch: np.ndarray
    osl: np.ndarray
    isl: np.ndarray
    step_s: np.ndarray
    gpu_w: np.ndarray

    def take(self, rows: np.ndarray) -> "PowerPoints":
        """Some rows."""
        jobs = Job(**{f.name: getattr(self.job, f.name)[rows] for f in fields(Job)})
        return PowerPoints(
            job=jobs, **{f.name: getattr(self, f.name)[rows] for f in fields(PowerPoints) if f.name != "job"}
        )


@dataclass(frozen=True)
class PowerFit:
    """Watts and weights of one GPU product, as fitted."""

    pli_w: float
    aw_w: float
    am_w: float
    ac_w: float
    limit_w: float
    law: PowerLaw


def power_points(rows: pd.DataFrame, gpu: GpuPhysics) -> PowerPoints:
    """Rows of `rows.mlenergy` of one GPU product."""
    jobs = stack([job(r.arch, r.precision, gpu, r.tp, r.gpus, r.dp) for r in rows.itertuples()])
    weights = jobs.common_bytes * jobs.dp + jobs.expert_bytes
    return PowerPoints(
        jobs, np.minimum(weights / (jobs.gpus * gpu.hbm), 1.0), rows.batch.to_numpy(float), rows.osl.to_numpy(float),
        rows.isl.to_numpy(float), rows.step_s.to_numpy(float), rows.gpu_w.to_numpy(float),
    )  # fmt: skip


def predict_w(
    fit: PowerFit, p: PowerPoints, scale: np.ndarray | float = 1.0, tilt: np.ndarray | float = 1.0
) -> np.ndarray:
    """Watts per GPU of rows, shape (R,).

    `scale` multiplies the draw of memory and compute, `tilt` what requests add to it: KV, state and arithmetic, whose
    draw grows as its root.
    """
    terms = use_terms(fit.law, p.job).tilted(tilt)
    u_m, u_c = terms.use(p.batch, p.job.experts_half, p.isl + 0.5 * p.osl, p.step_s, p.isl / p.osl)
    free_w = fit.pli_w + fit.aw_w * p.hbm_frac + scale * (fit.am_w * u_m + fit.ac_w * np.sqrt(u_c))
    width, reached_w = LIMIT_ROUNDING * fit.limit_w, LIMIT_REACHED * fit.limit_w
    return -width * np.logaddexp(-free_w / width, -reached_w / width)


def _unpack(x: np.ndarray, limit_w: float) -> PowerFit:
    n = len(CLASSES)
    watts, rest = x[:4] * limit_w, np.exp(x[4:])
    law = PowerLaw(tuple(rest[:n]), *rest[n : n + 3], tuple(rest[n + 3 :]))
    return PowerFit(*watts, limit_w, law)


def fit_power(p: PowerPoints, limit_w: float, idle_w: float, evaluations: int = 40) -> PowerFit:
    """Fit one GPU product.

    Args:
        p: Its rows.
        limit_w: Its power limit.
        idle_w: Draw with a model loaded and nothing running, measured elsewhere; the fit may move it by a tenth.
        evaluations: Limit of Gauss-Newton steps.
    """
    n = len(CLASSES)
    start = np.concatenate([
        [idle_w / limit_w, 0.05, 0.5, 0.6], np.zeros(n), np.log([1.0, 0.05, 0.05]), np.full(n, 0.7),
    ])  # fmt: skip
    spread = np.concatenate([
        [0.07 * idle_w / limit_w, 0.05, 0.2, 0.2], np.full(n, 0.35), [0.4, 0.8, 0.8], np.full(n, 0.4),
    ])  # fmt: skip

    def residuals(x: np.ndarray) -> np.ndarray:
        predicted = np.maximum(predict_w(_unpack(x, limit_w), p), 1.0)
        return np.concatenate([np.log(predicted / p.gpu_w) / SCALE, (x - start) / spread])

    # a weight that runs away would saturate u_m and turn its kind of kernel into a constant
    low = np.concatenate([[0.9 * start[0], 0.0, 0.1, 0.1], np.log(np.full(len(start) - 4, 0.003))])
    high = np.concatenate([[1.1 * start[0], 0.3, 1.0, 1.2], np.log(np.full(len(start) - 4, 8.0))])
    x = least_squares(residuals, start, bounds=(low, high), loss="soft_l1", x_scale="jac", max_nfev=evaluations).x
    return _unpack(x, limit_w)


def apply(gpu: GpuPhysics, fit: PowerFit) -> GpuPhysics:
    """A GPU product with fitted watts and weights."""
    return replace(gpu, pli_w=fit.pli_w, aw_w=fit.aw_w, am_w=fit.am_w, ac_w=fit.ac_w, power=fit.law)


def shipped_fit(gpu: GpuPhysics) -> PowerFit:
    """The parameters that the package ships, as a fit."""
    return PowerFit(gpu.pli_w, gpu.aw_w, gpu.am_w, gpu.ac_w, gpu.tdp_w, gpu.power)
