"""Wrappers: what is logged is what happened."""

import csv
import json

import gymnasium as gym
import numpy as np
import pytest

import flyball.envs  # noqa: F401 (registers the ids)
from flyball.envs.wrappers import CostToReward, DiscreteWatts, EpisodeLog, KpiLogger, VectorKpiLogger

POWER, RAW = "flyball.envs:flyball/Power-v0", "flyball.envs:flyball/PowerRaw-v0"
SHORT = {"scenario": "steady", "overrides": ("seconds=60", "warmup_s=0")}


def episode(env, seed=1):
    """Play random actions to the end; the rewards and the last information."""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    rewards, over, info = [], False, {}
    while not over:
        _, reward, _, over, info = env.step(env.action_space.sample())
        rewards.append(reward)
    return rewards, info


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_row_is_written_per_episode(tmp_path, suffix):
    """Return, length, reward terms and KPIs of each episode, appended, in the file's form."""
    path = tmp_path / "logs" / f"kpis.{suffix}"
    env = KpiLogger(gym.make(POWER, **SHORT), path)
    played = [episode(env, seed) for seed in (1, 2)]
    if suffix == "csv":
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [int(r["episode"]) for r in rows] == [0, 1]
    for row, (rewards, info) in zip(rows, played, strict=True):
        assert float(row["return"]) == pytest.approx(sum(rewards))
        assert float(row["reward_lost_share"]) + float(row["reward_correction"]) == pytest.approx(sum(rewards))
        assert int(row["length"]) == 12
        assert float(row["goodput_tok_s_per_mw"]) == info["kpis"]["goodput_tok_s_per_mw"]


def test_rows_of_the_vector_environment_are_those_of_its_single_ones(tmp_path):
    """Environment b's row is the row of the single environment of its seed."""
    envs = VectorKpiLogger(gym.make_vec(POWER, num_envs=2, **SHORT), tmp_path / "v.jsonl")
    envs.reset(seed=4)
    for _ in range(24):
        envs.step(np.zeros(envs.action_space.shape, np.float32))
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [(r["episode"], r["env"]) for r in rows] == [(0, 0), (1, 1), (2, 0), (3, 1)]
    single = KpiLogger(gym.make(POWER, **SHORT), tmp_path / "s.jsonl")
    single.reset(seed=5)
    for _ in range(12):
        single.step(np.zeros(single.action_space.shape, np.float32))
    row = json.loads((tmp_path / "s.jsonl").read_text())
    assert {k: v for k, v in rows[1].items() if k not in ("episode", "env")} == {
        k: v for k, v in row.items() if k != "episode"
    }


def test_a_log_does_not_mix_columns(tmp_path):
    """Other columns, or another suffix, are refused with the fix."""
    log = EpisodeLog(tmp_path / "a.csv")
    log.write({"x": 1})
    with pytest.raises(ValueError, match="log to a new file"):
        log.write({"y": 1})
    with pytest.raises(ValueError, match=r"\.csv or \.jsonl"):
        EpisodeLog(tmp_path / "a.txt")


def test_cost_is_taken_from_the_reward():
    """Reward less weight times cost, the plain reward in `info`, and a weight that follows the limit."""
    over = ("seconds=60", "warmup_s=0", "load.target_util=1.5")
    plain = gym.make(RAW, scenario="steady", overrides=over)
    priced = CostToReward(gym.make(RAW, scenario="steady", overrides=over), weight=1e-4)
    for env in (plain, priced):
        env.reset(seed=1)
    total = 0.0
    for _ in range(12):
        _, a, *_, info = plain.step(np.ones(plain.action_space.shape, np.float32))
        _, b, *_, also = priced.step(np.ones(plain.action_space.shape, np.float32))
        assert b == a - 1e-4 * info["cost"] and also["reward_plain"] == a
        total += info["cost"]
    assert total > 0 and priced.episode_cost == total
    assert priced.dual_step(limit=0.0, rate=1e-6) == 1e-4 + 1e-6 * total
    assert priced.dual_step(limit=1e12, rate=1.0) == 0.0
    with pytest.raises(ValueError, match="0 or more"):
        CostToReward(plain, weight=-1)


def test_discrete_choices_are_bids():
    """Each choice is its level; joint choices count through all combinations; both pass Gymnasium's step."""
    many = DiscreteWatts(gym.make(POWER, **SHORT), levels=5)
    assert many.action_space == gym.spaces.MultiDiscrete([5, 5, 5])
    assert many.action([0, 2, 4]).tolist() == [-1.0, 0.0, 1.0]
    joint = DiscreteWatts(gym.make(POWER, **SHORT), levels=(-0.5, 0.0, 0.5), is_joint=True)
    assert joint.action_space == gym.spaces.Discrete(27)
    assert len({tuple(joint.action(i)) for i in range(27)}) == 27
    assert joint.action(13).tolist() == [0.0, 0.0, 0.0]
    rewards, _ = episode(joint)
    assert np.isfinite(rewards).all()
    with pytest.raises(ValueError, match="is_joint=False"):
        DiscreteWatts(gym.make("flyball.envs:flyball/Factory-v0", **SHORT), levels=3, is_joint=True)
