"""From a data folder to every table that the simulator reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ...envs.hardware import GpuPhysics, gpu_physics
from ...fleet.errors import BadInput
from .corrections import Factors, factor, fit_factors, fit_tilts, group_names, recentred
from .decode import ServingLaw, fit_serving, points, predict
from .kernels import KernelDraw, kernel_draws
from .power import PowerFit, PowerPoints, apply, fit_power, power_points, predict_w
from .profiles import backends_toml, corrections_toml, skus_toml
from .rows import mlenergy, silicon, splitwise
from .select import is_multimodal, is_stalled, usable_step, usable_ttft

ACTIVE_IDLE_W = {"H100-SXM": 120.0, "B200-SXM": 160.0}
"""Idle with a model and nothing running: MODEL.md section 4 for H100; B200 with no weights held, so that with
`aw_w` of them a nearly idle server comes to ML.ENERGY's least loaded rows, 273 W."""


@dataclass(frozen=True)
class FittedProfiles:
    """Everything that a fit says."""

    gpus: Mapping[str, GpuPhysics]
    serving: ServingLaw
    corrections: Mapping[str, Factors]
    notes: Mapping[str, Mapping[str, object]]

    def write(self, out: Path) -> list[Path]:
        """Write skus.toml, backends.toml and corrections.toml; returns their paths."""
        out.mkdir(parents=True, exist_ok=True)
        texts = {
            "skus.toml": skus_toml(self.gpus, self.serving, self.notes),
            "backends.toml": backends_toml(self.serving),
            "corrections.toml": corrections_toml(self.corrections),
        }
        for name, text in texts.items():
            (out / name).write_text(text)
        return [out / name for name in texts]


@dataclass(frozen=True)
class LatencyModel:
    """Law and corrections together."""

    serving: ServingLaw
    decode: Factors = field(default_factory=dict)
    prefill: Factors = field(default_factory=dict)
    decode_load: Factors = field(default_factory=dict)
    prefill_load: Factors = field(default_factory=dict)


@dataclass(frozen=True)
class PowerModel:
    """Fits of GPU products and corrections on the draw above idle."""

    fits: Mapping[str, PowerFit]
    factors: Factors = field(default_factory=dict)
    load: Factors = field(default_factory=dict)


def serving_rows(folder: Path) -> pd.DataFrame | None:
    """Every row with a step time, of all sources that are there."""
    tables = [t for t in (silicon(folder), mlenergy(folder), splitwise(folder)) if t is not None]
    return pd.concat(tables, ignore_index=True) if tables else None


def groups(rows: pd.DataFrame) -> np.ndarray:
    """ "model/precision" of rows."""
    return group_names(np.array([a.name for a in rows.arch]), rows.precision.to_numpy(str))


def variants(rows: pd.DataFrame) -> np.ndarray:
    """Engine and kind of model of rows: what an engine adds on a product differs between dense and sparse."""
    kind = np.array(["moe" if a.is_moe else "dense" for a in rows.arch])
    return np.char.add(np.char.add(rows.backend.to_numpy(str), ":"), kind)


def mixes(rows: pd.DataFrame) -> np.ndarray:
    """`variants` and whether prompts or outputs dominate: engines interleave the two in ways of their own."""
    ratio = (rows.isl / rows.osl).to_numpy(float)
    mix = np.where(ratio > 2.0, ":prompts", np.where(ratio < 0.5, ":outputs", ":even"))
    return np.char.add(variants(rows), mix)


def widths(rows: pd.DataFrame) -> np.ndarray:
    """GPUs of a replica, as the variant of the power corrections."""
    return np.array([f"x{int(n)}" for n in rows.gpus])


