"""The views: Gymnasium's and stable-baselines3's own checkers, and what a learner expects."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import flyball.envs
from flyball.registry import make_vector_env

pytestmark = pytest.mark.filterwarnings(
    # Gymnasium's checker: our box is [-5, 5] although no feature reaches its ends
    "ignore:.*Box.*:UserWarning",
)
IDS = [f"flyball.envs:flyball/{name}" for name in flyball.envs.IDS]
SHORT = {"overrides": ("seconds=120", "warmup_s=0"), "scenario": "steady"}


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("obs", ["flat", "tokens"])
@pytest.mark.parametrize("action", ["bids", "residual"])
def test_gymnasium_checker_passes(env_id, obs, action):
    """Every id passes `env_checker`, in both observation forms and both action forms."""
    env = gym.make(env_id, obs=obs, action=action, **SHORT)
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", IDS)
def test_sb3_checker_passes(env_id):
    """Every id passes stable-baselines3's checker."""
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(gym.make(env_id, obs="flat", **SHORT).unwrapped, warn=False)


@pytest.mark.parametrize("env_id", IDS)
def test_random_actions_keep_observations_in_their_space(env_id):
    """Whatever is done, observations stay in the declared box and episodes end by time."""
    env = gym.make(env_id, obs="flat", **SHORT)
    seen, _ = env.reset(seed=3)
    env.action_space.seed(3)
    over, steps = False, 0
    while not over:
        assert env.observation_space.contains(seen)
        seen, reward, terminated, over, info = env.step(env.action_space.sample())
        steps += 1
        assert np.isfinite(reward) and not terminated
    assert steps == 24
    assert "kpis" in info and "cost" in info


def test_vector_rows_equal_single_environments():
    """Row k of the vector environment is the single environment of that row's seed."""
    vector = make_vector_env("Factory-v0", num_envs=3, scenario="bursty", overrides=SHORT["overrides"])
    single = gym.make("flyball.envs:flyball/Factory-v0", scenario="bursty", overrides=SHORT["overrides"])
    rows, _ = vector.reset(seed=[4, 5, 6])
    one, _ = single.reset(seed=5)
    assert rows[1].tobytes() == one.tobytes()
    rng = np.random.default_rng(0)
    for _ in range(6):
        actions = rng.uniform(-1, 1, vector.action_space.shape).astype(np.float32)
        rows, rewards, *_ = vector.step(actions)
        one, reward, *_ = single.step(actions[1])
        assert rows[1].tobytes() == one.tobytes()
        assert rewards[1] == reward


def test_vector_environment_starts_again_within_the_step():
    """SAME_STEP: the last observation of an ended episode is in info, the returned one begins the next."""
    vector = make_vector_env(num_envs=2, **SHORT)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    vector.reset(seed=0)
    for step in range(25):
        seen, _, _, over, info = vector.step(np.zeros(vector.action_space.shape, np.float32))
        assert over.all() == (step == 23)
        if over.any():
            assert info["final_obs"][0].shape == seen[0].shape
            assert not np.array_equal(info["final_obs"][0], seen[0])
    assert (vector.core.plant.tick == 5).all()


def test_padding_hides_missing_pools():
    """A fleet of one service in a box of two gives the same bids whatever is written for the missing tokens."""
    a = make_vector_env("Stages-v0", num_envs=1, pad_pools=4, **SHORT)
    a.reset(seed=1)
    action = np.zeros(a.action_space.shape, np.float32)
    action[:, 0] = 0.3
    one = a.core.bids(action).pool.copy()
    action[:, 2:] = 0.9
    assert np.array_equal(one, a.core.bids(action).pool)


def test_separate_seeds_draw_separate_things():
    """The load's seed changes the load and leaves the parameters; the faults' seed leaves both."""
    env = gym.make("flyball.envs:flyball/Power-v0", **SHORT)
    core = env.unwrapped.core
    draws = []
    for options in ({}, {"load_seed": 9}, {"fault_seed": 9}):
        env.reset(seed=1, options=options)
        p = core.plant
        draws.append(
            (
                p.arrivals.tobytes(),
                (float(p.params["v_min"][0]), float(p.params["kappa"][0])),
                p.node["fault_margin"].tobytes(),
            )
        )
    plain, load, faults = draws
    assert load[0] != plain[0] and load[1:] == plain[1:]
    assert faults[0] == plain[0] and faults[1] == plain[1] and faults[2] != plain[2]


def test_an_unchanged_ppo_learns_something():
    """PPO("MlpPolicy") on the flat environment ends better than random bids."""
    sb3 = pytest.importorskip("stable_baselines3")
    import torch

    torch.set_num_threads(1)
    env = gym.make("flyball.envs:flyball/Power-v0", obs="flat", scenario="steady", overrides=("seconds=300",))
    model = sb3.PPO("MlpPolicy", env, n_steps=256, batch_size=64, learning_rate=1e-3, seed=1, device="cpu")
    model.learn(6_000)

    def mean_return(act):
        total = 0.0
        for seed in range(300, 306):
            seen, _ = env.reset(seed=seed)
            over = False
            while not over:
                seen, reward, _, over, _ = env.step(act(seen))
                total += reward
        return total / 6

    env.action_space.seed(0)
    random = mean_return(lambda seen: env.action_space.sample())
    learned = mean_return(lambda seen: model.predict(seen, deterministic=True)[0])
    assert learned > random
