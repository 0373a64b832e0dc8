"""What a GPU shows of itself without touching a setting: samples through NVML while a load runs, and what they say."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...actuators import nvml
from .gpu_load import SLICE_S, Kernel, Load


@dataclass(frozen=True)
class Sample:
    """One load at one setting; figures are per GPU, means over the GPUs.

    Attributes:
        kernel: What ran.
        seconds: For how long.
        rate: Units of work per second and GPU (flops, bytes or seconds).
        power_w: Mean draw: from the energy counter where there is one, else the mean of what was read.
        clock_frac: Mean SM clock over its maximum.
        util_frac: Mean share of the time in which a kernel ran.
        temp_c: Hottest GPU.
        cap_w: Cap in force, the lowest.
    """

    kernel: Kernel
    seconds: float
    rate: float
    power_w: float
    clock_frac: float
    util_frac: float
    temp_c: float
    cap_w: int


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return float(np.mean(finite)) if finite else math.nan


def sample(
    gpus: Sequence[nvml.Gpu], load: Load, kernel: Kernel, seconds: float, settle_s: float, beat: Callable[[], None]
) -> Sample:
    """Run one load and watch; `beat` is called at least every `SLICE_S`.

    Raises:
        GpuError: if a GPU cannot be read.
    """
    until_s = time.monotonic() + settle_s
    while time.monotonic() < until_s:
        load.run(kernel, min(SLICE_S, settle_s))
        beat()
    before = [nvml.read(g) for g in gpus]
    start_s, work, readings = time.monotonic(), 0.0, []
    while time.monotonic() < start_s + seconds:
        work += load.run(kernel, min(SLICE_S, seconds))
        beat()
        readings += [nvml.read(g) for g in gpus]
    span_s = time.monotonic() - start_s
    after = readings[-len(gpus) :]
    counted = [(b.energy_j - a.energy_j) / span_s for a, b in zip(before, after, strict=True)]
    power_w = _mean(counted)
    if not power_w > 0:
        power_w = _mean([r.power_w for r in readings])
    return Sample(
        kernel,
        span_s,
        work / span_s / len(gpus),
        power_w,
        _mean([r.clock_frac for r in readings]),
        _mean([r.util_frac for r in readings]),
        max(r.temp_c for r in readings),
        min(min(r.cap_w, r.enforced_cap_w) for r in readings),
    )


def watch(gpus: Sequence[nvml.Gpu], load: Load, seconds: float) -> list[Sample]:
    """Every kernel of the load under the settings as they are; writes nothing to a device."""
    share_s = seconds / len(load.kernels)
    return [sample(gpus, load, k, 0.75 * share_s, 0.25 * share_s, lambda: None) for k in load.kernels]


def power_ranges(samples: Sequence[Sample], peak_flops: float, peak_bytes_s: float) -> dict[str, list[float]]:
    """Ranges of the power equation's weights (MODEL.md section 4) that uncapped samples allow, watts.

    A copy uses memory alone, so `am = (P - pli) / sqrt(u_m)`; a matmul uses compute and little memory, so that
    `ac = (P - pli - a) / u_c` with `a` between nothing and the copies' share at a quarter of the bandwidth. Samples
    that a cap holds tell a lower bound only and are left out.

    Args:
        samples: From `watch`.
        peak_flops: Of the product; 0 takes the best rate seen.
        peak_bytes_s: The same of memory.

    Returns:
        Lowest and highest of `pli_w`, `am_w`, `ac_w`, each where there is a sample of its kind.
    """
    idle = [s.power_w for s in samples if s.kernel.name == "idle" and not s.util_frac > 0.02]
    out: dict[str, list[float]] = {}
    if not idle:
        return out
    out["pli_w"] = [min(idle), max(idle)]
    pli_w = float(np.mean(idle))
    free = [s for s in samples if s.power_w < 0.97 * s.cap_w]
    copies = [s for s in free if s.kernel.name == "copy"]
    matmuls = [s for s in free if s.kernel.name == "matmul"]
    memory = 0.0
    if copies:
        peak = peak_bytes_s or max(s.rate for s in copies)
        weights = [(s.power_w - pli_w) / math.sqrt(min(s.rate / peak, 1.0)) for s in copies]
        out["am_w"] = [min(weights), max(weights)]
        memory = float(np.mean(weights))
    if matmuls:
        peak = peak_flops or max(s.rate for s in matmuls)
        shares = [(s.power_w - pli_w, s.rate / peak) for s in matmuls]
        out["ac_w"] = [
            min((p - 0.5 * memory) / u for p, u in shares),
            max(p / u for p, u in shares),
        ]
    return out
