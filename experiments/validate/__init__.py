"""The plant against measured hardware: a registry of checks over a data folder, and their report.

A check takes the folder and returns findings; a source that is absent gives one finding that says so. To add one, write
it in a file of its own and name it in `CHECKS`.
"""

from collections.abc import Callable
from pathlib import Path

from .findings import Finding, Series
from .latency import check_latency, check_latency_held_out
from .latency import series as latency_series
from .power import check_kernels, check_power, check_power_held_out
from .power import series as power_series

CHECKS: dict[str, Callable[[Path], list[Finding]]] = {
    "power": check_power,
    "kernels": check_kernels,
    "latency": check_latency,
    "power-held-out": check_power_held_out,
    "latency-held-out": check_latency_held_out,
}
"""Every check by name, in the order in which they run."""

SERIES: dict[str, Callable[[Path], list[Series]]] = {"power": power_series, "latency": latency_series}
"""What is plotted."""

__all__ = ["CHECKS", "SERIES", "Finding", "Series"]
