"""The demo: one command, one report, resumable, honest about what it shows; here with tiny settings."""

import json
from dataclasses import replace

import numpy as np
import pytest

from flyball import registry
from flyball.envs.core import Core
from flyball.envs.scenario import load_scenario
from flyball.experiments import demo
from flyball.experiments.demo import QUICK, cuts, tell
from flyball.experiments.evaluate import SUITES, TEST_SEED
from flyball.fleet.errors import BadInput

TINY = replace(
    QUICK,
    scenarios=("demo", "curtailment-sudden"),
    policies=("static", "greedy"),
    seeds=2,
    overrides=("seconds=360", "warmup_s=30"),
)


def quiet(label, share):
    """Progress that nobody reads."""


def no_champion():
    raise BadInput("this build ships no champion policy")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    seen = []
    result = tell(TINY, out, None, lambda label, share: seen.append(share), "flyball demo")
    return out, result, seen


def test_result_is_what_the_contract_says(told):
    """`simulate`'s keys, the report, the evaluation, and strict JSON throughout."""
    out, result, _ = told
    assert {"scenario", "policy", "load", "load_scale", "seed", "kpis", "report", "evaluation", "training"} <= set(
        result
    )
    assert result["report"] == str(out / "report.html") and result["training"] is None
    assert result["scenario"] == "demo" and result["load"] == "generated" and result["load_scale"] == 1


def test_demo_never_violates_a_limit(told):
    """The replayed episode and every judged window keep every limit in force."""
    _, result, _ = told
    assert result["kpis"]["budget_violation_ws"] == 0
    assert all(r["kpis"]["budget_violation_ws"]["worst"] == 0 for r in result["evaluation"]["rows"])


def test_possible_draw_stays_below_the_limit_in_force(told):
    """What the orange line of the report claims holds in the recorded series of every policy."""
    content = json.loads((told[0] / "story.json").read_text())
    for replay in content["replays"]:
        columns = replay["columns"]
        assert (np.array(columns["possible_w"]) <= np.array(columns["in_force_w"])).all(), replay["policy"]


def test_progress_rises_to_one(told):
    """The bar never goes back and ends full."""
    shares = told[2]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_report_picture_and_story_are_whole(told):
    """No partial file is left, and the report names the scenario's hash."""
    out = told[0]
    assert not list(out.rglob("*.partial"))
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert load_scenario("demo", TINY.overrides).hash in (out / "report.html").read_text()


def test_second_run_in_the_same_folder_works(told, monkeypatch):
    """`make demo` twice in a row: the finished one is replaced, with the same numbers."""
    out, result, _ = told
    again = tell(TINY, out, None, quiet, "flyball demo")
    assert json.dumps(again["evaluation"]) == json.dumps(result["evaluation"])
    assert again["kpis"] == pytest.approx(result["kpis"], nan_ok=True)


def test_interrupted_evaluation_goes_on_from_its_windows(tmp_path, monkeypatch):
    """What was judged before the interruption is not judged again."""
    monkeypatch.setattr(demo, "_replay", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tell(TINY, tmp_path, None, quiet, "flyball demo")
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "windows").iterdir()}
    assert kept and not (tmp_path / "report.html").exists()
    monkeypatch.undo()
    tell(TINY, tmp_path, None, quiet, "flyball demo")
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "windows").iterdir()} == kept


def test_build_without_a_champion_shows_the_best_baseline_and_says_so(tmp_path, monkeypatch):
    """No learned policy is pretended."""
    monkeypatch.setattr(registry, "champion_path", no_champion)
    result = tell(TINY, tmp_path, None, quiet, "flyball demo")
    assert result["policy"] == registry.best_baseline_name(load_scenario("demo"))
    assert "No learned policy is shown" in (tmp_path / "report.html").read_text()


def test_demo_runs_on_a_file(tmp_path):
    """With --load everything runs on the file, and its superposition factor is told."""
    trace = tmp_path / "rates.csv"
    lines = [f"{10 * i},{3 + 2 * np.sin(i / 9):.3f}" for i in range(200)]
    trace.write_text("t_s,rate_rps\n" + "\n".join(lines) + "\n")
    result = tell(TINY, tmp_path / "out", str(trace), quiet, "flyball demo")
    assert "rates.csv" in result["load"] and result["load_scale"] != 1
    assert all("rates.csv" in r["load"] for r in result["evaluation"]["rows"])


@pytest.mark.parametrize("content", ["", "t_s,rate_rps\n0,1\n-5,1\n", "nonsense\n1\n"])
def test_bad_load_is_refused_before_anything_is_written(tmp_path, content):
    """A damaged file is one clear line, with nothing half-written."""
    trace = tmp_path / "bad.csv"
    trace.write_text(content)
    with pytest.raises(BadInput):
        tell(TINY, tmp_path / "out", str(trace), quiet, "flyball demo")
    assert not (tmp_path / "out").exists()


def test_cuts_are_those_of_the_plant():
    """The shaded spans of the report are where the plant's limits are low."""
    scenario = load_scenario("demo")
    core = Core(scenario, registry.policy("uniform", scenario), block="test")
    core.reset([TEST_SEED])
    demanded = core.plant.limits[0, :, 0, 0]
    low = np.flatnonzero(demanded < demanded[0])
    spans = cuts(scenario, TEST_SEED)
    inside = np.concatenate([np.arange(round(c.start_s), round(c.end_s)) for c in spans])
    assert [c.notice_s for c in spans] == [60.0, 0.0]
    assert (low == inside).all()


def test_demo_compares_on_a_suite_that_evaluate_knows():
    """`flyball evaluate --suite demo` repeats what the demo judged."""
    assert demo.FULL.scenarios == SUITES["demo"] and demo.FULL.scenario in demo.FULL.scenarios


def test_folder_of_somebody_else_is_left_alone(tmp_path):
    """A training folder that no demo made is never deleted."""
    other = tmp_path / "train"
    other.mkdir()
    (other / "checkpoint.pt").write_text("precious")
    with pytest.raises(BadInput, match="no demo made"):
        demo._forget_training(other)
    assert (other / "checkpoint.pt").read_text() == "precious"


# MLflow and the ONNX exporter warn of their own internals
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_trained_policy_is_exported_judged_and_replayed(tmp_path):
    """The whole chain on the smallest run: torch to ONNX to the report, whatever the gate says; then taken up again."""
    pytest.importorskip("torch")
    small = {
        "minutes": None,
        "steps": 160,
        "envs": 8,
        "n_steps": 10,
        "batch_size": 80,
        "epochs": 1,
        "validation_windows": 3,
    }
    config = replace(TINY, training=small)
    result = tell(config, tmp_path, None, quiet, "flyball demo")
    assert result["policy"] == str(tmp_path / "policy.onnx") and (tmp_path / "policy.onnx").exists()
    assert result["training"]["steps"] >= 160 and result["kpis"]["budget_violation_ws"] == 0
    card = json.loads((tmp_path / "story.json").read_text())["card"]
    assert card["parity"] < 1e-5 and card["run"]["passed"] == result["training"]["passed"]
    text = (tmp_path / "report.html").read_text()
    assert ("failed its gate" in text) == (not result["training"]["passed"])
    (tmp_path / "story.json").unlink()  # as if it had been cut off before the report was done
    again = tell(config, tmp_path, None, quiet, "flyball demo")
    assert again["training"]["run_id"] == result["training"]["run_id"]
