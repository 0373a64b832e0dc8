"""The limit in force of one power domain, and the mean over its window, from what was demanded and drawn."""

from bisect import bisect_right

from .events import NEVER_MS


class LimitHistory:
    """Demanded limits over time; the limit in force is their largest that a grace still covers.

    The piece of demand before a cut that was announced at `a` and starts at `s` covers until max(s, a + grace):
    its start where it was announced in time, the grace otherwise. A raise ends the piece before it at once.
    """

    __slots__ = ("announced", "grace_ms", "pieces", "start_ms")

    def __init__(self, peak_w: int, grace_ms: int):
        self.grace_ms = grace_ms
        self.pieces: list[tuple[int, int]] = [(peak_w, NEVER_MS)]  # (limit, covered until)
        self.announced: tuple[int, int, int] | None = None  # (limit, start, told at)

    def copy(self) -> "LimitHistory":
        other = LimitHistory(0, self.grace_ms)
        other.pieces, other.announced = list(self.pieces), self.announced
        return other

    def demand(self, time_ms: int, limit_w: int, announced_ms: int) -> None:
        last_w, _ = self.pieces[-1]
        covered_ms = max(time_ms, announced_ms + self.grace_ms) if limit_w < last_w else time_ms
        kept = [(w, until) for w, until in self.pieces[:-1] if until > time_ms]
        self.pieces = [*kept, (last_w, covered_ms), (limit_w, NEVER_MS)]
        if self.announced is not None and self.announced[1] <= time_ms:
            self.announced = None

    def announce(self, time_ms: int, limit_w: int, start_ms: int) -> None:
        self.announced = (limit_w, start_ms, time_ms)

    def demanded_w(self) -> int:
        return self.pieces[-1][0]

    def in_force_w(self, time_ms: int) -> int:
        return max(w for w, until in self.pieces if time_ms < until)


class WindowMeter:
    """Energy of a piecewise constant draw, and its largest mean over a window, wherever the window starts.

    Energy over a sliding window is piecewise linear in the window's start, so its largest value has its start or its
    end where the draw changes: those windows are the ones checked.
    """

    __slots__ = ("energy", "mean_w", "power_w", "times", "unchecked", "window_ms")

    def __init__(self, mean_w: int, window_ms: int):
        self.mean_w, self.window_ms = mean_w, window_ms
        self.times: list[int] = []
        self.energy: list[int] = []  # watt-milliseconds up to each time
        self.power_w = 0
        self.unchecked = 0  # first start of a window that has not ended yet

    def copy(self) -> "WindowMeter":
        other = WindowMeter(self.mean_w, self.window_ms)
        other.times, other.energy = list(self.times), list(self.energy)
        other.power_w, other.unchecked = self.power_w, self.unchecked
        return other

    def _at(self, time_ms: int) -> int:
        """Energy up to a time no later than the last; 0 before the first."""
        k = bisect_right(self.times, time_ms) - 1
        if k < 0:
            return 0
        if k == len(self.times) - 1:
            return self.energy[k]
        slope = (self.energy[k + 1] - self.energy[k]) // (self.times[k + 1] - self.times[k])
        return self.energy[k] + slope * (time_ms - self.times[k])

    def advance(self, time_ms: int, power_w: int) -> int:
        """The draw was what it was until now, and is `power_w` from now on.

        Returns:
            Watt-milliseconds by which the worst window that ended since the last call exceeds its limit; <= 0 for none.
        """
        if not self.times or time_ms > self.times[-1]:
            before = self.energy[-1] + self.power_w * (time_ms - self.times[-1]) if self.times else 0
            self.times.append(time_ms)
            self.energy.append(before)
        self.power_w = power_w
        allowed = self.mean_w * self.window_ms
        worst = self.energy[-1] - self._at(time_ms - self.window_ms) - allowed
        while self.times[self.unchecked] + self.window_ms <= time_ms:
            start = self.times[self.unchecked]
            worst = max(worst, self._at(start + self.window_ms) - self.energy[self.unchecked] - allowed)
            self.unchecked += 1
        if self.unchecked > 4096:  # forget what no window reaches any more
            keep = self.unchecked - 1
            self.times, self.energy = self.times[keep:], self.energy[keep:]
            self.unchecked -= keep
        return worst
