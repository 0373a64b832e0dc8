"""Comparisons are paired, cached by what they depend on, and refuse bad names before any work."""

import json
import math

import numpy as np
import pytest

from flyball.experiments import evaluate as module
from flyball.experiments.evaluate import TEST_SEED, EvaluateConfig, evaluate
from flyball.experiments.statistics import interval, paired
from flyball.experiments.tune import TUNE_SEED, VALIDATION_SEED, WINDOWS
from flyball.fleet.errors import BadInput

SHORT = ("seconds=90", "warmup_s=30")


def config(**changes) -> EvaluateConfig:
    settings = {"scenarios": ("bursty",), "policies": ("uniform", "static"), "seeds": 3, "overrides": SHORT}
    return EvaluateConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def result():
    return evaluate(config())


def test_rows_have_what_the_contract_says(result):
    """Scenario, policy, load, seeds, KPIs with mean, interval and worst, and the paired difference."""
    for row in result["rows"]:
        assert {"scenario", "policy", "load", "seeds", "kpis", "vs_best_baseline", "recovered_headroom"} <= set(row)
        assert set(row["vs_best_baseline"]) == {"baseline", "diff", "ci95"}
        for kpi in ("goodput_tok_s_per_mw", "slo_attainment_frac", "budget_violation_ws", "overshoot_ws"):
            assert set(row["kpis"][kpi]) == {"mean", "ci95", "worst"}


def test_best_baseline_is_always_compared_and_equals_itself(result):
    """Every difference is against a policy that ran the same windows, and its own difference is nothing."""
    best = {r["vs_best_baseline"]["baseline"] for r in result["rows"]}
    assert len(best) == 1
    own = next(r for r in result["rows"] if r["policy"] in best)
    assert own["vs_best_baseline"]["diff"] == 0 and own["vs_best_baseline"]["ci95"] == [0, 0]


def test_worst_window_is_worse_than_the_mean(result):
    """`worst` is the least of what should be large and the largest of what should be small."""
    for row in result["rows"]:
        goodput, ttft = row["kpis"]["goodput_tok_s_per_mw"], row["kpis"]["ttft_p99_s"]
        assert goodput["worst"] <= goodput["mean"] and ttft["worst"] >= ttft["mean"]


def test_no_window_violates_a_limit(result):
    """Baselines go through the arbiter: no watt-second above a limit in force."""
    assert all(r["kpis"]["budget_violation_ws"]["worst"] == 0 for r in result["rows"])


def test_windows_are_kept_and_reused(tmp_path, monkeypatch):
    """A run that was cut off goes on: windows in the folder are not computed again, and give the same rows."""
    first = evaluate(config(out=tmp_path))
    monkeypatch.setattr(module, "run_episodes", lambda *a, **k: pytest.fail("computed again"))
    assert json.dumps(evaluate(config(out=tmp_path))) == json.dumps(first)


def test_windows_of_other_seeds_are_not_reused(tmp_path, monkeypatch):
    """A cache answers only for exactly what it was computed from."""
    evaluate(config(out=tmp_path))
    calls = []
    run = module.run_episodes
    monkeypatch.setattr(module, "run_episodes", lambda *a, **k: calls.append(a) or run(*a, **k))
    evaluate(config(out=tmp_path, seeds=2))
    assert len(calls) >= 2


def test_unknown_policy_is_refused_before_any_episode(monkeypatch):
    """Bad names cost no minutes."""
    monkeypatch.setattr(module, "run_episodes", lambda *a, **k: pytest.fail("ran"))
    with pytest.raises(BadInput, match="no policy 'nobody'"):
        evaluate(config(policies=("uniform", "nobody")))
    with pytest.raises(BadInput, match="use at least 1"):
        evaluate(config(seeds=0))


def test_test_seeds_are_apart_from_tuning_and_validation():
    """What judges was never tuned or chosen on."""
    assert max(TUNE_SEED, VALIDATION_SEED) + WINDOWS < TEST_SEED


def test_interval_covers_the_mean_and_leaves_out_nan():
    """The bootstrap interval holds the mean, shrinks with windows, and NaN windows do not poison it."""
    values = np.random.default_rng(0).normal(10, 2, 64)
    mean, (low, high) = interval(values)
    assert low < mean < high and high - low < np.ptp(values)
    assert interval(np.append(values, np.nan)) == (mean, [low, high])
    assert all(math.isnan(v) for v in (interval([])[0], *interval([])[1]))
    assert interval([3.0]) == (3.0, [3.0, 3.0])


def test_paired_difference_ignores_what_windows_have_in_common():
    """A constant gain over very different windows has a narrow interval around it."""
    base = np.array([1.0, 100.0, 1000.0, 5000.0])
    diff, (low, high) = paired(base + 10, base)
    assert math.isclose(diff, 10 / base.mean()) and math.isclose(low, diff) and math.isclose(high, diff)
    assert math.isnan(paired([1.0], [0.0])[0])
