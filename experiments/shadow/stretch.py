"""Parts of a shadow log without gaps, tick by tick, as the plant replays them."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...fleet.tables import NEVER_S, UNKNOWN_W
from .log import Shadow, was_announced

STRETCH_S = 3600.0
"""A draw replays at most this much of the log; longer logs are covered by draws that each take another part."""

MIN_STRETCH_S = 180.0
"""Less than this after a gap says nothing that the plant's own start would not drown."""

MIN_KNOWN_FRAC = 0.5
"""At least this share of the load and of the caps must have been heard to predict from it."""

SMOOTH_S = 15.0
"""A row holds the arrivals of one instant; their rate is the mean over this time. Longer would blur the bursts that
a policy answers, shorter would count the noise of the log and that of the draw."""

DOWN_AFTER_S = 60.0
"""A node that is silent for longer is taken to be down, on both sides."""


@dataclass(frozen=True)
class Stretch:
    """A part of the log without gaps, tick by tick.

    Attributes:
        rows: Which rows of the log.
        row_of_tick: Row in force at each tick, shape (T,), counted from the first of `rows`.
        cap_w, stage, is_down: The incumbent's, shape (T, N).
        limits: As `Plant.limits`, shape (T + 1, D, 2).
        told: As `Plant.told`, shape (T + 1, D, 3).
        rates: Arrivals per second, prompt and output tokens per row and service, shape (R, S, 3).
    """

    rows: slice
    row_of_tick: np.ndarray
    cap_w: np.ndarray
    stage: np.ndarray
    is_down: np.ndarray
    limits: np.ndarray
    told: np.ndarray
    rates: np.ndarray

    @property
    def ticks(self) -> int:
        return len(self.row_of_tick)


def why_not(shadow: Shadow) -> str:
    """Why nothing can be predicted from this log; empty when it can."""
    if not pieces(shadow):
        longest_s = max(shadow.log.time_s[r][-1] - shadow.log.time_s[r][0] for r in shadow.runs)
        return f"the longest part without a gap lasts {longest_s:.0f} s; a replay needs {MIN_STRETCH_S:.0f} s"
    service, stale_s = shadow.log.service, shadow.fleet.timing.stale_s
    for name in ("arrival_rps", "prompt_tokens", "output_tokens"):
        known = float((np.isfinite(service[name]) & (service["age_s"] <= stale_s)).mean())
        if known < MIN_KNOWN_FRAC:
            return (
                f"{name} of the services is known {known:.0%} of the time, a replay needs {MIN_KNOWN_FRAC:.0%}: "
                "connect the model servers' metrics"
            )
    known = float(shadow.known[shadow.is_settled].mean()) if shadow.is_settled.any() else 0.0
    if known < MIN_KNOWN_FRAC:
        return f"caps were read back {known:.0%} of the time, a replay needs {MIN_KNOWN_FRAC:.0%}: check the agents"
    return ""


def pieces(shadow: Shadow) -> list[slice]:
    """Parts of the log without a gap, none longer than STRETCH_S."""
    out = []
    for run in shadow.runs:
        time_s = shadow.log.time_s[run]
        parts = max(math.ceil((time_s[-1] - time_s[0]) / STRETCH_S), 1)
        edges = [run.start + round(i * (run.stop - run.start) / parts) for i in range(parts + 1)]
        out += [slice(a, b) for a, b in pairwise(edges)]
    return [
        p for p in out if p.stop - p.start > 1 and shadow.log.time_s[p][-1] - shadow.log.time_s[p][0] >= MIN_STRETCH_S
    ]


