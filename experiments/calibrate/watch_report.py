"""What `flyball calibrate --gpu` says and writes: samples, ranges of the power weights, and where they came from."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...actuators import nvml
from ...envs.hardware import gpu_physics
from ...fleet.errors import BadInput
from .fitted_file import write_toml
from .gpu_load import Load
from .watch import power_ranges, watch


def product_of(name: str) -> str | None:
    """The SKU of `envs/profiles/skus.toml` that a driver's product name means; None for another."""
    for sku in sorted(gpu_physics(), key=len, reverse=True):
        if sku.split("-")[0] in name.upper().split():
            return sku
    return None


def watch_report(gpus: Sequence[nvml.Gpu], load: Load, seconds: float, out: Path) -> dict[str, Any]:
    """Watch and report.

    Raises:
        BadInput: without a GPU that can be read.
    """
    reachable = [g for g in gpus if g.handle is not None]
    if not reachable:
        raise BadInput("no GPU that can be read on this node")
    samples = watch(reachable, load, seconds)
    sku = product_of(reachable[0].name)
    peak = gpu_physics()[sku] if sku else None
    ranges = power_ranges(samples, peak.flops if peak else 0.0, peak.bw if peak else 0.0)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    path = out / "gpu.toml"
    record = {
        "product": reachable[0].name,
        "sku": sku or "",
        "gpus": len(reachable),
        "source": f"watched through NVML at {at}, settings as found",
        "cap_w": samples[0].cap_w,
        **{f"{k}_range": v for k, v in ranges.items()},
    }
    write_toml({"gpu": record}, path, "Watched on one node; ranges in watts per GPU (MODEL.md section 4).")
    rows = [{"kernel": f"{s.kernel.name} {s.kernel.size}".strip(), **asdict(s)} for s in samples]
    for row, s in zip(rows, samples, strict=True):
        row["kernel"] = f"{s.kernel.name} {s.kernel.size}" if s.kernel.size else s.kernel.name
    return {**record, "samples": rows, "toml": str(path), "writes_to_devices": 0}
