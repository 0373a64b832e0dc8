"""The training benchmark: when a policy counts as better, and what the figures hold."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("stable_baselines3")

from flyball.experiments.bench import run_bench
from flyball.experiments.bench import train as bench
from flyball.fleet.errors import BadInput


def quiet(label, share):
    """Progress that nobody reads."""


TINY = {"pairs": 2, "windows": 1}


def test_looks_grow_and_end_with_the_budget():
    """Times rise to the budget, a tiny budget has one look."""
    times = bench.look_times(120.0)
    assert times == sorted(set(times)) and times[0] == bench.FIRST_LOOK_S and times[-1] == 120.0
    assert bench.look_times(1.0) == [1.0]


def test_a_bound_is_one_sided_and_pays_for_looks():
    """Noise around zero does not pass, a clear gain does, and more looks ask for more."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(64)
    assert bench.lower_bound(noise - noise.mean(), 1) < 0 < bench.lower_bound(noise + 1.0, 8)
    assert bench.lower_bound(noise, 8) < bench.lower_bound(noise, 1)


def test_figures_have_a_curve_and_both_budgets(monkeypatch):
    """A policy that is no better gives null; training and judging are counted apart."""
    monkeypatch.setattr(bench, "lower_bound", lambda difference, looks: -1.0)
    out = run_bench("train", quiet, scenarios=("bursty",), cpu_seconds=0.5, windows=2, settings=TINY)["figures"]
    assert out["cpu_s_to_pass_best_baseline"] == {"bursty": None}
    assert len(out["curve"]["bursty"]) == out["looks"] == 1
    assert out["training_cpu_s"]["bursty"] > 0 and out["judging_cpu_s"]["bursty"] > 0
    assert out["tuning_cpu_s"]["bursty"] > 0


def test_a_policy_that_passes_ends_the_training(monkeypatch):
    """The first look above the bound is the figure, and no more is trained."""
    monkeypatch.setattr(bench, "lower_bound", lambda difference, looks: 1.0)
    monkeypatch.setattr(bench, "look_times", lambda cpu_seconds: [0.01, 0.02, cpu_seconds])
    out = run_bench("train", quiet, scenarios=("bursty",), cpu_seconds=500.0, windows=2, settings=TINY)["figures"]
    passed = out["cpu_s_to_pass_best_baseline"]["bursty"]
    assert passed == out["curve"]["bursty"][0]["cpu_s"] and out["training_cpu_s"]["bursty"] < 60
    assert len(out["curve"]["bursty"]) == 1


@pytest.mark.parametrize("change", [{"cpu_seconds": 0.0}, {"windows": 1}, {"scenarios": ("nope",)}])
def test_what_cannot_be_measured_is_refused(change):
    """Budgets, windows and scenarios are checked before any work."""
    with pytest.raises(BadInput):
        run_bench("train", quiet, **{"scenarios": ("bursty",), **change})
