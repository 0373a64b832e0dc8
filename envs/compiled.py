"""How the plant's kernels are compiled: as the arbiter's, and never stale after a change in the plant's files."""

from collections.abc import Callable
from pathlib import Path

from ..fleet.arbiter.compiled import kernel as arbiter_kernel

PLANT_DIR = Path(__file__).resolve().parent


def kernel(function: Callable | None = None, *, inline: bool = False) -> Callable:
    """`fleet.arbiter.compiled.kernel`, watching this folder too."""
    return arbiter_kernel(function, folders=(PLANT_DIR,), inline=inline)
