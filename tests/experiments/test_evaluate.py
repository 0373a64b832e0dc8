"""Comparisons are paired, cached by what they depend on, and refuse bad names before any work."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from flyball import registry
from flyball.cli import main
from flyball.envs.scenario import load_scenario
from flyball.experiments import windows as module
from flyball.experiments.contenders import WithoutChannel, read_groups
from flyball.experiments.evaluate import DEFAULT_POLICIES, TEST_SEED, EvaluateConfig, default_seeds, evaluate
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


def test_more_windows_reuse_those_that_are_there(tmp_path, monkeypatch):
    """Windows are kept one by one: asking for five where three are kept runs two, and the rows are the same."""
    evaluate(config(out=tmp_path))
    ran = []
    run = module.run_episodes
    monkeypatch.setattr(
        module, "run_episodes", lambda sc, p, seeds, *a: ran.append(tuple(seeds)) or run(sc, p, seeds, *a)
    )
    longer = evaluate(config(out=tmp_path, seeds=5))
    assert set(ran) == {(TEST_SEED + 3, TEST_SEED + 4)}
    assert json.dumps(longer["rows"]) == json.dumps(evaluate(config(seeds=5))["rows"])


def test_windows_of_something_else_are_not_reused(tmp_path, monkeypatch):
    """A folder answers only for exactly what was computed: another scenario, block or damaged file is run anew."""
    evaluate(config(out=tmp_path, policies=("static",)))
    calls = []
    run = module.run_episodes
    monkeypatch.setattr(module, "run_episodes", lambda *a, **k: calls.append(a) or run(*a, **k))
    evaluate(config(out=tmp_path, policies=("static",), overrides=("seconds=95", "warmup_s=30")))
    assert len(calls) == 2
    evaluate(config(out=tmp_path, policies=("static",), block="validation"))
    assert len(calls) == 4
    for path in (tmp_path / "windows").glob("*.json"):
        path.write_text("{")
    evaluate(config(out=tmp_path, policies=("static",)))
    assert len(calls) == 6


def test_processes_change_nothing(result):
    """Two spawned processes give the rows of one, to the last digit."""
    assert json.dumps(evaluate(config(jobs=2))["rows"]) == json.dumps(result["rows"])


def test_pieces_of_work_change_nothing(result, monkeypatch):
    """A window's KPIs do not depend on what else is in its batch, of policy files either."""
    whole = evaluate(config(policies=("champion",)))
    monkeypatch.setattr(module, "PIECE", 2)
    assert json.dumps(evaluate(config(policies=("champion",)))["rows"]) == json.dumps(whole["rows"])


def test_unknown_policy_is_refused_before_any_episode(monkeypatch):
    """Bad names cost no minutes."""
    monkeypatch.setattr(module, "run_episodes", lambda *a, **k: pytest.fail("ran"))
    with pytest.raises(BadInput, match="no policy 'nobody'"):
        evaluate(config(policies=("uniform", "nobody")))
    for changes in ({"seeds": 0}, {"jobs": 0}):
        with pytest.raises(BadInput, match="use at least 1"):
            evaluate(config(**changes))


def test_test_seeds_are_apart_from_tuning_and_validation():
    """What judges was never tuned or chosen on."""
    assert max(TUNE_SEED, VALIDATION_SEED) + WINDOWS < TEST_SEED


def test_standard_suite_has_forty_windows():
    """A results page rests on 40 windows unless told otherwise; a look at a scenario on 8."""
    assert default_seeds("standard") >= 40 and default_seeds(None) == default_seeds("smoke") == 8


def test_headroom_runs_the_clairvoyant_on_the_same_windows():
    """`has_headroom` adds its row, and every row then says how far the reference is away."""
    rows = evaluate(config(policies=("static",), seeds=2, has_headroom=True))["rows"]
    assert [r["policy"] for r in rows][-1] == "clairvoyant"
    assert all(r["headroom"]["gap_frac"] >= 0 and "clairvoyant" in r["headroom"]["reference"] for r in rows)


