"""Sweeps: trials run apart, survive a kill, are not run twice, and the best that passed is kept."""

import json
import multiprocessing
from dataclasses import replace

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("mlflow")

from flyball.fleet.errors import BadInput
from flyball.training import sweep as sweeps
from flyball.training.config import TrainConfig
from flyball.training.pool import Outcome
from flyball.training.sweep import plan, sweep

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def template(out):
    """Trials of a second."""
    return TrainConfig(
        ("small",), out, minutes=None, steps=20_000, base="static", pairs=2, windows=1, validation_windows=1
    )


def test_a_trial_goes_on_from_its_checkpoint_when_its_process_is_killed(tmp_path):
    """A killed worker is started again and continues; the same sweep again does no work."""
    import mlflow

    checkpoint = tmp_path / "es-power-0" / "checkpoint.pt"
    killed = []

    def kill_once(label, share):
        if checkpoint.exists() and not killed:
            killed.extend(multiprocessing.active_children())
            killed[0].kill()

    result = sweep(template(tmp_path), ["es"], ["power"], 1, jobs=1, progress=kill_once)
    [trial] = result["trials"]
    assert killed and trial["error"] is None and trial["restarts"] == 1 and trial["steps"] >= 20_000
    run = json.loads((checkpoint.parent / "run.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    first = min(metric.step for metric in client.get_metric_history(run["run_id"], "es.length"))
    assert first > run["curve"][0]["steps"]  # its second process began where the first had saved
    again = sweep(template(tmp_path), ["es"], ["power"], 1, jobs=1)
    assert again["trials"] == [{**trial, "restarts": 0, "was_done": True}]


@pytest.fixture
def pretended(monkeypatch):
    """Trials whose results are written by hand, in place of a pool."""
    gains = {"es-power-0": -0.01, "es-power-1": 0.03, "distill-power-0": 0.02, "distill-power-1": 0.09}
    ran = []

    def run_local(work, tasks, jobs, watch):
        outcomes = []
        for index, (trial, out) in enumerate(tasks):
            ran.append(out.name)
            if out.name == "distill-power-1":
                outcomes.append(Outcome("training diverged", 0))
                continue
            out.mkdir()
            (out / "policy.onnx").write_text(out.name)
            identity = sweeps.identity_of(trial, [sweeps.load_scenario(name) for name in trial.scenarios])
            gain = gains[out.name]
            row = {"gain": gain, "passed": gain > 0, "steps": 1, "cpu_s": 2.0}
            told = {"identity": identity, "budget": trial.budget()}
            (out / "run.json").write_text(json.dumps({**row, **told}))
            watch(index, "", 1.0)
            outcomes.append(Outcome(None, 0))
        return outcomes

    monkeypatch.setattr(sweeps, "run_local", run_local)
    monkeypatch.setattr(sweeps, "prepare", lambda *_: None)
    return ran


def test_the_best_that_passed_its_gate_is_kept(pretended, tmp_path):
    """best.onnx is the passing trial with the largest gain; a failed trial is named, and tried again."""
    result = sweep(template(tmp_path), ["es", "distill"], ["power"], 2)
    assert result["best"] == "es-power-1" and (tmp_path / "best.onnx").read_text() == "es-power-1"
    assert json.loads((tmp_path / "sweep.json").read_text()) == result
    assert result["trials"][3]["error"] == "training diverged" and result["trials"][3]["gain"] is None
    spread = {row["configuration"]: row for row in result["configurations"]}
    assert spread["es-power"]["mean_gain"] == pytest.approx(0.01) and spread["es-power"]["passed"] == 1
    sweep(template(tmp_path), ["es", "distill"], ["power"], 2)
    assert pretended == ["es-power-0", "es-power-1", "distill-power-0", "distill-power-1", "distill-power-1"]


def test_no_policy_is_kept_where_none_passed(pretended, tmp_path):
    """Without a pass there is no best, and none of an earlier sweep stays."""
    (tmp_path / "best.onnx").write_text("earlier")
    result = sweep(template(tmp_path), ["es"], ["power"], 1)
    assert result["best"] is None and result["onnx"] is None and not (tmp_path / "best.onnx").exists()


def test_a_result_of_another_budget_does_not_stand(pretended, tmp_path):
    """A larger budget trains on instead of taking what is there."""
    sweep(template(tmp_path), ["es"], ["power"], 1)
    longer = replace(template(tmp_path), steps=40_000)
    (scenario,) = [sweeps.load_scenario("small")]
    [trial] = plan(replace(longer, out=tmp_path), ["es"], ["power"], 1)
    assert sweeps._finished(trial, sweeps._told(sweeps.identity_of(trial, [scenario]), trial)) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seeds": 0}, "--seeds 0"),
        ({"jobs": 0}, "--jobs 0"),
        ({"algos": ()}, "at least one --algo"),
        ({"template": {"scenarios": ("nope",)}}, "no scenario"),
        ({"template": {"base": "nope"}}, "no policy"),
        ({"template": {"steps": 0}}, "--steps 0"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_any_work(tmp_path, change, says):
    """Counts, names and budgets are said in one line, and nothing is written."""
    given = replace(template(tmp_path / "out"), **change.get("template", {}))
    with pytest.raises(BadInput, match=says):
        sweep(given, change.get("algos", ("es",)), ("power",), change.get("seeds", 1), change.get("jobs", 1))
    assert not (tmp_path / "out").exists()


def test_two_sweeps_do_not_share_a_folder(pretended, tmp_path):
    """A folder where a sweep runs is refused."""
    with sweeps._alone(tmp_path), pytest.raises(BadInput, match="another sweep runs there"):
        sweep(template(tmp_path), ["es"], ["power"], 1)
