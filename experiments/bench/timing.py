"""Repeated measurements: warm-up, median, spread."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

REPEATS = 5
"""Fewest repeats behind a figure."""


@dataclass(frozen=True)
class Sample:
    """Repeats of one measurement.

    Attributes:
        values: One per repeat, in any unit.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def iqr(self) -> float:
        """Distance between the quartiles."""
        low, high = np.quantile(self.values, [0.25, 0.75])
        return float(high - low)

    def figures(self, name: str, factor: float = 1.0) -> dict[str, float]:
        """The median under `name` and the spread beside it, both times `factor`."""
        return {name: self.median * factor, f"{name}_iqr": self.iqr * factor}


def seconds_per_call(call: Callable[[], object], repeats: int = REPEATS, repeat_s: float = 0.2) -> Sample:
    """Mean time of a call within each repeat, after a warm-up that also chooses how many calls make a repeat.

    Args:
        call: What is timed.
        repeats: At least five.
        repeat_s: Shortest length of a repeat, so that the clock's own cost does not show.
    """
    call()  # compiles, allocates
    started = time.perf_counter()
    call()
    once_s = max(time.perf_counter() - started, 1e-7)
    calls = max(1, round(repeat_s / once_s))
    for _ in range(max(1, calls // 10)):
        call()
    values = []
    for _ in range(max(repeats, REPEATS)):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        values.append((time.perf_counter() - started) / calls)
    return Sample(tuple(values))
