"""Watts held against limits in force and limits demanded, added up."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LimitMeter:
    """Watts against limits, added up.

    Attributes:
        violation_ws: Above limits in force, summed over domains.
        overshoot_ws: Above demanded limits that the grace let through.
        overshoot_s: Longest time in one go above a demanded limit.
        margin_w: Least distance to a limit in force.
        over_since_s: When the watts rose above a demanded limit; NaN while they are not.
    """

    violation_ws: float = 0.0
    overshoot_ws: float = 0.0
    overshoot_s: float = 0.0
    margin_w: float = math.inf
    over_since_s: float = math.nan

    def add(self, watts: np.ndarray, demanded_w: np.ndarray, in_force_w: np.ndarray, t_s: float, dt_s: float):
        """One sample of every domain that stands for the `dt_s` before `t_s`."""
        over_force_w = np.maximum(watts - in_force_w, 0.0)
        over_demand_w = np.maximum(watts - np.maximum(demanded_w, 0), 0.0) - over_force_w
        is_over = bool((watts > demanded_w).any())
        since_s = (t_s - dt_s if math.isnan(self.over_since_s) else self.over_since_s) if is_over else math.nan
        return LimitMeter(
            self.violation_ws + float(over_force_w.sum()) * dt_s,
            self.overshoot_ws + float(over_demand_w.sum()) * dt_s,
            max(self.overshoot_s, t_s - since_s) if is_over else self.overshoot_s,
            min(self.margin_w, float((in_force_w - watts).min())),
            since_s,
        )
