"""Rows of a comparison: what the windows of one policy on one scenario say, against the best baseline on the same."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import registry
from ..envs.scenario import Scenario
from .contenders import Contender
from .statistics import LEVEL, METHOD, Bounds, bounds, holm, interval, paired, share_of_gap
from .windows import Windows

LARGER_IS_BETTER = {"goodput_tok_s_per_mw": True, "slo_attainment_frac": True, "tokens_per_joule": True}
"""Direction of KPIs for `worst`; every other KPI is worse when larger."""

HEADLINE = "goodput_tok_s_per_mw"
ATTAINMENT = "slo_attainment_frac"
TAIL_KPIS = (HEADLINE, ATTAINMENT, "ttft_p99_s", "itl_p99_s")
"""KPIs whose worst tenth of windows stands in the rows."""

MIN_GAP_FRAC = 0.02
"""Least distance from the best baseline to the reference that a share of it is stated for (DESIGN.md 9)."""

GOODPUT_MARGIN_FRAC = 0.005
ATTAINMENT_MARGIN_FRAC = 0.005
"""Losses below these are no matter: half a per cent of goodput, half a point of attainment."""

MIN_WINDOWS = 8
"""Below so many windows no verdict is given: a bootstrap of fewer is surer than it should be."""

SUPERIOR, NON_INFERIOR, INFERIOR, UNCLEAR = "superior", "non-inferior", "inferior", "no clear difference"


@dataclass(frozen=True)
class Case:
    """A scenario on one site, and everyone's windows there.

    Attributes:
        scenario: What happens.
        contenders: In the order of the rows.
        windows: By contender's name: one `Windows` per member.
        baseline: Name of the family's best baseline, which is among the contenders.
        seeds: Of the windows.
        trained_on: By contender's name: families that its files were trained on, None where it has no card.
    """

    scenario: Scenario
    contenders: tuple[Contender, ...]
    windows: Mapping[str, Sequence[Windows]]
    baseline: str
    seeds: Sequence[int]
    trained_on: Mapping[str, list[str] | None]

    def values(self, name: str, kpi: str) -> np.ndarray:
        """One KPI of a contender, shape (members, windows)."""
        return np.array([[w.kpis[s][kpi] for s in self.seeds] for w in self.windows[name]], float)


def rows_of(case: Case, clairvoyant: str | None = None) -> list[dict[str, Any]]:
    """The rows of one case, without verdicts: those need every case of a policy (`judge`).

    Args:
        case: The windows.
        clairvoyant: Name of the contender that sees the future; None: nothing is said of headroom.
    """
    reference = _reference(case) if clairvoyant else None
    described = ""
    if reference is not None:
        names = ", ".join(c.name for c in case.contenders if c.ablation is None and c.name != clairvoyant)
        described = f"best of {clairvoyant}, {names} in each window"
    return [_row(case, c, reference, described) for c in case.contenders]


def strongest(case: Case) -> str:
    """The deployable baseline that reached most on these very windows: known only in hindsight, and harder to beat."""
    names = {c.name for c in case.contenders if c.name in registry.CANDIDATES} | {case.baseline}
    return max(sorted(names), key=lambda name: case.values(name, HEADLINE).mean())


def _reference(case: Case) -> np.ndarray:
    """The best that anyone reached in each window, shape (1, windows): the clairvoyant alone can be beaten."""
    tables = [case.values(c.name, HEADLINE) for c in case.contenders if c.ablation is None]
    return np.concatenate(tables).max(0, keepdims=True)


def _row(case: Case, contender: Contender, reference: np.ndarray | None, described: str) -> dict[str, Any]:
    scenario, name, base = case.scenario, contender.name, case.baseline
    first = case.windows[name][0]
    goodput, base_goodput = case.values(name, HEADLINE), case.values(base, HEADLINE)
    diff, ci = paired(goodput, base_goodput)
    hardest = strongest(case)
    hard_diff, hard_ci = paired(goodput, case.values(hardest, HEADLINE))
    points, points_ci = interval(case.values(name, ATTAINMENT) - case.values(base, ATTAINMENT))
    row: dict[str, Any] = {
        "scenario": scenario.name,
        "family": scenario.family,
        "nodes": len(scenario.fleet.nodes),
        "policy": name,
        "members": list(contender.members),
        "ablation": contender.ablation,
        "is_learned": contender.is_learned,
        "trained_on": case.trained_on[name],
        "load": first.load,
        "load_scale": first.load_scale,
        "seeds": len(case.seeds),
        "kpis": {kpi: _summary(kpi, case.values(name, kpi)) for kpi in first.kpis[case.seeds[0]]},
        "tail": {kpi: _worst_tenth(kpi, case.values(name, kpi)) for kpi in TAIL_KPIS},
        "worst_window": _worst_window(goodput, base_goodput, case.seeds),
        "vs_best_baseline": {"baseline": base, "diff": diff, "ci95": ci},
        "vs_strongest_baseline": {"baseline": hardest, "diff": hard_diff, "ci95": hard_ci},
        "attainment_vs_best_baseline": {"diff": points, "ci95": points_ci},
        "recovered_headroom": None,
        "headroom": None,
    }
    if reference is not None:
        gap = float(reference.mean() / base_goodput.mean() - 1.0) if base_goodput.mean() > 0 else math.nan
        share, share_ci = share_of_gap(goodput, base_goodput, reference)
        is_wide = gap >= MIN_GAP_FRAC
        row["recovered_headroom"] = share if is_wide else None
        row["headroom"] = {"gap_frac": gap, "ci95": share_ci if is_wide else None, "reference": described}
    return row


def _summary(kpi: str, values: np.ndarray) -> dict[str, Any]:
    mean, ci = interval(values)
    finite = values[np.isfinite(values)]
    worst = math.nan
    if len(finite):
        worst = float(finite.min() if LARGER_IS_BETTER.get(kpi) else finite.max())
    return {"mean": mean, "ci95": ci, "worst": worst}


def _worst_tenth(kpi: str, values: np.ndarray) -> float:
    """Mean of the worst tenth of windows, at least one."""
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite):
        return math.nan
    count = math.ceil(len(finite) / 10)
    return float((finite[:count] if LARGER_IS_BETTER.get(kpi) else finite[-count:]).mean())


def _worst_window(goodput: np.ndarray, base: np.ndarray, seeds: Sequence[int]) -> dict[str, Any]:
    """The window that lost most against the baseline, mean over members: its seed, and the difference there."""
    scale = np.where(base[0] > 0, base[0], math.nan)
    relative = goodput.mean(0) / scale - 1.0
    if not np.isfinite(relative).any():
        return {"seed": None, "diff": math.nan}
    at = int(np.nanargmin(relative))
    return {"seed": int(seeds[at]), "diff": float(relative[at])}


def judge(cases: Sequence[Case], rows: list[dict[str, Any]]) -> None:
    """Enter verdicts into rows: bounds against the best baseline, and superiority adjusted over a policy's rows.

    Args:
        cases: The cases of the rows.
        rows: As of `rows_of`, case by case.
    """
    found: dict[int, tuple[Bounds, Bounds]] = {}
    by_policy: dict[str, list[int]] = {}
    place = 0
    for case in cases:
        for contender in case.contenders:
            if contender.name != case.baseline:
                mine, base = contender.name, case.baseline
                found[place] = (
                    bounds(case.values(mine, HEADLINE), case.values(base, HEADLINE), is_relative=True),
                    bounds(case.values(mine, ATTAINMENT), case.values(base, ATTAINMENT), is_relative=False),
                )
                by_policy.setdefault(contender.name, []).append(place)
            place += 1
    for row in rows:
        row["verdict"], row["tests"] = None, None
    for places in by_policy.values():
        adjusted = holm([found[i][0].p for i in places])
        for i, p_holm in zip(places, adjusted, strict=True):
            goodput, attainment = found[i]
            worst_ws = rows[i]["kpis"]["budget_violation_ws"]["worst"]
            rows[i]["verdict"] = verdict(goodput, attainment, p_holm, rows[i]["seeds"], worst_ws)
            rows[i]["tests"] = {
                "goodput": {"lower": goodput.lower, "upper": goodput.upper, "p": goodput.p, "p_holm": p_holm},
                "attainment": {"lower": attainment.lower, "upper": attainment.upper},
                "method": METHOD,
            }


def verdict(goodput: Bounds, attainment: Bounds, p_holm: float, windows: int, violation_ws: float = 0.0) -> str:
    """One word on a policy in a family.

    Args:
        goodput: Of the relative difference.
        attainment: Of the difference in shares.
        p_holm: Of superiority in goodput, adjusted over families.
        windows: How many were compared.
        violation_ws: Worst watt-seconds above a limit in force; above 0 nothing else counts.

    Returns:
        "superior": more goodput, and no attainment given up. "non-inferior": neither bound is below its margin.
        "inferior": less goodput, or attainment lower by more than its margin, or a limit exceeded.
        "no clear difference": too few windows to say.
    """
    if violation_ws > 0:
        return INFERIOR
    if windows < MIN_WINDOWS:
        return UNCLEAR
    keeps_attainment = attainment.lower >= -ATTAINMENT_MARGIN_FRAC
    if p_holm < LEVEL and goodput.mean > 0 and keeps_attainment:
        return SUPERIOR
    if goodput.lower >= -GOODPUT_MARGIN_FRAC and keeps_attainment:
        return NON_INFERIOR
    if goodput.upper < 0 or attainment.upper < -ATTAINMENT_MARGIN_FRAC:
        return INFERIOR
    return UNCLEAR
