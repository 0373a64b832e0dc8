"""CPU seconds of training until a policy passes the best baseline.

A policy is trained from nothing on one scenario. On the way, at times that grow by a constant factor, the policy so
far plays windows that no training sees, against the best tuned baseline on the same windows. It has passed once a
one-sided bound of the mean paired difference is above 0. Looks share the error of 5 % (Bonferroni), so that looking
often does not make passing easier. Judging and compiling are not in the CPU seconds of training.
"""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from ... import registry
from ...envs.episodes import run_episodes
from ...envs.scenario import Scenario, load_scenario
from ...fleet.errors import BadInput

SCENARIOS = ("bursty", "curtailment")
WINDOWS = 64
"""Judged windows; the bound takes their mean as normal."""

FIRST_SEED = 900_000
"""Of the judged windows, in the validation stream of the generator; training has a stream of its own."""

ERROR = 0.05
"""Chance, over all looks of a family, of a pass by a policy that is no better."""

FIRST_LOOK_S = 7.5
HEADLINE = "goodput_tok_s_per_mw"


@dataclass(frozen=True)
class Reference:
    """The best baseline of a scenario.

    Attributes:
        name: Its name.
        goodput: On every judged window, tokens/s per MW, shape (windows,).
        tuning_cpu_s: CPU seconds that searched its constants; None if they are its defaults.
    """

    name: str
    goodput: np.ndarray
    tuning_cpu_s: float | None


def figures(
    progress: Callable[[str, float], None],
    scenarios: Sequence[str] = SCENARIOS,
    algo: str = "es",
    cpu_seconds: float = 120.0,
    seed: int = 0,
    windows: int = WINDOWS,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure.

    Args:
        progress: Called with a label and the share done.
        scenarios: One training each.
        algo: "es" or "distill".
        cpu_seconds: Most CPU time of each training.
        seed: Of the training.
        windows: Judged windows.
        settings: Other fields of `training.config.TrainConfig`.

    Returns:
        By family: `cpu_s_to_pass_best_baseline` (None: not within the budget), `best_baseline`, `tuning_cpu_s` and
        `training_cpu_s` (both budgets, the latter as spent), `judging_cpu_s`, and `curve`, rows of {"cpu_s", "diff",
        "low"}: relative difference to the baseline and its one-sided bound. And the settings.

    Raises:
        BadInput: an unknown scenario, a budget that is not positive, fewer than two windows, or no [train] extra.
    """
    if not 0 < cpu_seconds < math.inf:
        raise BadInput(f"--cpu-seconds {cpu_seconds:g}: use a number above 0")
    if windows < 2:
        raise BadInput(f"windows {windows}: use at least 2")
    loaded = [load_scenario(name) for name in scenarios]
    rows = {}
    for i, scenario in enumerate(loaded):

        def part(label: str, share: float, i: int = i, name: str = scenario.name) -> None:
            progress(f"{name}: {label}" if label else "", (i + share) / len(loaded))

        row = _family(scenarios[i], scenario, part, algo, cpu_seconds, seed, windows, settings or {})
        rows[scenario.family if scenario.family not in rows else scenario.name] = row
    progress("done", 1.0)
    names = next(iter(rows.values()))
    return {
        **{name: {family: row[name] for family, row in rows.items()} for name in names},
        "algo": algo,
        "cpu_seconds": cpu_seconds,
        "seed": seed,
        "windows": windows,
        "looks": len(look_times(cpu_seconds)),
        "error": ERROR,
    }


def look_times(cpu_seconds: float) -> list[float]:
    """CPU seconds of training at which the policy is judged: each 1.5 times the one before, the last at the end."""
    times, at = [], min(FIRST_LOOK_S, cpu_seconds)
    while at < cpu_seconds / 1.2:
        times.append(at)
        at *= 1.5
    return [*times, cpu_seconds]


def lower_bound(difference: np.ndarray, looks: int) -> float:
    """One-sided lower bound of a mean of paired differences, where as many looks share the error."""
    z = NormalDist().inv_cdf(1.0 - ERROR / looks)
    return float(difference.mean() - z * difference.std(ddof=1) / math.sqrt(len(difference)))


def _family(
    name: str,
    scenario: Scenario,
    progress,
    algo: str,
    cpu_seconds: float,
    seed: int,
    windows: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """One training and its looks."""
    try:
        import torch

        from ...training.config import TrainConfig
        from ...training.watched import run_watched
    except ImportError as e:
        raise BadInput(
            f"bench train needs the [train] extra ({e.name} is missing); pip install 'flyball[train]'"
        ) from None

    torch.set_num_threads(1)
    seeds = range(FIRST_SEED, FIRST_SEED + windows)
    progress("the best baseline", 0.0)
    reference = _reference(scenario, seeds)
    looks = look_times(cpu_seconds)
    curve: list[dict[str, float]] = []
    judging_cpu_s = [0.0]

    def judge(policy, cpu_s: float) -> bool:
        started = time.process_time()
        goodput = run_episodes(scenario, policy, seeds, None, "validation").values(HEADLINE)
        difference = (goodput - reference.goodput) / reference.goodput.mean()
        low = lower_bound(difference, len(looks))
        curve.append({"cpu_s": cpu_s, "diff": float(difference.mean()), "low": low})
        judging_cpu_s[0] += time.process_time() - started
        return low > 0

    with tempfile.TemporaryDirectory(prefix="flyball-bench-") as folder:
        config = TrainConfig(
            (name,),
            Path(folder),
            minutes=None,
            cpu_seconds=cpu_seconds,
            seed=seed,
            algo=algo,
            **settings,
        )
        trained_cpu_s = run_watched(config, looks, judge, progress)
    passed = [row["cpu_s"] for row in curve if row["low"] > 0 and row["cpu_s"] <= cpu_seconds]
    return {
        "cpu_s_to_pass_best_baseline": passed[0] if passed else None,
        "best_baseline": reference.name,
        "tuning_cpu_s": reference.tuning_cpu_s,
        "training_cpu_s": trained_cpu_s,
        "judging_cpu_s": judging_cpu_s[0],
        "curve": curve,
    }


def _reference(scenario: Scenario, seeds: range) -> Reference:
    name = registry.best_baseline_name(scenario)
    found = registry.tuned()["baselines"].get(name, {}).get(scenario.family, {})
    goodput = run_episodes(scenario, registry.baseline(name, scenario), seeds, None, "validation").values(HEADLINE)
    return Reference(name, goodput, found.get("cpu_s"))
