"""Totals since the service started, as /metrics has them."""

from dataclasses import dataclass

import numpy as np

from .view import View


@dataclass
class Counters:
    """Totals since start."""

    ticks: int = 0
    late_ticks: int = 0
    failed_ticks: int = 0
    failed_commits: int = 0
    telemetry: int = 0
    leases_issued: int = 0
    violation_ws: float = 0.0
    overshoot_ws: float = 0.0
    interventions: int = 0
    cap_changes: int = 0
    last_tick_s: float = 0.0
    last_commit_s: float = 0.0

    def count(self, view: View, before: View | None, tick_s: float) -> None:
        """Take in a tick's view; `before` is the one before it."""
        self.interventions += int(view.plan.fleet["interventions"][0])
        if before is None:
            return
        self.cap_changes += int((view.plan.node["cap_w"] != before.plan.node["cap_w"]).sum())
        # a pause of the whole service is no reason to extrapolate one sample over it
        dt_s = min(view.time_s - before.time_s, 5 * tick_s)
        over_w = np.maximum(view.domain_measured_w - view.in_force_w, 0.0)
        allowed_w = np.minimum(view.domain_measured_w, view.in_force_w)
        demanded_w = np.array([limit.limit_w for limit in view.limits])
        self.violation_ws += float(over_w.sum()) * dt_s
        self.overshoot_ws += float(np.maximum(allowed_w - demanded_w, 0.0).sum()) * dt_s