def expand(shadow: Shadow, rows: slice) -> Stretch:
    """Rows of the log, a control interval apart, as ticks."""
    log, timing, fleet = shadow.log, shadow.fleet.timing, shadow.fleet
    elapsed_s = log.time_s[rows] - log.time_s[rows.start]
    per_step = round(timing.control_s / timing.tick_s)
    ticks = max(int(elapsed_s[-1] / timing.control_s), 1) * per_step
    at_tick = np.rint(elapsed_s / timing.tick_s).astype(int)
    row = np.searchsorted(at_tick, np.arange(ticks), side="right") - 1
    node = log.node[rows]
    cap_w = _carry(np.where(node["cap_w"] == UNKNOWN_W, np.nan, node["cap_w"]))
    cap_w = np.where(np.isfinite(cap_w), cap_w, fleet.node_static["cap_max_w"]).astype(np.int64)
    is_down = (node["is_silent"] == 1) & (node["age_s"] > DOWN_AFTER_S)
    # a node that nobody had heard of yet is missing, not down
    is_down &= node["age_s"] < NEVER_S
    stage = np.where(node["age_s"] >= NEVER_S, fleet.node_static["stage"], node["stage"])
    limits, told = _limits(shadow, rows, at_tick, ticks)
    return Stretch(rows, row, cap_w[row], stage[row], is_down[row], limits, told, _rates(shadow, rows))


def _carry(values: np.ndarray) -> np.ndarray:
    """The last finite value of each column where one is missing, the first one before it; axis 0 is time."""
    index = np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1))
    finite = np.isfinite(values)
    last = np.maximum.accumulate(np.where(finite, index, -1), axis=0)
    first = np.where(finite.any(0), finite.argmax(0), 0)
    return np.take_along_axis(values, np.where(last < 0, first, last), 0)


def _rates(shadow: Shadow, rows: slice) -> np.ndarray:
    """Smoothed arrivals and lengths per row and service; a service that was never heard gets none."""
    service, timing = shadow.log.service[rows], shadow.fleet.timing
    width = max(round(SMOOTH_S / timing.control_s), 1)
    out = np.zeros((*service.shape, 3))
    for i, name in enumerate(("arrival_rps", "prompt_tokens", "output_tokens")):
        values = np.where(service["age_s"] < NEVER_S, service[name], np.nan)
        values = np.nan_to_num(_carry(values), nan=0.0)
        kernel = np.ones(width)
        for s in range(service.shape[1]):
            count = np.convolve(np.ones(len(values)), kernel, "same")[: len(values)]
            out[:, s, i] = np.convolve(values[:, s], kernel, "same")[: len(values)] / count
    return out


def _limits(shadow: Shadow, rows: slice, at_tick: np.ndarray, ticks: int) -> tuple[np.ndarray, np.ndarray]:
    """Limits demanded, in force and told at every tick, from rows that stand a control interval apart."""
    domain, time_s = shadow.log.domain[rows], shadow.log.time_s[rows]
    tick_s, grace_s = shadow.fleet.timing.tick_s, shadow.fleet.timing.grace_s
    grace = math.ceil(grace_s / tick_s)
    count = domain.shape[1]
    demanded = np.zeros((ticks + 1, count), np.int64)
    told = np.zeros((ticks + 1, count, 3))
    row = np.searchsorted(at_tick, np.arange(ticks + 1), side="right") - 1
    since_s = (np.arange(ticks + 1) - at_tick[row]) * tick_s
    in_force = np.zeros_like(demanded)
    for d in range(count):
        limit_w, next_w, next_in_s = (domain[n][:, d] for n in ("limit_w", "next_limit_w", "next_in_s"))
        left_s = np.where(next_in_s[row] < NEVER_S, next_in_s[row] - since_s, NEVER_S)
        # an announced change starts between two rows, at the time that was announced
        begun = left_s <= 0
        demanded[:, d] = np.where(begun, next_w[row], limit_w[row])
        told[:, d, 0] = demanded[:, d]
        told[:, d, 1] = np.where(begun, demanded[:, d], next_w[row])
        told[:, d, 2] = np.where(begun, NEVER_S, left_s)
        in_force[:, d] = demanded[:, d]
        for r in np.flatnonzero(np.diff(limit_w) < 0) + 1:
            if not was_announced(domain[:, d], time_s, int(r), grace_s):
                late = slice(at_tick[r], at_tick[r] + grace)
                in_force[late, d] = np.maximum(in_force[late, d], limit_w[r - 1])
    return np.stack((demanded, in_force), -1), told
