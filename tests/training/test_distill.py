"""Searching and distilling: they improve what they should, repeat, resume, and stop when numbers break."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("mlflow")
pytest.importorskip("torch")

import torch

from flyball.fleet.errors import BadInput
from flyball.policies.network import LinearResidual, TokenNetwork
from flyball.training import distill, es, train
from flyball.training.config import PROFILES, TrainConfig
from flyball.training.export import export_run
from flyball.training.gate import shrink_roles
from flyball.training.session import Session, is_finite

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

TINY = {
    "scenarios": ("curtailment",),
    "minutes": None,
    "algo": "distill",
    "pairs": 2,
    "windows": 2,
    "label_rounds": 2,
    "label_windows": 1,
    "label_every": 40,
    "label_share": 0.9,
    "validate_every": 100,
    "validation_windows": 1,
}
LABELLED = 60_000
"""More steps than the tiny run's labels take, fewer than its labels and two iterations."""


def run(out, **changes):
    return train.train(TrainConfig(out=out, **{"steps": LABELLED, **TINY, **changes}))


def weights(out):
    return torch.load(out / "network.pt", weights_only=True)["weights"]


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A tiny run that labels twice and then searches."""
    out = tmp_path_factory.mktemp("distilled")
    return out, run(out)


def test_distillation_labels_then_searches_and_counts_the_planner(distilled):
    """Rounds of labels come first, their simulated steps are part of the budget, and the search ends it."""
    _, result = distilled
    rounds = [row for row in result["curve"] if "distill.labels" in row]
    found = [row for row in result["curve"] if "es.gradient" in row]
    assert len(rounds) == 2 and found and rounds[0]["distill.labels"] < rounds[1]["distill.labels"]
    played = 2 * 180  # a window per round, of which every interval counts once
    assert rounds[0]["steps"] > played and result["steps"] >= LABELLED


def test_distillation_repeats_by_seed(distilled, tmp_path):
    """Two runs of one configuration end with the same weights."""
    out, _ = distilled
    run(tmp_path)
    a, b = weights(out), weights(tmp_path)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_cut_off_while_labelling_goes_on_to_the_same_policy(distilled, tmp_path, monkeypatch):
    """A checkpoint after a round of labels holds all that the rest needs."""
    out, _ = distilled
    real, calls = distill.label, []

    def cut_off(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(distill, "label", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert (tmp_path / "checkpoint.pt").exists()
    monkeypatch.setattr(distill, "label", real)
    run(tmp_path)
    a, b = weights(out), weights(tmp_path)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_regression_finds_a_linear_teacher():
    """Labels that are a linear map of the inputs are reproduced, and no labels leave the base alone."""
    network = LinearResidual()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, network.pool_weights.shape[1]))
    true = 0.1 * rng.standard_normal(network.pool_weights.shape)
    point = distill.regress(network, [x[:1000], x[1000:]], [x[:1000] @ true.T, x[1000:] @ true.T], 1e-6)
    np.testing.assert_allclose(network.split(point[None])[0][0], true, atol=1e-3)
    assert not network.split(point[None])[1].any()
    assert not distill.regress(network, [x[:0]], [x[:0] @ true.T], 1e-6).any()


def test_search_climbs_a_known_hill(tmp_path, monkeypatch):
    """On a score with one top, the centre comes closer to it."""
    top = 0.1

    def hill(core, network, points, seeds, lost_weight):
        return -((points[:, :8] - top) ** 2).sum(1, keepdims=True) * np.ones((1, len(seeds)))

    monkeypatch.setattr(es, "play", hill)
    network = LinearResidual()
    session = Session(TrainConfig(out=tmp_path, **{**TINY, "steps": 60 * 720, "pairs": 24}), lambda label, share: None)
    monkeypatch.setattr(session, "record", lambda *a: None)
    es.search(session, network, None, np.zeros(network.size))
    found = network.pool_weights.detach().numpy().ravel()[:8]
    assert np.abs(found - top).mean() < 0.8 * top


def test_candidates_play_as_the_network_they_stand_for(tmp_path):
    """The batched maps of the search are the network's own forward pass."""
    session = Session(TrainConfig(out=tmp_path, steps=1, **TINY), lambda label, share: None)
    network = LinearResidual(session.pool_channels)
    es.measure(network, session)
    points = 0.05 * np.random.default_rng(0).standard_normal((2, network.size))
    core = session.core(session.scenarios[0], 4)
    core.reset(np.array([1, 2, 1, 2]))
    action = es.act(core, network, points)
    seen = core.observation
    arrays = (seen.pool, seen.pool_mask, seen.fleet, core.base.pool, core.base.fleet)
    for i in range(2):
        network.set_parameters(points[i])
        with torch.no_grad():
            pool, fleet = network(*(torch.as_tensor(np.asarray(a, np.float32)) for a in arrays))
        mine = np.concatenate([pool.flatten(1).numpy(), fleet.numpy()], 1)[2 * i : 2 * i + 2]
        np.testing.assert_allclose(action[2 * i : 2 * i + 2], mine, atol=1e-5)


