"""What the policy would have changed: every KPI under either side, with what the draws allow to say of it."""

import math
from typing import Any

import numpy as np

from ..statistics import interval, paired
from .replay import Replayed

CLEAR_ERRORS = 3.0
"""Standard errors by which halves must differ: of a dozen parameters, one differs by two of them by chance alone."""

HEADLINE = "goodput_tok_s_per_mw"

RELATIVE = (
    HEADLINE,
    "tokens_per_joule",
    "mean_power_w",
    "ttft_p50_s",
    "ttft_p99_s",
    "itl_p99_s",
)

ABSOLUTE = ("slo_attainment_frac", "budget_violation_ws", "overshoot_ws", "cap_changes_per_node_hour")
"""KPIs by how their change is told: as a share of the incumbent's, or as a difference."""


def changes(replayed: Replayed) -> list[dict[str, Any]]:
    """Every KPI under either side, and its change with a 95 % interval of the mean and the range of 95 % of draws.

    The interval of the mean shrinks with the number of draws; the site is one draw, so its own change is to be
    expected within the range.
    """
    out = []
    for name in (*RELATIVE, *ABSOLUTE):
        a = np.array([k[name] for k in replayed.incumbent], float)
        b = np.array([k[name] for k in replayed.proposed], float)
        is_relative = name in RELATIVE
        if is_relative:
            mean, ci95 = paired(b, a)
            each = _relative(a, b)
        else:
            mean, ci95 = interval(b - a)
            each = b - a
        kept = each[np.isfinite(each)]
        spread = np.quantile(kept, [0.025, 0.975]).tolist() if len(kept) else [math.nan, math.nan]
        out.append(
            {
                "kpi": name,
                "is_relative": is_relative,
                "incumbent": dict(zip(("mean", "ci95"), interval(a), strict=True)),
                "flyball": dict(zip(("mean", "ci95"), interval(b), strict=True)),
                "change": {"mean": mean, "ci95": ci95, "range95": spread, "draws": each.tolist()},
            }
        )
    return out


def _relative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Change of each draw as a share of the incumbent's; NaN where that is nothing."""
    return np.divide(b, a, out=np.full(len(a), math.nan), where=a != 0) - 1.0


def sensitivity(replayed: Replayed, kpi: str) -> list[dict[str, Any]]:
    """How the change of a KPI differs between the lower and the upper half of each parameter's draws."""
    if len(replayed.params) < 8:
        return []  # halves of fewer than four draws say nothing
    a = np.array([k[kpi] for k in replayed.incumbent], float)
    b = np.array([k[kpi] for k in replayed.proposed], float)
    each = _relative(a, b)
    out = []
    for name in replayed.params[0]:
        values = np.array([p[name] for p in replayed.params])
        if np.ptp(values) == 0:
            continue
        upper = values > np.median(values)
        halves = [part[np.isfinite(part)] for part in (each[~upper], each[upper])]
        if min(len(part) for part in halves) < 2:
            continue
        low, high = (float(part.mean()) for part in halves)
        error = math.sqrt(sum(part.var(ddof=1) / len(part) for part in halves))
        out.append(
            {
                "parameter": name,
                "low_half": low,
                "high_half": high,
                "range": [float(values.min()), float(values.max())],
                "is_clear": abs(high - low) > CLEAR_ERRORS * error,
            }
        )
    return sorted(out, key=lambda row: -abs(row["high_half"] - row["low_half"]))
