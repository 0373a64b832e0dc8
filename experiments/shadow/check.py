"""How far the plant is right: the replay of the incumbent against what the log says it drew and how it served."""

import math
from typing import Any

import numpy as np

from ...fleet.topology import Fleet
from .log import Shadow
from .side import WARMUP_S, Side
from .stretch import Stretch

POWER_CLOSE_FRAC, POWER_FAIR_FRAC = 0.06, 0.12
"""Published power coefficients transfer with 12 % mean error (MODEL.md section 4); half of that is close."""

LATENCY_CLOSE_FRAC, LATENCY_FAIR_FRAC = 0.25, 0.5
"""Latency near saturation moves by more than power does; beyond a half the replay runs at another operating point."""

GRADES = ("close", "fair", "unknown", "poor")
"""From good to bad."""


def _logged(shadow: Shadow, stretch: Stretch) -> tuple[np.ndarray, str, dict[str, np.ndarray]]:
    """Logged power with its source, and latencies, at the end of every control interval of the stretch."""
    log, timing = shadow.log, shadow.fleet.timing
    per_step = round(timing.control_s / timing.tick_s)
    elapsed_s = log.time_s[stretch.rows] - log.time_s[stretch.rows.start]
    ends = np.arange(per_step, stretch.ticks + 1, per_step)
    row = np.searchsorted(np.rint(elapsed_s / timing.tick_s).astype(int), ends, side="right") - 1
    domain, node, service = (t[stretch.rows][row] for t in (log.domain, log.node, log.service))
    meter = np.where(domain["meter_age_s"] <= timing.stale_s, domain["meter_w"], np.nan)[:, 0]
    heard = service["age_s"] <= timing.stale_s
    latency = {n: np.where(heard, service[n], np.nan) for n in ("ttft_s", "itl_s")}
    if np.isfinite(meter).any():
        return meter, "meter", latency
    fresh = (node["age_s"] <= timing.stale_s).all(-1)
    return np.where(fresh, node["power_w"].sum(-1), np.nan), "gpus", latency


def compare(shadow: Shadow, stretch: Stretch, done: Side) -> dict[str, Any]:
    """Logged and predicted values of one stretch, after the warm-up, with each draw's own error."""
    power_w, source, latency = _logged(shadow, stretch)
    skip = math.ceil(WARMUP_S / shadow.fleet.timing.control_s)
    mine = done.power_w if source == "meter" else done.gpu_w
    out: dict[str, Any] = {"source": source, "power": _error(power_w[skip:], mine[:, skip:])}
    for name, predicted in (("ttft_s", done.ttft_s), ("itl_s", done.itl_s)):
        out[name] = [_error(latency[name][skip:, s], predicted[:, skip:, s]) for s in range(predicted.shape[2])]
    return out


def _error(logged: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray] | None:
    """Means over the intervals that were logged, per draw; None where nothing was."""
    kept = np.isfinite(logged)
    if not kept.any():
        return None
    mine = np.nanmean(np.where(np.isfinite(predicted), predicted, np.nan)[:, kept], -1)
    typical = np.nanmean(predicted[:, kept], 0)
    return {
        "logged": np.full(len(mine), logged[kept].mean()),
        "predicted": mine,
        "interval": np.array([np.nanmean(np.abs(typical - logged[kept]))]),
    }


def summary(checks: list[dict[str, Any]], fleet: Fleet) -> dict[str, Any]:
    """The check over all stretches: logged and predicted means, the relative error and its range over draws."""

    def joined(parts: list[dict[str, np.ndarray] | None]) -> dict[str, float] | None:
        kept = [p for p in parts if p is not None]
        if not kept:
            return None
        logged = np.concatenate([p["logged"] for p in kept])
        predicted = np.concatenate([p["predicted"] for p in kept])
        error = predicted / logged - 1.0
        return {
            "logged": float(logged.mean()),
            "predicted": float(predicted.mean()),
            "error_frac": float(predicted.mean() / logged.mean() - 1.0),
            "error_p5_frac": float(np.quantile(error, 0.05)),
            "error_p95_frac": float(np.quantile(error, 0.95)),
            "interval_error_frac": float(np.mean([p["interval"] for p in kept]) / logged.mean()),
        }

    return {
        "power_source": checks[0]["source"],
        "power_w": joined([c["power"] for c in checks]),
        "services": [
            {"service": s.name, **{n: joined([c[n][i] for c in checks]) for n in ("ttft_s", "itl_s")}}
            for i, s in enumerate(fleet.services)
        ],
    }


def series(shadow: Shadow, stretch: Stretch, done: Side, other: Side) -> dict[str, np.ndarray]:
    """Logged power against the range of draws under either side."""
    power_w, source, latency = _logged(shadow, stretch)
    out = {
        "time_s": shadow.log.time_s[stretch.rows.start] + (np.arange(len(power_w)) + 1) * shadow.fleet.timing.control_s,
        "logged_power_w": power_w,
    }
    for label, side in (("incumbent", done), ("proposed", other)):
        mine = side.power_w if source == "meter" else side.gpu_w
        for q in (5, 50, 95):
            out[f"{label}_power_p{q}_w"] = np.quantile(mine, q / 100, axis=0)
    for name, values in (("ttft_s", done.ttft_s), ("itl_s", done.itl_s)):
        for i, service in enumerate(shadow.fleet.services):
            out[f"logged_{name}:{service.name}"] = latency[name][:, i]
            for q in (5, 50, 95):
                out[f"incumbent_{name}_p{q}:{service.name}"] = np.nanquantile(values[:, :, i], q / 100, axis=0)
    return out


def trust(check: dict[str, Any]) -> dict[str, str]:
    """How far the plant is to be believed here: "close", "fair", "poor" or "unknown", by quantity."""
    power = _grade(check["power_w"], POWER_CLOSE_FRAC, POWER_FAIR_FRAC)
    out = {"power_w": power}
    for name in ("ttft_s", "itl_s"):
        grades = [_grade(s[name], LATENCY_CLOSE_FRAC, LATENCY_FAIR_FRAC) for s in check["services"]]
        out[name] = max(grades, key=GRADES.index)
    return out


def _grade(check: dict[str, float] | None, close: float, fair: float) -> str:
    if check is None or not math.isfinite(check["error_frac"]):
        return "unknown"
    error = abs(check["error_frac"])
    return "close" if error <= close else "fair" if error <= fair else "poor"
