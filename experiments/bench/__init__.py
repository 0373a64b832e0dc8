"""`flyball bench`: speed and memory on this machine.

A benchmark is a function that returns figures: warm-up, at least five repeats, median, and the distance between
the quartiles under the same name with `_iqr`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ...fleet.errors import BadInput
from ..machine import machine

BENCHES = ("env", "arbiter", "http", "train", "placement", "soak", "chaos")
"""Modules of this package, each with `figures(progress, **settings)`."""


def run_bench(name: str, progress: Callable[[str, float], None] | None = None, **kwargs: Any) -> dict[str, Any]:
    """Run one benchmark.

    Args:
        name: One of `BENCHES`.
        progress: Called with a label and the share done.
        kwargs: Settings of the benchmark, which its `figures` documents.

    Returns:
        {"bench", "figures", "machine"}; a figure that could not be measured is None.

    Raises:
        BadInput: an unknown name, or a benchmark whose extra is not installed.
    """
    if name not in BENCHES:
        raise BadInput(f"no benchmark {name!r}; use {', '.join(BENCHES)}")
    try:
        module = import_module(f".{name}", __name__)
    except ImportError as e:
        raise BadInput(f"bench {name} needs {e.name}, which is missing; pip install 'flyball[all]'") from None
    figures = module.figures(progress or (lambda label, share: None), **kwargs)
    return {"bench": name, "figures": figures, "machine": machine()}