def test_a_diverging_run_stops_and_keeps_its_last_checkpoint(tmp_path, monkeypatch):
    """NaN in a score ends the run with one line, and the checkpoint before it is still finite."""
    real, calls = es.play, []

    def breaks(*args):
        calls.append(1)
        return real(*args) * (np.nan if len(calls) > es.CHECKPOINT_ITERATIONS + 1 else 1.0)

    monkeypatch.setattr(es, "play", breaks)
    with pytest.raises(BadInput, match=r"diverged.*last good checkpoint") as said:
        run(tmp_path, algo="es", steps=10**6)
    assert "\n" not in str(said.value)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert saved["algorithm"]["iteration"] == es.CHECKPOINT_ITERATIONS and is_finite(saved["algorithm"])


def test_a_checkpoint_that_is_not_finite_is_never_written(tmp_path):
    """Whatever an algorithm hands over, a broken state does not replace a good one."""
    session = Session(TrainConfig(out=tmp_path, steps=1, **TINY), lambda label, share: None)
    session.save({"centre": np.ones(3)})
    with pytest.raises(BadInput, match="diverged"):
        session.save({"centre": [{"deep": torch.tensor([1.0, float("inf")])}]})
    assert session.restore()["centre"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", [LinearResidual, TokenNetwork])
def test_shrinking_scales_role_moves_alone(kind):
    """Half of the role head is half of the role moves; watts stay, and a policy without roles stays whole."""
    network = kind()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.full_like(p, 0.01))
    arrays = [torch.full(s, 0.5) for s in ((1, 2, 22), (1, 2), (1, 6), (1, 2, 3), (1, 1))]
    before = network(*arrays)[0]
    shrink_roles(network, 0.5)
    after = network(*arrays)[0]
    assert torch.equal(after[..., 0], before[..., 0]) and torch.allclose(after[..., 1], 0.5 * before[..., 1])
    power = kind(pool_channels=(0,))
    kept = {k: v.clone() for k, v in power.state_dict().items()}
    shrink_roles(power, 0.0)
    assert all(torch.equal(v, kept[k]) for k, v in power.state_dict().items())


@pytest.mark.parametrize("profile", ["power", "power-roles-clocks"])
def test_profiles_own_their_channels_and_stand_on_the_card(tmp_path, profile):
    """The exported policy adds to the profile's bids alone, and its card names the profile."""
    result = run(tmp_path, algo="es", steps=1, profile=profile)
    saved = torch.load(tmp_path / "network.pt", weights_only=True)
    assert saved["weights"]["pool_weights"].shape[0] == len(PROFILES[profile]) == len(saved["pool_channels"])
    assert (result["role_shrinkage"] is None) == (profile == "power")
    exported = export_run(str(tmp_path), tmp_path / "a.onnx")
    assert exported["parity"] <= 1e-6 and exported["metadata"]["run"]["profile"] == profile
    assert f"| Profile | {profile}" in (tmp_path / "a.md").read_text()


@pytest.mark.parametrize("change", [{"profile": "nope"}, {"teacher": "nope"}, {"cpu_seconds": 5.0}, {"algo": "nope"}])
def test_what_cannot_be_run_is_said_before_any_work(tmp_path, change):
    """Unknown names, and two budgets at once."""
    with pytest.raises(BadInput, match="--"):
        Session(replace(TrainConfig(out=tmp_path, steps=1, **TINY), **change), lambda label, share: None)
