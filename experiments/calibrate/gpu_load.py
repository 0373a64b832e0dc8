"""Loads that a measurement drives a GPU with: dense matmul (compute) and copies (memory) of several sizes, or none."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MATMUL_SIZES = (1024, 4096, 8192)
COPY_MIB = (64, 1024)

SLICE_S = 0.2
"""Between two looks at the GPU; long beside a launch, short beside the mean of a second that NVML reports."""


@dataclass(frozen=True)
class Kernel:
    """One load.

    Attributes:
        name: `matmul`, `copy` or `idle`.
        size: Rows of the square matrices, or MiB copied; 0 for idle.
    """

    name: str
    size: int


class Load(Protocol):
    """Runs kernels on every GPU of the node at once."""

    kernels: Sequence[Kernel]

    def run(self, kernel: Kernel, seconds: float) -> float:
        """Keep `kernel` busy for about `seconds`; units of work done by all GPUs: flops or bytes."""
        ...


GPU_KERNELS = (
    Kernel("idle", 0),
    *(Kernel("copy", m) for m in COPY_MIB),
    *(Kernel("matmul", n) for n in MATMUL_SIZES),
)


class IdleLoad:
    """No load: a measurement that only watches, and the emulated GPUs'. A unit of its work is a second."""

    kernels: Sequence[Kernel] = (Kernel("idle", 0),)

    def run(self, kernel: Kernel, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


class TorchLoad:
    """Matmul and copy through torch on every CUDA device; made by `find_load`.

    Args:
        torch: The module; only this class uses it, so that the rest runs without.
        devices: Names of devices; every CUDA device by default.
        kernels: Loads; sizes that fit a product with 8 GiB and more by default.
    """

    def __init__(self, torch: Any, devices: Sequence[str] = (), kernels: Sequence[Kernel] = GPU_KERNELS):
        self._torch = torch
        self._devices = tuple(devices) or tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        self.kernels = kernels
        self._buffers: dict[Kernel, list[tuple]] = {}

    def _prepare(self, kernel: Kernel) -> list[tuple]:
        torch = self._torch
        if kernel not in self._buffers:
            self._buffers.clear()  # one kernel's buffers at a time
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            out: list[tuple] = []
            for device in self._devices:
                if kernel.name == "matmul":
                    a = torch.randn(kernel.size, kernel.size, device=device, dtype=torch.bfloat16)
                    out.append((a, torch.randn_like(a), torch.empty_like(a)))
                else:
                    a = torch.empty(kernel.size << 20, dtype=torch.uint8, device=device)
                    out.append((a, torch.empty_like(a)))
            self._buffers[kernel] = out
        return self._buffers[kernel]

    def run(self, kernel: Kernel, seconds: float) -> float:
        if kernel.name == "idle":
            time.sleep(seconds)
            return seconds
        torch, buffers, done, until_s = self._torch, self._prepare(kernel), 0.0, time.monotonic() + seconds
        while time.monotonic() < until_s:
            for _ in range(8):
                for arrays in buffers:
                    if kernel.name == "matmul":
                        torch.matmul(arrays[0], arrays[1], out=arrays[2])
                        done += 2.0 * kernel.size**3
                    else:
                        arrays[1].copy_(arrays[0])
                        done += 2.0 * (kernel.size << 20)
            for device in self._devices:
                if device != "cpu":
                    torch.cuda.synchronize(device)
        return done


def find_load() -> Load | None:
    """The built-in load where torch has CUDA devices, else None."""
    try:
        import torch
    except ImportError:
        return None
    return TorchLoad(torch) if torch.cuda.is_available() else None
