"""The machine and the versions that a figure was measured with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__


def machine() -> dict[str, str | int]:
    """Processor, cores that this process may use, and the versions that speed depends on."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "numba": version("numba"),
    }


def versions(is_training: bool = False) -> dict[str, str]:
    """Versions of what computed a result."""
    names = ["numpy", "numba", "onnxruntime"] + (["torch", "stable-baselines3", "onnx"] if is_training else [])
    out = {"flyball": __version__, "python": platform.python_version()}
    for name in names:
        try:
            out[name] = version(name)
        except PackageNotFoundError:  # an extra that this run did without
            continue
    return out


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
