"""Writing fitted parameters as the tables that the simulator reads."""

from collections.abc import Mapping
from dataclasses import fields

from ...envs.hardware import GpuPhysics, gpu_physics
from ...envs.laws import LAW_NAMES
from ...envs.power_law import PowerLaw
from .decode import ServingLaw

HEADER = """\
# Physical parameters per GPU product, written by `python -m flyball.experiments.fit`; docs/plant.md explains them.
# Facts: p0_w parked; tdp_w, flops* (dense, per second), bw, hbm, link (KV transfer), nvlink (collectives, one way) from
# the product's data sheet as aiconfigurator's <system>.yaml repeats it. Fitted: pli_w idle with a model loaded, aw_w,
# am_w, ac_w and [*.power] the power equation, prefill_w what prefill draws, [*.law] the serving law under the median
# engine. `sources` and `errors` say from which rows and how well; `assumed` names what nobody has measured.
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
    """`skus.toml` for GPU products; `notes[name]` holds `sources`, `errors`, `assumed`."""
    lines = [HEADER]
    for name, gpu in gpus.items():
        lines.append(f"[{name}]")
        lines += [f"{k} = {_value(v)}" for k, v in notes.get(name, {}).items()]
        lines += [f"{f.name} = {_value(getattr(gpu, f.name))}" for f in fields(gpu) if f.name not in ("law", "power")]
        law = serving.skus.get(name, serving.shared)
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
    for name, factors in {**serving.backends, "serving": serving.serving}.items():
        lines += [f"[{name}]", *(f"{k} = {_value(v)}" for k, v in factors.items()), ""]
    return "\n".join(lines)


def shipped() -> Mapping[str, GpuPhysics]:
    """What the package ships now: the facts that a fit starts from."""
    return gpu_physics()
