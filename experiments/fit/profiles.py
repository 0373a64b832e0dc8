"""Writing fitted parameters as the tables that the simulator reads."""

from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from ...envs.hardware import GpuPhysics, backend_factors, gpu_physics
from ...envs.laws import LAW_NAMES
from ...envs.power_law import PowerLaw
from .corrections import Factors
from .decode import ServingLaw

HEADER = """\
# Physical parameters per GPU product, written by `python -m flyball.experiments.fit`; docs/plant.md explains them.
# Facts: p0_w parked; tdp_w, flops* (dense, per second), bw, hbm, link (KV transfer), nvlink (collectives, one way) from
# the product's data sheet as aiconfigurator's <system>.yaml repeats it. Fitted: pli_w idle with a model loaded, aw_w,
# am_w, ac_w and [*.power] the power equation, prefill_w what prefill draws, [*.law] the serving law under the median
# engine. `sources` says from which rows and how well; `assumed` names what nobody has measured, with its range.
"""


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return repr(round(float(value), 6 if abs(value) < 1 else 3))
    return f"{float(value):.5g}"


def _value(value: object) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return '"' + value.replace('"', "'") + '"' if isinstance(value, str) else _number(float(value))  # type: ignore[arg-type]


def skus_toml(
    gpus: Mapping[str, GpuPhysics],
    serving: ServingLaw,
    notes: Mapping[str, Mapping[str, object]],
) -> str:
    """`skus.toml` for GPU products; `notes[name]` holds `sources` and `assumed`."""
    lines = [HEADER]
    for name, gpu in gpus.items():
        lines.append(f"[{name}]")
        lines += [f"{k} = {_value(v)}" for k, v in notes.get(name, {}).items()]
        lines += [f"{f.name} = {_value(getattr(gpu, f.name))}" for f in fields(gpu) if f.name not in ("law", "power")]
        law = serving.skus.get(name) or {n: getattr(gpu.law, n) for n in LAW_NAMES}
        lines += ["", f"[{name}.law]", *(f"{n} = {_value(law[n])}" for n in LAW_NAMES)]
        lines += ["", f"[{name}.power]"]
        lines += [f"{f.name} = {_value(getattr(gpu.power, f.name))}" for f in fields(PowerLaw)]
        lines.append("")
    return "\n".join(lines)


def backends_toml(serving: ServingLaw) -> str:
    """`backends.toml`: factors of each measured engine on the median one."""
    lines = [
        "# Factors of each serving engine on the coefficients of the law in skus.toml, written by",
        "# `python -m flyball.experiments.fit`; 1 is the geometric mean over engines, which the simulator uses.",
        "# serving: waits of an aggregated engine's first token (experiments/fit/decode.py).",
        "",
    ]
    for name, factors in serving.backends.items():
        lines += [f"[{name}]", *(f"{k} = {_value(v)}" for k, v in factors.items())]
        if waits := serving.serving.get(name):
            lines += ["", f"[{name}.serving]", *(f"{k} = {_value(v)}" for k, v in waits.items())]
        lines.append("")
    return "\n".join(lines)


def corrections_toml(factors: Mapping[str, Factors]) -> str:
    """`corrections.toml`: kind -> product or "any" -> model/precision -> factor; factors near 1 are left out."""
    lines = [
        "# Measured over predicted for models that were measured, written by `python -m flyball.experiments.fit`:",
        "# factors on step time (decode), prompt time (prefill) and draw above idle (power), first for all products",
        "# (any), then for one. Shrunk towards 1 where rows are few (experiments/fit/corrections.py). *-load: factors",
        "# on what requests (of a step, of the draw) or a prompt's tokens add, on top.",
        "",
    ]
    for kind, by_sku in factors.items():
        for sku, values in by_sku.items():
            kept = {k: v for k, v in values.items() if abs(v - 1.0) >= 0.005}
            if kept:
                lines += [f"[{kind}.{sku}]", *(f'"{k}" = {v:.3f}' for k, v in kept.items()), ""]
    return "\n".join(lines)


def shipped_serving() -> ServingLaw:
    """The serving law that the package ships."""
    skus = {name: {n: getattr(gpu.law, n) for n in LAW_NAMES} for name, gpu in gpu_physics().items()}
    shared = {n: float(np.exp(np.mean([np.log(s[n]) for s in skus.values()]))) for n in LAW_NAMES}
    factors = backend_factors()
    backends = {b: {n: v for n, v in f.items() if n in LAW_NAMES} for b, f in factors.items()}
    return ServingLaw(shared, skus, backends, {b: f["serving"] for b, f in factors.items() if "serving" in f})
