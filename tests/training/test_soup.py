"""Averaging seeds: what the average is, that it is gated and exported as a run, and which runs do not mix."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("mlflow")
pytest.importorskip("torch")

import torch

from flyball.fleet.errors import BadInput
from flyball.fleet.schema import FLEET_BIDS, FLEET_FEATURES, POOL_BIDS, POOL_FEATURES
from flyball.policies.network import LinearResidual
from flyball.training import train
from flyball.training.config import TrainConfig
from flyball.training.export import model_card
from flyball.training.soup import average, soup

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

TINY = {"scenarios": ("small",), "minutes": None, "steps": 2_000, "algo": "es", "pairs": 2, "windows": 1}


def trained(out, **changes):
    train.train(TrainConfig(out=out, **{**TINY, "validate_every": 100, "validation_windows": 1, **changes}))
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of one tiny search."""
    out = tmp_path_factory.mktemp("seeds")
    return [trained(out / str(seed), seed=seed) for seed in (0, 1)]


def test_an_average_answers_with_the_mean_of_the_answers():
    """Whatever statistics each residual normalises with, where no feature and no residual is clipped."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    residuals = [LinearResidual() for _ in range(3)]
    for r in residuals:
        r.mean.copy_(0.1 * draw(*r.mean.shape))
        r.scale.copy_(1.0 + 0.2 * torch.rand(r.scale.shape, generator=generator))
        r.set_parameters(0.01 * draw(r.size).numpy())
    pool, base_pool = 0.3 * draw(5, 4, len(POOL_FEATURES)), 0.3 * draw(5, 4, len(POOL_BIDS))
    fleet, base_fleet = 0.3 * draw(5, len(FLEET_FEATURES)), 0.3 * draw(5, len(FLEET_BIDS))
    inputs = (pool, torch.ones(5, 4, dtype=torch.bool), fleet, base_pool, base_fleet)
    with torch.no_grad():
        each = [r(*inputs) for r in residuals]
        mean = average(residuals)(*inputs)
    for k in range(2):
        assert np.allclose(mean[k], torch.stack([e[k] for e in each]).mean(0), atol=1e-6)
        assert float(mean[k].abs().max()) > 1e-3


def test_a_soup_is_a_run_of_its_own(runs, tmp_path):
    """It is gated, its policy is exported, and its steps and CPU seconds are those of its parts and of the gate."""
    result = soup(runs, tmp_path)
    parts = [json.loads((run / "run.json").read_text()) for run in runs]
    assert (tmp_path / "policy.onnx").exists() and isinstance(result["passed"], bool)
    assert result["steps"] == sum(part["steps"] for part in parts)
    assert result["cpu_s"] > sum(part["cpu_s"] for part in parts)
    assert result["runs"] == [str(run) for run in runs]
    text = model_card(tmp_path / "policy.onnx")
    assert "the average of 2 searches: es seed 0" in text and "--seed 1" in text and "experiments.soup" in text


def test_runs_that_do_not_mix_are_refused(runs, tmp_path):
    """A single run, a folder without one and runs of different settings get one line that names the folder."""
    with pytest.raises(BadInput, match="at least two"):
        soup(runs[:1], tmp_path)
    with pytest.raises(BadInput, match="no finished run"):
        soup([runs[0], tmp_path / "nothing"], tmp_path)
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    settings = json.loads((other / "run.json").read_text())
    settings["config"]["sigma"] = 0.5
    (other / "run.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match="sigma"):
        soup([runs[0], other], tmp_path)