def fit_latency(rows: pd.DataFrame, corrected: bool = True) -> LatencyModel:
    """Law and corrections from rows that `usable_step` has let through, but for stalled and multimodal ones."""
    rows = rows[~is_stalled(rows) & ~is_multimodal(rows)].reset_index(drop=True)
    p, ttft = points(rows), usable_ttft(rows)
    model = LatencyModel(fit_serving(p, ttft))
    if not corrected:
        return model
    law, waits, g = model.serving.law(p.sku, p.backend), model.serving.waits(p.backend), groups(rows)

    def times(load: np.ndarray | float, prompt_load: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        step_s, _, first_s = predict(law, waits, p, load, prompt_load)
        return step_s, first_s

    plain = times(1.0, 1.0)
    more = times(TILT_STEP, 1.0)[0], times(1.0, TILT_STEP)[1]
    out = {}
    for i, (name, use, measured, variant) in enumerate(
        (("decode", np.isfinite(p.step_s), p.step_s, variants(rows)), ("prefill", ttft, p.ttft_s, mixes(rows)))
    ):
        if not use.any():
            continue
        key, of = (p.sku[use], g[use]), variant[use]
        ratio, share = np.log(measured / plain[i])[use], (np.log(more[i] / plain[i]) / np.log(TILT_STEP))[use]
        # many models were measured on one engine only: a tilt says how that engine fills a batch, not what the model is
        tilts = _tilts(*key, ratio, share, of, shared=False)
        load = factor(tilts, p.sku, g, variant)
        tilted = times(load, 1.0)[0] if name == "decode" else times(1.0, load)[1]
        factors = fit_factors(*key, ratio, of)
        out |= {name: recentred(factors, *key, np.log(plain[i] / tilted)[use], of), f"{name}_load": tilts}
    return replace(model, **out)


TILT_STEP = 1.02
"""Step of the difference quotient that says which share of a row grows with the load."""


def _tilts(
    sku: np.ndarray, group: np.ndarray, ratio: np.ndarray, share: np.ndarray, variant: np.ndarray, shared: bool
) -> dict[str, dict[str, float]]:
    """`fit_tilts` of what constant factors leave."""
    left = ratio - np.log(factor(fit_factors(sku, group, ratio, variant), sku, group, variant))
    return fit_tilts(sku, group, left, share, variant, shared)


def predict_latency(model: LatencyModel, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step times, times to first token and decode batches of rows, shape (R,) each."""
    p, g = points(rows), groups(rows)
    law, variant, mix = model.serving, variants(rows), mixes(rows)
    load, prompt_load = factor(model.decode_load, p.sku, g, variant), factor(model.prefill_load, p.sku, g, mix)
    coefficients, waits = law.law(p.sku, p.backend), law.waits(p.backend)
    step_s, batch, _ = predict(coefficients, waits, p, load)
    _, _, first_s = predict(coefficients, waits, p, 1.0, prompt_load)
    step_s = step_s * factor(model.decode, p.sku, g, variant)
    return step_s, first_s * factor(model.prefill, p.sku, g, mix), batch


def fit_watts(rows: pd.DataFrame, corrected: bool = True) -> PowerModel:
    """Power equation by GPU product from rows of `rows.mlenergy`, with corrections by model."""
    fits, parts = {}, {}
    for sku in sorted(set(rows.sku)):
        at = (rows.sku == sku).to_numpy()
        gpu = gpu_physics()[sku]
        parts[sku] = at, power_points(rows[at], gpu)
        fits[sku] = fit_power(parts[sku][1], gpu.tdp_w, ACTIVE_IDLE_W.get(sku, gpu.pli_w))
    if not corrected:
        return PowerModel(fits)

    def ratios(load: np.ndarray) -> np.ndarray:
        out = np.zeros(len(rows))
        for sku, (at, p) in parts.items():
            out[at] = _above_idle(p, fits[sku], load[at])
        return out

    sku, group, width, ones = rows.sku.to_numpy(str), groups(rows), widths(rows), np.ones(len(rows))
    plain = ratios(ones)
    share = (plain - ratios(ones * TILT_STEP)) / np.log(TILT_STEP)
    load = _tilts(sku, group, plain, share, width, shared=True)
    return PowerModel(fits, fit_factors(sku, group, ratios(factor(load, sku, group, width)), width), load)


def _above_idle(p: PowerPoints, fit: PowerFit, load: np.ndarray | float = 1.0) -> np.ndarray:
    """ln(measured / predicted) of the draw above idle with weights, shape (R,)."""
    idle_w = fit.pli_w + fit.aw_w * p.hbm_frac
    floor_w = 0.05 * fit.limit_w
    return np.log(np.maximum(p.gpu_w - idle_w, floor_w) / np.maximum(predict_w(fit, p, tilt=load) - idle_w, floor_w))


def predict_watts(model: PowerModel, rows: pd.DataFrame) -> np.ndarray:
    """Watts per GPU of rows at their measured rates, shape (R,); NaN for products without a fit."""
    out = np.full(len(rows), np.nan)
    key = rows.sku.to_numpy(str), groups(rows), widths(rows)
    scale, tilt = factor(model.factors, *key), factor(model.load, *key)
    for sku in sorted(set(rows.sku)):
        if sku not in model.fits:
            continue
        at = (rows.sku == sku).to_numpy()
        out[at] = predict_w(model.fits[sku], power_points(rows[at], gpu_physics()[sku]), scale[at], tilt[at])
    return out


def fit_profiles(data_dir: Path) -> FittedProfiles:
    """Fit every parameter that the data speak of; the others stay as shipped.

    Args:
        data_dir: Folder with any of mlenergy_v3, aiconfigurator, splitwise_sim.

    Raises:
        BadInput: if none of them is there.
        MalformedData: if a file is not what its SOURCE.md describes.
    """
    rows, watts = serving_rows(data_dir), mlenergy(data_dir)
    if rows is None:
        raise BadInput(f"{data_dir}: none of mlenergy_v3, aiconfigurator, splitwise_sim is there; give their parent")
    rows = rows[usable_step(rows)].reset_index(drop=True)
    latency = fit_latency(rows)
    power = fit_watts(watts) if watts is not None else PowerModel({})
    gpus, notes = _gpus(power, kernel_draws(data_dir))
    if watts is not None:
        error = np.abs(predict_watts(power, watts) / watts.gpu_w.to_numpy() - 1)
        for sku in power.fits:
            at = (watts.sku == sku).to_numpy()
            notes[sku]["power"] = f"ML.ENERGY v3, MAPE {100 * error[at].mean():.1f} % of {at.sum()} rows, in-sample"
    step_s, _, _ = predict_latency(latency, rows)
    for sku in gpus:
        at = (rows.sku == sku).to_numpy()
        if not at.any():
            notes[sku]["law"] = "no rows: as before"
            continue
        error = np.abs(step_s[at] / rows.step_s.to_numpy()[at] - 1)
        notes[sku]["law"] = f"step time, median error {100 * np.median(error):.1f} % of {at.sum()} rows, in-sample"
    corrections = {
        "decode": latency.decode, "decode-load": latency.decode_load,
        "prefill": latency.prefill, "prefill-load": latency.prefill_load,
        "power": power.factors, "power-load": power.load,
    }  # fmt: skip
    return FittedProfiles(gpus, latency.serving, corrections, {s: _note(n) for s, n in notes.items()})


def _note(parts: Mapping[str, str]) -> dict[str, object]:
    assumed = "p0_w (range 0.8-1.2)"
    if "(A" in parts.get("power", ""):
        assumed += ", aw_w, am_w, ac_w and the activity weights (range 0.9-1.1)"
    if "kernel" not in parts.get("idle and prefill", ""):
        assumed += ", prefill_w as the limit less 1.5 % (range 0.95-1.0 of the limit)"
    if "no rows" in parts["law"]:
        assumed += ", the serving law (range 0.8-1.25)"
    return {"sources": "; ".join(f"{k}: {v}" for k, v in parts.items()), "assumed": assumed}


RELATIVES = {
    "A100-SXM": "H100-SXM", "H200-SXM": "H100-SXM",
    "B300-SXM": "B200-SXM", "GB200-NVL72": "B200-SXM", "GB300-NVL72": "B200-SXM",
}  # fmt: skip
"""Whose activity weights a product without ML.ENERGY rows takes: the same die or generation."""


def _gpus(power: PowerModel, draws: list[KernelDraw]) -> tuple[dict[str, GpuPhysics], dict[str, dict[str, str]]]:
    gpus, notes = dict(gpu_physics()), {s: {} for s in gpu_physics()}
    for sku, fit in power.fits.items():
        gpus[sku] = apply(gpus[sku], fit)
    for sku, relative in RELATIVES.items():
        if relative in power.fits and sku not in power.fits:
            # within a generation, memory-bound kernels grow as the root of the limits (GB200 over B200: 1.09 for 1.2)
            grown = (gpus[sku].tdp_w / gpus[relative].tdp_w) ** (1.0 if sku == "A100-SXM" else 0.5)
            like = gpus[relative]
            gpus[sku] = replace(
                gpus[sku], power=like.power, aw_w=like.aw_w, am_w=like.am_w * grown, ac_w=like.ac_w * grown
            )
            notes[sku]["power"] = f"weights of {relative}, scaled with the limit (A, range 0.9-1.1)"
    for d in draws:
        prefill_w = min(d.prefill_w, d.limit_w)
        if d.sku in power.fits:
            gpus[d.sku] = replace(gpus[d.sku], prefill_w=prefill_w)
        else:
            gpus[d.sku] = replace(gpus[d.sku], prefill_w=prefill_w, pli_w=d.idle_w)
        notes[d.sku]["idle and prefill"] = f"quantiles of {d.rows} aiconfigurator kernel rows"
    return gpus, notes
