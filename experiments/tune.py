"""`flyball tune`: search a baseline's constants with a stated CPU budget.

The search starts from the defaults and from what is known of other families, draws constants at random for half the
budget and perturbs the best so far for the other half. Every candidate is scored on the same training windows; the
best few and the starting points are judged again on validation windows, which alone decide. Every baseline is
tuned by this search with the same budget and windows (RL.md lesson 1).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .. import registry
from ..envs.episodes import run_episodes
from ..envs.scenario import Scenario, load_scenario
from ..fleet.errors import BadInput

SPACES: dict[str, dict[str, tuple[float, float]]] = {
    "uniform": {},
    "proportional": {},
    "static": {"prefill_watts": (0.6, 2.0), "prefill_nodes": (0.45, 0.85)},
    "greedy": {
        "sharpness": (0.8, 8.0),
        "horizon_s": (0.1, 3.0),
        "decode_value": (0.4, 2.5),
        "prefill_margin": (0.6, 1.5),
        "fast_s": (3.0, 40.0),
        "slow_s": (30.0, 300.0),
        "role_gain": (0.0, 1.0),
        "role_deadband_nodes": (0.6, 3.0),
    },
    "pi": {
        "ttft_setpoint": (0.1, 1.0),
        "itl_setpoint": (0.6, 1.0),
        "gain": (0.02, 0.6),
        "integral_s": (10.0, 600.0),
        "tracking_s": (5.0, 100.0),
        "reject_weight": (0.3, 10.0),
        "prefill_bias": (-0.4, 0.6),
        "prefill_nodes": (0.45, 0.85),
    },
    "three-band": {
        "cap_above": (0.8, 1.0),
        "cap_to": (0.7, 0.98),
        "release_below": (0.5, 0.95),
        "floor_frac": (0.4, 0.9),
        "decode_first": (0.0, 1.0),
        "prefill_nodes": (0.45, 0.85),
    },
    "reactive": {
        "high": (0.4, 1.2),
        "low": (0.2, 1.2),
        "step": (0.02, 0.4),
        "largest_shift": (0.1, 1.2),
        "patience_s": (5.0, 90.0),
        "move_s": (10.0, 120.0),
        "prefill_bias": (-0.4, 0.8),
        "is_moving": (0.0, 1.0),
        "prefill_nodes": (0.45, 0.85),
    },
    "three-phase": {
        "request_frac": (0.5, 1.2),
        "decode_request": (0.5, 1.2),
        "active_above": (0.01, 0.5),
        "prefill_nodes": (0.45, 0.85),
    },
    "rollout": {
        "horizon_s": (30.0, 120.0),
        "watts_step": (0.05, 0.5),
        "nodes_step": (0.0, 0.8),
        "noise": (0.0, 1.0),
        "terminal": (0.5, 1.1),
        "margin": (0.0003, 0.02),
    },
    "clairvoyant": {
        "horizon_s": (30.0, 180.0),
        "watts_step": (0.05, 0.5),
        "nodes_step": (0.0, 0.8),
        "terminal": (0.5, 1.1),
    },
}
"""Constants searched per baseline: (low, high), log-uniform where low > 0."""

REFERENCE = "uniform"
"""Nothing to tune: what a mixture's goodputs are relative to, so that no scenario outweighs another."""

GOODPUT = "goodput_tok_s_per_mw"
TUNE_SEED = 1_000
VALIDATION_SEED = 500_000
WINDOWS = 16
FINALISTS = 4


@dataclass(frozen=True)
class Tuned:
    """Result of a search; scores are goodput in tokens/s per MW, for a mixture its mean ratio to `REFERENCE`'s."""

    baseline: str
    family: str
    scenario: str
    params: dict[str, float]
    score: float
    default_score: float
    candidates: int
    cpu_s: float


