"""Ranking: submissions on the public validation windows, scored between the static stage table and the bound."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import registry
from ...envs.scenario import Scenario, load_scenario
from ...fleet.errors import BadInput
from ..contenders import CLAIRVOYANT, is_entry
from ..evaluate import STANDARD, SUITES
from ..windows import Task, Windows, code_hash, run
from . import PROTOCOL
from . import score as scoring
from .card import Card, read_card

BLOCK = "validation"

FIRST_SEED = 900_000
"""Of the public windows: neither tuning nor the gate of training uses these."""

ANCHOR = "static"

Progress = Callable[[str, float], None]


def rank(
    paths: Sequence[Path],
    seeds: int = 40,
    scenarios: Sequence[str] = SUITES[STANDARD],
    out: Path | None = None,
    jobs: int = 1,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score submissions.

    The bound is the best that the clairvoyant, the static table or the family's best baseline reached in each window:
    the clairvoyant searches few plans, and can be beaten. Submissions are no part of it, so that a score does not
    depend on who else takes part; it may exceed 100.

    Args:
        paths: Cards.
        seeds: Windows per family.
        scenarios: One per family.
        out: Folder that keeps windows.
        jobs: Processes. Submitted code runs in processes of its own in any case.
        overrides: `--set` of every scenario.
        progress: Called with a label and the share done.

    Returns:
        {"protocol", "block", "seeds", "first_seed", "code", "reference", "rows", "overall"}; a row is one submission in
        one family: {"name", "track", "scenario", "family", "score", "ci95", "reason", "is_counted", "goodput",
        "static", "bound"}.

    Raises:
        BadInput: a card or policy that cannot be used, two cards of one name, fewer than one seed or job.
    """
    for option, value in (("--seeds", seeds), ("--jobs", jobs)):
        if value < 1:
            raise BadInput(f"{option} {value}: use at least 1")
    cards = [(read_card(path), path.parent) for path in paths]
    names = [card.name for card, _ in cards]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"two cards are named {name!r}; give each its own name")
    loaded = [load_scenario(s, overrides) for s in scenarios]
    windows = range(FIRST_SEED, FIRST_SEED + seeds)
    part = _parts(progress, 1 + len(cards))
    anchors = [_task(s, name) for s in loaded for name in _anchors(s)]
    known = run(list(dict.fromkeys(anchors)), windows, out, jobs, part(0))
    rows = []
    for i, (card, folder) in enumerate(cards):
        tasks = {s.name: [_task(s, p, folder) for p in card.policies] for s in loaded}
        flat = [t for ts in tasks.values() for t in ts]
        # a pool per card: two submissions may each have a module of the same name
        mine = run(flat, windows, out, jobs, part(1 + i), is_apart=any(map(is_entry, card.policies)))
        rows += [_row(card, s, [mine[t] for t in tasks[s.name]], known, windows) for s in loaded]
    return {
        "protocol": PROTOCOL,
        "block": BLOCK,
        "seeds": seeds,
        "first_seed": FIRST_SEED,
        "code": code_hash(),
        "reference": f"best of {CLAIRVOYANT}, {ANCHOR} and the family's best baseline in each window",
        "rows": rows,
        "overall": _overall(cards, rows),
    }


def _anchors(scenario: Scenario) -> tuple[str, ...]:
    return tuple(dict.fromkeys((ANCHOR, registry.best_baseline_name(scenario), CLAIRVOYANT)))


def _task(scenario: Scenario, policy: str, folder: Path | None = None) -> Task:
    if folder is None:
        return Task(scenario, policy, block=BLOCK)
    if is_entry(policy):
        return Task(scenario, policy, folder=os.fspath(folder), block=BLOCK)
    return Task(scenario, os.fspath(folder / policy), block=BLOCK)


def _row(card: Card, scenario: Scenario, mine: list[Windows], known: dict[Task, Windows], windows: range):
    anchors = {name: _table([known[_task(scenario, name)]], windows) for name in _anchors(scenario)}
    static, own = anchors[ANCHOR], _table(mine, windows)
    best = np.concatenate([a.goodput for a in anchors.values()]).max(0, keepdims=True)
    bound = scoring.Windows(best, anchors[CLAIRVOYANT].attainment, anchors[CLAIRVOYANT].violation_ws)
    found = scoring.score(own, static, bound)
    return {
        "name": card.name,
        "track": card.track,
        "scenario": scenario.name,
        "family": scenario.family,
        "is_trained_on": scenario.family in card.trained_on,
        "score": found.score,
        "ci95": None if found.ci95 is None else list(found.ci95),
        "reason": found.reason,
        "is_counted": float(best.mean() - static.goodput.mean()) >= scoring.MIN_GAP_FRAC * float(static.goodput.mean()),
        "goodput": float(own.goodput.mean()),
        "static": float(static.goodput.mean()),
        "bound": float(best.mean()),
    }


def _table(members: Sequence[Windows], windows: range) -> scoring.Windows:
    def of(kpi: str) -> np.ndarray:
        return np.array([[m.kpis[s][kpi] for s in windows] for m in members], float)

    return scoring.Windows(of("goodput_tok_s_per_mw"), of("slo_attainment_frac"), of("budget_violation_ws"))


def _overall(cards: Sequence[tuple[Card, Path]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean score over families whose bound is far enough away; a family that was lost counts 0, as the static table."""
    out: list[dict[str, Any]] = []
    for card, _ in cards:
        counted = [r for r in rows if r["name"] == card.name and r["is_counted"]]
        scores = [r["score"] if r["score"] is not None else 0.0 for r in counted]
        mean = float(np.mean(scores)) if scores else None
        out.append({"name": card.name, "track": card.track, "score": mean, "families": len(counted)})
    out.sort(key=lambda row: (row["score"] is None, -(row["score"] or 0.0)))
    return [{"rank": i + 1, **row} for i, row in enumerate(out)]


def _parts(progress: Progress | None, count: int) -> Callable[[int], Progress | None]:
    """Progress of one stage of several."""

    def part(i: int) -> Progress | None:
        if progress is None:
            return None
        return lambda label, share: progress(label, (i + share) / count)

    return part