def test_standard_suite_takes_a_clairvoyant_that_is_kept(tmp_path):
    """Without being asked it costs nothing: the clairvoyant joins only where the folder has all its windows."""
    small = {"policies": ("static",), "seeds": 1, "suite": "standard", "out": tmp_path}
    assert all(r["headroom"] is None for r in evaluate(config(**small))["rows"])
    evaluate(config(**small, has_headroom=True))
    assert all(r["headroom"] for r in evaluate(config(**small))["rows"])
    assert all(r["headroom"] is None for r in evaluate(config(**{**small, "seeds": 2}))["rows"])


def test_baselines_are_all_that_can_run_live():
    """The default compares every baseline that could be deployed, on one set of windows."""
    rows = evaluate(config(policies=DEFAULT_POLICIES, seeds=1))["rows"]
    assert [r["policy"] for r in rows] == list(registry.CANDIDATES)


def test_a_group_is_one_policy_of_several_files(tmp_path):
    """Files that match are members in order; the row is the mean of theirs."""
    for i in range(2):
        shutil.copy(registry.champion_path(), tmp_path / f"seed{i}.onnx")
    groups = read_groups([f"mine={tmp_path}/seed*.onnx"])
    assert [m[-10:] for m in groups[0].members] == ["seed0.onnx", "seed1.onnx"]
    rows = evaluate(config(policies=("champion",), groups=groups))["rows"]
    mine, single = (next(r for r in rows if r["policy"] == name) for name in ("mine", "champion"))
    assert mine["is_learned"] and len(mine["members"]) == 2 and mine["trained_on"] == single["trained_on"]
    assert mine["vs_best_baseline"]["diff"] == pytest.approx(single["vs_best_baseline"]["diff"])
    for bad, says in ((["mine"], "NAME=GLOB"), ([f"mine={tmp_path}/none*.onnx"], "no file matches")):
        with pytest.raises(BadInput, match=says):
            read_groups(bad)


def test_an_ablated_policy_bids_as_its_base_on_one_channel():
    """The channel taken away is the base's, every other one the policy's own."""
    scenario = load_scenario("curtailment")
    whole = registry.policy("champion", scenario)
    core = registry.make_core(scenario, channels=_no_channels())
    core.reset(np.array([1]))
    for _ in range(3):
        core.step(core.base)
    seen = core.plant.snapshot, core.observation, whole.start(1)
    mine, _ = whole.bid(*seen)
    base, _ = whole.baseline.bid(*seen)
    watts, _ = WithoutChannel(whole, "watts").bid(*seen)
    assert not np.array_equal(mine.pool[..., 0], base.pool[..., 0])
    assert np.array_equal(watts.pool[..., 0], base.pool[..., 0])
    assert np.array_equal(watts.pool[..., 1:], mine.pool[..., 1:]) and np.array_equal(watts.fleet, mine.fleet)
    with pytest.raises(BadInput, match="only a policy file"):
        WithoutChannel(registry.policy("greedy", scenario), "watts")


def _no_channels():
    from flyball.envs.core import Channels

    return Channels()


def test_ablations_are_rows_of_their_own():
    """Every bid channel of a policy file is taken away once; without a file there is nothing to take from."""
    rows = evaluate(config(policies=("champion",), seeds=1, is_ablated=True))["rows"]
    assert [r["ablation"] for r in rows if r["ablation"]] == ["watts", "nodes", "clock", "spend"]
    with pytest.raises(BadInput, match="no policy file"):
        evaluate(config(is_ablated=True))


def test_sizes_replace_the_site():
    """A policy is judged on generated sites it never saw, against the same baselines there."""
    rows = evaluate(config(policies=("champion",), seeds=1, sizes=(16, 24)))["rows"]
    assert [r["nodes"] for r in rows] == [16, 16, 24, 24]
    with pytest.raises(BadInput, match="multiples of 8"):
        evaluate(config(sizes=(20,)))
    with pytest.raises(BadInput, match="does not fit"):
        evaluate(config(scenarios=("multi-service",), sizes=(16,)))


def test_the_printed_command_makes_the_same_rows():
    """What stands above a table is a command that makes it."""
    mine = config(policies=("champion",), seeds=1, sizes=(16,), is_ablated=True)
    result = evaluate(mine)
    words = result["command"].split()[1:]
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == 0, done.output
    assert [r["kpis"]["energy_j"] for r in json.loads(done.stdout)["rows"]] == [
        r["kpis"]["energy_j"] for r in result["rows"]
    ]