def tune(
    baseline: str,
    scenario: str | Scenario | Sequence[str],
    cpu_seconds: float = 60.0,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Tuned:
    """Search one baseline's constants on one scenario, or for several at once.

    Args:
        baseline: A name in `SPACES`.
        scenario: A scenario or its name; several names are a mixture in equal parts.
        cpu_seconds: Budget of the search on training windows.
        seed: Of the search.
        progress: Called with the share of the budget spent.

    Raises:
        BadInput: if the baseline has nothing to tune or the budget is not positive.
    """
    if baseline not in SPACES:
        raise BadInput(f"no baseline {baseline!r} to tune; use {', '.join(SPACES)}")
    if not cpu_seconds > 0:
        raise BadInput(f"--cpu-seconds {cpu_seconds:g}: use a number above 0")
    names = [scenario] if isinstance(scenario, str | Scenario) else list(dict.fromkeys(scenario))
    loaded = [load_scenario(name) if isinstance(name, str) else name for name in names]
    rng = np.random.default_rng(seed)
    space = SPACES[baseline]

    def play(name: str, params: dict[str, float] | None, one: Scenario, block: str, first: int) -> float:
        policy = registry.baseline(name, one, params)
        return float(run_episodes(one, policy, range(first, first + WINDOWS), None, block).values(GOODPUT).mean())

    @cache
    def unit(one: int, block: str, first: int) -> float:
        return play(REFERENCE, None, loaded[one], block, first) if len(loaded) > 1 else 1.0

    def score(params: dict[str, float], block: str, first: int) -> float:
        scores = [play(baseline, params, one, block, first) / unit(i, block, first) for i, one in enumerate(loaded)]
        return float(np.mean(scores))

    score({}, "train", TUNE_SEED)  # compile before the clock runs
    started = time.process_time()
    default = score({}, "train", TUNE_SEED)
    # what was found for other families is known too: a search that ignored it could lose to it
    known = [row["params"] for row in registry.tuned()["baselines"].get(baseline, {}).values() if row["params"]]
    seen: list[tuple[float, dict[str, float]]] = [(default, {})]
    seen += [(score(params, "train", TUNE_SEED), params) for params in known]
    while space and (spent := time.process_time() - started) < cpu_seconds:
        best = max(seen, key=lambda row: row[0])[1]
        params = _perturb(rng, space, best) if best and spent > cpu_seconds / 2 else _draw(rng, space)
        seen.append((score(params, "train", TUNE_SEED), params))
        if progress:
            progress(min(spent / cpu_seconds, 1.0))
    cpu_s = time.process_time() - started
    finalists = sorted(seen, key=lambda row: -row[0])[:FINALISTS]
    finalists += [row for row in seen[: len(known) + 1] if row not in finalists]
    judged = [(score(p, "validation", VALIDATION_SEED), p) for _, p in finalists]
    top, params = max(judged, key=lambda row: row[0])
    default_score = next(s for s, p in judged if not p)
    family = loaded[0].family if len(loaded) == 1 else registry.MIXTURE
    return Tuned(baseline, family, ", ".join(s.name for s in loaded), params, top, default_score, len(seen), cpu_s)


def record(result: Tuned, table: dict[str, Any]) -> None:
    """Enter a result into the table of `registry.TUNED`, and choose the family's best baseline anew.

    Only `registry.CANDIDATES` compete: a clairvoyant is no baseline, and a rollout cannot run live.
    """
    table.setdefault("baselines", {}).setdefault(result.baseline, {})[result.family] = {
        "params": result.params,
        "score": result.score,
        "default_score": result.default_score,
        "scenario": result.scenario,
        "candidates": result.candidates,
        "cpu_s": round(result.cpu_s, 1),
    }
    entries = {
        name: rows[result.family]["score"]
        for name, rows in table["baselines"].items()
        if result.family in rows and name in registry.CANDIDATES
    }
    if entries:
        table.setdefault("best", {})[result.family] = max(entries, key=lambda name: entries[name])


def _draw(rng: np.random.Generator, space: dict[str, tuple[float, float]]) -> dict[str, float]:
    return {
        k: _round(np.exp(rng.uniform(np.log(lo), np.log(hi))) if lo > 0 else rng.uniform(lo, hi))
        for k, (lo, hi) in space.items()
    }


def _perturb(
    rng: np.random.Generator, space: dict[str, tuple[float, float]], best: dict[str, float]
) -> dict[str, float]:
    out = dict(best)
    for k, (lo, hi) in space.items():
        if rng.random() < 0.5:
            step = rng.normal() * 0.15
            value = best[k] * np.exp(step * np.log(hi / lo)) if lo > 0 else best[k] + step * (hi - lo)
            out[k] = _round(float(np.clip(value, lo, hi)))
    return out


def _round(value: float) -> float:
    """Four significant digits: constants that a person can read."""
    return float(f"{value:.4g}")
