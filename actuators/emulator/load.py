"""Puts the emulated library into this process, so that the real pynvml finds it under NVIDIA's name."""

import ctypes
import os
from pathlib import Path

from ..errors import EmulatorError
from .build import library_path

STATE_VARIABLE = "FLYBALL_NVML_STATE"
"""Environment variable that names the state file (read by the library when NVML is initialised)."""


def load_emulated(state: Path | str | None = None) -> ctypes.CDLL:
    """Load the emulated NVML library; call it before pynvml's `nvmlInit`.

    Args:
        state: The state file of the emulated GPUs; by default the one that `FLYBALL_NVML_STATE` names.

    Raises:
        EmulatorError: if no state file is named, or it does not exist, or the library cannot be built.
    """
    path = state or os.environ.get(STATE_VARIABLE)
    if not path:
        raise EmulatorError(f"emulated NVML has no state file; set {STATE_VARIABLE} to one made by EmulatedGpus.create")
    if not Path(path).is_file():
        raise EmulatorError(f"no emulated GPUs at {path}; start the emulation first or correct {STATE_VARIABLE}")
    os.environ[STATE_VARIABLE] = str(path)
    # RTLD_GLOBAL and the soname make a later CDLL("libnvidia-ml.so.1") return this library
    return ctypes.CDLL(str(library_path()), mode=ctypes.RTLD_GLOBAL)
