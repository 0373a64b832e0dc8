"""Headroom and verdicts follow from windows made by hand."""

import math

import numpy as np
import pytest

from flyball.envs.scenario import load_scenario
from flyball.experiments.contenders import Contender
from flyball.experiments.rows import Case, judge, rows_of, verdict
from flyball.experiments.statistics import Bounds
from flyball.experiments.windows import Windows

SEEDS = range(40)


def windows_of(goodput, attainment=0.95, violation_ws=0.0) -> Windows:
    """Windows with KPIs made by hand."""
    return Windows(
        "generated",
        1.0,
        {
            seed: {
                "goodput_tok_s_per_mw": float(g),
                "slo_attainment_frac": float(a),
                "ttft_p99_s": 0.5,
                "itl_p99_s": 0.05,
                "budget_violation_ws": violation_ws,
            }
            for seed, g, a in zip(SEEDS, goodput, np.broadcast_to(attainment, len(SEEDS)), strict=True)
        },
    )


def case_of(scenario="bursty", **windows) -> Case:
    """A case whose best baseline is `greedy`; a list of windows is a policy of several training seeds."""
    tables = {name: w if isinstance(w, list) else [w] for name, w in windows.items()}
    contenders = tuple(Contender(name, tuple(f"{name}-{i}" for i in range(len(t)))) for name, t in tables.items())
    origin = dict.fromkeys(tables)
    return Case(load_scenario(scenario), contenders, tables, "greedy", SEEDS, origin)


def row_of(rows, policy):
    return next(r for r in rows if r["policy"] == policy)


BASE = 1000.0 + np.random.default_rng(0).normal(0, 50, 40)


def test_headroom_is_the_share_of_the_way_to_the_reference():
    """(policy - best baseline) / (reference - best baseline), and the JSON says what the reference is."""
    case = case_of(greedy=windows_of(BASE), mine=windows_of(BASE + 30), clairvoyant=windows_of(BASE + 100))
    rows = rows_of(case, "clairvoyant")
    mine = row_of(rows, "mine")
    assert mine["recovered_headroom"] == pytest.approx(0.3)
    assert mine["headroom"]["ci95"] == [pytest.approx(0.3)] * 2
    assert mine["headroom"]["gap_frac"] == pytest.approx(100 / BASE.mean())
    assert mine["headroom"]["reference"] == "best of clairvoyant, greedy, mine in each window"
    assert row_of(rows, "greedy")["recovered_headroom"] == 0


def test_reference_is_the_best_of_each_window():
    """Where the clairvoyant is beaten in half of the windows, the reference lies above it."""
    half = np.where(np.arange(40) % 2 == 0, 100.0, 0.0)
    case = case_of(greedy=windows_of(BASE), mine=windows_of(BASE + half), clairvoyant=windows_of(BASE + 100 - half))
    mine = row_of(rows_of(case, "clairvoyant"), "mine")
    assert mine["headroom"]["gap_frac"] == pytest.approx(100 / BASE.mean())
    assert mine["recovered_headroom"] == pytest.approx(0.5)


def test_no_headroom_is_stated_of_a_small_gap_or_without_a_clairvoyant():
    """Below 2 % noise would decide: null, with the gap; without a clairvoyant nothing is said at all."""
    case = case_of(greedy=windows_of(BASE), mine=windows_of(BASE + 5), clairvoyant=windows_of(BASE + 15))
    mine = row_of(rows_of(case, "clairvoyant"), "mine")
    assert mine["recovered_headroom"] is None and 0 < mine["headroom"]["gap_frac"] < 0.02
    assert row_of(rows_of(case), "mine")["headroom"] is None


def test_verdicts_of_clear_cases():
    """A steady gain is superior, a loss inferior, the same non-inferior, noise unclear, and the baseline has none."""
    rng = np.random.default_rng(1)
    case = case_of(
        greedy=windows_of(BASE),
        better=windows_of(BASE + 20 + rng.normal(0, 10, 40)),
        worse=windows_of(BASE - 20 + rng.normal(0, 10, 40)),
        same=windows_of(BASE + rng.normal(0, 0.5, 40)),
        noisy=windows_of(BASE + rng.normal(0, 100, 40)),
        spoilt=windows_of(BASE + 20, attainment=0.93),
        broken=windows_of(BASE + 20, violation_ws=5.0),
    )
    rows = rows_of(case)
    judge([case], rows)
    assert {r["policy"]: r["verdict"] for r in rows} == {
        "greedy": None,
        "better": "superior",
        "worse": "inferior",
        "same": "non-inferior",
        "noisy": "no clear difference",
        "spoilt": "inferior",
        "broken": "inferior",
    }
    assert row_of(rows, "better")["tests"]["goodput"]["p_holm"] < 0.05
    assert "bootstrap" in row_of(rows, "better")["tests"]["method"]


def test_superiority_is_corrected_over_a_policys_rows():
    """A gain that one family alone would call superior is not, among families in which nothing was gained."""
    rng = np.random.default_rng(2)
    gain = rng.normal(0, 40, 40)
    weak = BASE + gain - gain.mean() + 14
    families = ("steady", "bursty", "mix-shift", "curtailment", "faults", "multi-service")
    first = case_of(families[0], greedy=windows_of(BASE), mine=windows_of(weak))
    flat = [case_of(f, greedy=windows_of(BASE), mine=windows_of(BASE)) for f in families[1:]]
    alone = rows_of(first)
    judge([first], alone)
    cases = [first, *flat]
    rows = [r for c in cases for r in rows_of(c)]
    judge(cases, rows)
    p = rows[1]["tests"]["goodput"]
    assert alone[1]["verdict"] == "superior"
    assert rows[1]["verdict"] != "superior" and p["p_holm"] == pytest.approx(min(6 * p["p"], 1.0)) and p["p"] < 0.05


def test_a_few_windows_have_no_verdict():
    """Below eight windows nothing is called superior or inferior, unless a limit was exceeded."""
    clear = Bounds(0.1, 0.09, 0.11, 0.0005), Bounds(0.0, 0.0, 0.0, 1.0)
    assert verdict(*clear, 0.001, windows=7) == "no clear difference"
    assert verdict(*clear, 0.001, windows=8) == "superior"
    assert verdict(*clear, 0.001, windows=7, violation_ws=1.0) == "inferior"


def test_training_seeds_are_pooled():
    """A policy of several files has their mean, and an interval that knows how they differ."""
    apart = [windows_of(BASE + shift) for shift in (-40.0, 0.0, 40.0)]
    rows = rows_of(case_of(greedy=windows_of(BASE), mine=apart))
    mine = row_of(rows, "mine")
    low, high = mine["vs_best_baseline"]["ci95"]
    assert mine["vs_best_baseline"]["diff"] == pytest.approx(0.0, abs=1e-12) and low < -0.02 < 0.02 < high
    assert mine["members"] == ["mine-0", "mine-1", "mine-2"]


def test_tails_are_named():
    """The worst tenth is the mean of the four worst of 40, and the worst window is the one that lost most."""
    goodput = BASE.copy()
    goodput[7] *= 0.5
    mine = row_of(rows_of(case_of(greedy=windows_of(BASE), mine=windows_of(goodput))), "mine")
    assert mine["worst_window"] == {"seed": 7, "diff": pytest.approx(-0.5)}
    assert mine["tail"]["goodput_tok_s_per_mw"] == pytest.approx(np.sort(goodput)[:4].mean())
    assert math.isclose(mine["tail"]["ttft_p99_s"], 0.5)
