"""The plant against measured hardware: a registry of checks over a data folder, and their report.

A check takes the folder and returns findings; a source that is absent gives one finding that says so. To add one, write
it in a file of its own and name it in `CHECKS`.
"""

from collections.abc import Callable
from pathlib import Path

from ..calibrate.cap_checks import check_cap_response
from ..calibrate.fleet_inputs import READERS, check_fleet_inputs
from ..replay.check import check_replay
from .findings import Finding, Series, skipped
from .latency import check_latency, check_latency_held_out
from .latency import series as latency_series
from .power import check_kernels, check_power, check_power_held_out
from .power import series as power_series


def _rows(name: str, check: Callable[[Path], list[dict]], *sources: str) -> Callable[[Path], list[Finding]]:
    """A check whose rows are plain dicts, skipped where none of its sources is there."""

    def run(data: Path) -> list[Finding]:
        if sources and not any((Path(data) / s).is_dir() for s in sources):
            return [skipped(name, ", ".join(sources))]
        return [Finding(**row) for row in check(data)]

    return run


CHECKS: dict[str, Callable[[Path], list[Finding]]] = {
    "power": check_power,
    "kernels": check_kernels,
    "latency": check_latency,
    "power-held-out": check_power_held_out,
    "latency-held-out": check_latency_held_out,
    "cap-response": _rows("cap-response", check_cap_response, "zeus_powerlimit", "published_power_curves"),
    "fleet-inputs": _rows("fleet-inputs", check_fleet_inputs, *(folder for folder, _ in READERS)),
    "replay": _rows("replay", check_replay),
}
"""Every check by name, in the order in which they run."""

SERIES: dict[str, Callable[[Path], list[Series]]] = {"power": power_series, "latency": latency_series}
"""What is plotted."""

__all__ = ["CHECKS", "SERIES", "Finding", "Series"]
