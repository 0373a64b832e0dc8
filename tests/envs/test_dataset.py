"""Datasets: what is read back is what was played."""

import json
import os

import gymnasium as gym
import numpy as np
import pytest
from click.testing import CliRunner

import flyball.envs
from flyball.cli import main
from flyball.env_commands import IDS
from flyball.envs.dataset import dataset_id, read_dataset, write_dataset
from flyball.fleet.errors import BadInput

SHORT = ("seconds=60", "warmup_s=0")


@pytest.mark.parametrize("obs", ["flat", "tokens"])
def test_a_dataset_is_read_back_and_replays(tmp_path, obs):
    """Replaying the recorded actions from the recorded seeds gives the recorded observations and rewards."""
    pytest.importorskip("minari", reason="needs the [dataset] extra")
    before = os.environ.get("MINARI_DATASETS_PATH")
    written = write_dataset("bursty", "greedy", 2, tmp_path, "Factory-v0", obs, 0.2, 7, SHORT)
    assert os.environ.get("MINARI_DATASETS_PATH") == before
    read = read_dataset(written["path"])
    assert (read.total_episodes, read.total_steps) == (written["episodes"], written["steps"]) == (2, 24)
    assert read.spec.env_spec.kwargs["scenario"] == "bursty"
    env = gym.make(read.spec.env_spec)  # as `recover_environment` does
    about = list(read.storage.get_episode_metadata([0, 1]))
    for i, episode in enumerate(read):
        seen, _ = env.reset(seed=about[i]["seed"])
        for k in range(12):
            if obs == "flat":
                assert np.array_equal(episode.observations[k], seen)
            else:
                assert all(np.array_equal(episode.observations[n][k], seen[n]) for n in seen)
            seen, reward, _, over, info = env.step(episode.actions[k])
            assert reward == episode.rewards[k] and over == episode.truncations[k]
            assert info["cost"] == episode.infos["cost"][k + 1]
        assert about[i]["kpis"]["requests"] == info["kpis"]["requests"]


def test_noise_is_what_differs_from_the_policy(tmp_path):
    """Without noise the episodes are the policy's own; with it they are not."""
    pytest.importorskip("minari", reason="needs the [dataset] extra")
    from flyball.experiments.simulate import simulate

    a = write_dataset("steady", "greedy", 1, tmp_path / "a", seed=3, overrides=SHORT)
    b = write_dataset("steady", "greedy", 1, tmp_path / "b", seed=3, overrides=SHORT, noise=0.5)
    assert a["mean_return"] != b["mean_return"]
    assert set(a["kpis"]) == set(simulate("steady", "greedy", overrides=SHORT)["kpis"])


def test_the_verb_writes_and_refuses(tmp_path):
    """`flyball dataset --json` says what was written; a second run into the same folder is refused with exit 2."""
    pytest.importorskip("minari", reason="needs the [dataset] extra")
    args = ["dataset", "steady", "--policy", "static", "--episodes", "1", "--out", str(tmp_path), "--json"]
    args += ["--set", "seconds=60", "--set", "warmup_s=0"]
    result = CliRunner().invoke(main, args)
    out = json.loads(result.stdout)
    assert result.exit_code == 0 and out["steps"] == 12
    assert read_dataset(out["path"]).total_steps == 12
    again = CliRunner().invoke(main, args)
    assert again.exit_code == 2 and "choose another --out" in again.stderr


def test_bad_numbers_are_refused(tmp_path):
    """No episodes, or negative noise, is one line and exit 2."""
    pytest.importorskip("minari", reason="needs the [dataset] extra")
    for kwargs in ({"episodes": 0}, {"episodes": 1, "noise": float("nan")}):
        with pytest.raises(BadInput, match="at least 1 episode"):
            write_dataset("steady", "greedy", out=tmp_path, **kwargs)


def test_names_fit_minari_and_the_verb_knows_every_id():
    """Names have a namespace and a version whatever the policy's path; the verb's ids are the environments'."""
    assert dataset_id("Power-v0", "bursty", "runs/my policy.onnx") == "flyball/power-bursty-my-policy-v0"
    assert IDS == flyball.envs.IDS
