"""The model registry: what is put there, and when the alias moves."""

import shutil

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("mlflow")

from flyball.fleet.schema import POOL_BIDS, POOL_FEATURES
from flyball.training import session
from flyball.training.champion import ALIAS
from flyball.training.config import TrainConfig
from flyball.training.gate import Verdict
from flyball.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

TINY = {"minutes": None, "steps": 1, "algo": "es", "pairs": 1, "windows": 1, "validation_windows": 1, "base": "static"}


@pytest.fixture
def gated(tmp_path, monkeypatch):
    """Trains one tiny run, judged as told, and says where the alias is then."""
    import mlflow

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(store)
    verdict: list[Verdict] = []
    monkeypatch.setattr(session, "judge", lambda *_: verdict[-1])
    export = session.export  # takes seconds: once is enough
    monkeypatch.setattr(session, "export", lambda n, card, path: path if path.exists() else export(n, card, path))

    def run(gain: float, passed: bool, **changes):
        verdict.append(Verdict(gain, passed, []))
        config = TrainConfig(
            **{"scenarios": ("small",), "out": tmp_path / "run", "mlflow_uri": store, **TINY, **changes}
        )
        result = train(config)
        found = client.search_registered_models()
        alias = found[0].aliases.get(ALIAS) if found else None
        return result, None if alias is None else str(alias)

    run.client, run.store = client, store
    return run


def test_the_alias_moves_only_through_the_gate_and_only_upwards(gated, tmp_path):
    """A failed gate registers nothing; a pass with less gain, or judged elsewhere, leaves the alias; more moves it."""
    result, alias = gated(0.01, True)
    assert alias == result["registered"]["version"] == "1" and result["registered"]["is_champion"]
    result, alias = gated(0.09, False)
    assert result["registered"] is None and alias == "1"
    result, alias = gated(0.01, True)
    assert not result["registered"]["is_champion"] and alias == "1"
    result, alias = gated(0.02, True)
    assert alias == result["registered"]["version"] == "3"
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "run" / "policy.onnx", tmp_path / "other")
    result, alias = gated(0.5, True, validation_windows=2, out=tmp_path / "other")
    assert alias == "3" and "other windows" in result["registered"]["reason"]


def test_the_champion_has_a_signature_and_can_be_exported(gated, tmp_path, monkeypatch):
    """The registry holds the graph's tensors by name and shape, and `flyball export` finds the champion there."""
    import mlflow

    from flyball.training.export import export_run

    result, _ = gated(0.01, True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gated.store)
    uri = f"models:/flyball-small@{ALIAS}"
    signature = mlflow.models.get_model_info(uri).signature
    shapes = {spec.name: spec.shape for spec in signature.inputs.inputs}
    assert shapes["pool"] == (-1, -1, len(POOL_FEATURES)) and shapes["pool_mask"] == (-1, -1)
    assert {spec.name: spec.shape for spec in signature.outputs.inputs}["bid_pool"] == (-1, -1, len(POOL_BIDS))
    exported = export_run(uri, tmp_path / "champion.onnx")
    assert exported["metadata"]["run"]["run_id"] == result["run_id"]
