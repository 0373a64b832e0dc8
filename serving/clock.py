"""The service's clock: Unix seconds that never jump, so that ages and leases survive a wall-clock step."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where the engine reads time from; tests and the simulator inject their own."""

    def now_s(self) -> float:
        """Unix seconds, never decreasing."""


class ServiceClock:
    """Wall time at construction plus boot time since: NTP steps do not make every node silent at once."""

    def __init__(self) -> None:
        self._offset_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def now_s(self) -> float:
        return self._offset_s + time.clock_gettime(time.CLOCK_BOOTTIME)


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s

    def advance(self, dt_s: float) -> float:
        """Move forward by `dt_s` seconds and return the new time."""
        self._now_s += dt_s
        return self._now_s
