"""Training: it runs, is tracked, resumes, repeats by seed, and refuses what it cannot do."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("mlflow")

from flyball.fleet.errors import BadInput
from flyball.training.config import TrainConfig
from flyball.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

TINY = {
    "scenarios": ("steady", "multi-service"),
    "minutes": None,
    "envs": 8,
    "n_steps": 8,
    "batch_size": 32,
    "epochs": 1,
    "base": "proportional",
    "validate_every": 2,
    "validation_windows": 3,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One tiny run over a mixture of fleets with different numbers of pools."""
    out = tmp_path_factory.mktemp("run")
    config = TrainConfig(out=out, steps=256, **TINY)
    return config, train(config)


def test_a_run_is_exported_and_judged(run):
    """A run ends with an ONNX file, a verdict per scenario and its curve."""
    config, result = run
    assert (config.out / "policy.onnx").exists()
    assert {row["scenario"] for row in result["validation"]} == {"steady", "multi-service"}
    assert result["steps"] == 256 and isinstance(result["passed"], bool)
    assert json.loads((config.out / "run.json").read_text())["run_id"] == result["run_id"]


def test_a_run_is_tracked(run):
    """MLflow holds parameters with hashes, curves and the model of the run."""
    import mlflow

    config, result = run
    client = mlflow.MlflowClient(f"sqlite:///{config.out / 'mlflow.db'}")
    tracked = client.get_run(result["run_id"])
    assert tracked.info.status == "FINISHED"
    for name in ("schema_pool", "scenario_hash.steady", "learning_rate", "residual_on"):
        assert name in tracked.data.params
    assert len(client.get_metric_history(result["run_id"], "rollout.reward")) == 4
    assert "policy.onnx" in {a.path for a in client.list_artifacts(result["run_id"])}


def test_a_restored_run_reproduces_its_scores(run, tmp_path, monkeypatch):
    """The model that MLflow holds scores on the gate's windows what the run says it scored."""
    from flyball import registry
    from flyball.envs.episodes import run_episodes
    from flyball.envs.scenario import load_scenario
    from flyball.training.export import export_run
    from flyball.training.gate import FIRST_SEED

    config, result = run
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{config.out / 'mlflow.db'}")
    restored = export_run(f"runs:/{result['run_id']}/model", tmp_path / "restored.onnx")["onnx"]
    seeds = range(FIRST_SEED["gate"], FIRST_SEED["gate"] + config.validation_windows)
    for row in result["validation"]:
        scenario = load_scenario(row["scenario"])
        played = run_episodes(scenario, registry.policy(restored, scenario), seeds, None, "validation")
        assert played.values("goodput_tok_s_per_mw").mean() == pytest.approx(row["policy"], rel=1e-6)
        assert played.values("budget_violation_ws").max() == row["violation_ws"]


def test_cpu_seconds_of_child_processes_are_spent_too():
    """What a child burns until it is waited for counts towards the run's cost."""
    from flyball.training.session import spent_cpu_s

    before_s = spent_cpu_s()
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert spent_cpu_s() - before_s >= 0.25


def test_the_same_seed_gives_the_same_policy(run, tmp_path):
    """Two runs of one configuration export the same weights."""
    import torch

    config, _ = run
    train(replace(config, out=tmp_path))
    a = torch.load(config.out / "network.pt", weights_only=True)["weights"]
    b = torch.load(tmp_path / "network.pt", weights_only=True)["weights"]
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_goes_on_from_its_checkpoint(run, tmp_path):
    """A second call with a larger budget continues; with the same budget it only judges again."""
    import shutil

    config, _ = run
    out = tmp_path / "run"
    shutil.copytree(config.out, out)
    again = train(replace(config, out=out))
    assert again["steps"] == 256
    longer = train(replace(config, out=out, steps=384))
    assert longer["steps"] == 384


def test_a_folder_of_another_configuration_is_refused(run):
    """A run folder is never overwritten by another configuration."""
    config, _ = run
    with pytest.raises(BadInput, match="another configuration"):
        train(replace(config, seed=1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": None}, "--minutes or --steps"),
        ({"steps": 0}, "--steps 0"),
        ({"scenarios": ("nope",)}, "no scenario"),
        ({"base": "nope"}, "no policy"),
        ({"mlflow_uri": "http://127.0.0.1:9"}, "MLflow"),
    ],
)
def test_what_cannot_be_trained_is_refused(run, tmp_path, change, says):
    """Bad budgets, names and stores are said in one line before any work."""
    config, _ = run
    with pytest.raises(BadInput, match=says):
        train(replace(config, out=tmp_path, **change))


def test_export_copies_a_finished_run_and_checks_it(run, tmp_path):
    """`flyball export` writes one file and reports its difference to torch."""
    from flyball.training.export import export_run

    config, result = run
    out = export_run(str(config.out), tmp_path / "a.onnx")
    assert out["parity"] <= 1e-6 and (tmp_path / "a.onnx").stat().st_size == out["bytes"]
    assert out["metadata"]["run"]["run_id"] == result["run_id"]
    assert 0 < out["metadata"]["run"]["cpu_s"] <= result["cpu_s"]
    cost = f"| Cost | {out['metadata']['run']['cpu_s']:,.0f} CPU seconds of all processes"
    assert cost in (tmp_path / "a.md").read_text()
    with pytest.raises(BadInput, match="no such run"):
        export_run(str(tmp_path / "nothing"), tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()
