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


def draws(core, b=0):
    """What an episode was dealt: load, hidden parameters, faults, event times."""
    p = core.plant
    hidden = [n for n in p.params.dtype.names if n != "fault_seed" and not n.startswith("event_")]
    faults = (p.params["fault_seed"][b], p.node["fault_margin"][b].tobytes(), p.node["fault_rate"][b].tobytes())
    return {
        "load": (p.arrivals[b].tobytes(), p.prompt_tok[b].tobytes()),
        "parameter": [p.params[n][b].tobytes() for n in hidden],
        "fault": faults,
        "event": p.limits[b].tobytes(),
    }


def test_separate_seeds_draw_separate_things():
    """Changing one seed changes what it draws and nothing else; `seed` changes what no option holds."""
    env = gym.make("flyball.envs:flyball/Power-v0", scenario="curtailment")
    core = env.unwrapped.core
    apart = {f"{name}_seed": 1 for name in ("load", "fault", "parameter")}
    env.reset(seed=1)
    plain = draws(core)
    env.reset(seed=1, options=apart)
    assert draws(core) == plain
    for name in ("load", "fault", "parameter", "event"):
        if name == "event":
            env.reset(seed=9, options=apart)
        else:
            env.reset(seed=1, options={f"{name}_seed": 9})
        now = draws(core)
        assert {part for part in plain if now[part] != plain[part]} == {name}


def test_separate_seeds_reach_the_vector_environment():
    """One number is counted up, one each is taken as it is, and later episodes keep the streams apart."""
    vector = make_vector_env(num_envs=2, **SHORT)
    vector.reset(seed=1, options={"load_seed": [5, 5], "parameter_seed": 3})
    first = [draws(vector.core, b) for b in range(2)]
    single = gym.make(IDS[0], **SHORT)
    single.reset(seed=2, options={"load_seed": 5, "parameter_seed": 4})
    assert draws(single.unwrapped.core) == first[1]
    assert first[0]["load"] == first[1]["load"] and first[0]["parameter"] != first[1]["parameter"]
    for _ in range(24):
        vector.step(np.zeros(vector.action_space.shape, np.float32))
    second = [draws(vector.core, b) for b in range(2)]
    assert second[0]["load"] == second[1]["load"] != first[0]["load"]
    assert second[0]["fault"] != second[1]["fault"]
    with pytest.raises(ValueError, match="one number or one each"):
        vector.reset(seed=[1, 2, 3])


def test_an_unknown_reset_option_is_refused():
    """A misspelt option is not silently ignored."""
    for env in (gym.make(IDS[0], **SHORT), make_vector_env(num_envs=1, **SHORT)):
        with pytest.raises(ValueError, match="load_seed, fault_seed, parameter_seed"):
            env.reset(options={"loadseed": 1})


def test_gymnasium_checks_every_render_mode():
    """Gymnasium's checker makes and draws the environment in each declared mode."""
    env = gym.make(IDS[0], render_mode="rgb_array", scenario="small")
    check_env(env.unwrapped)


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("obs", ["flat", "tokens"])
def test_make_vec_speaks_gymnasiums_vector_api(env_id, obs):
    """`make_vec` gives batched spaces, arrays with masks, and final observations and information of who ended."""
    envs = gym.make_vec(env_id, num_envs=2, obs=obs, **SHORT)
    assert isinstance(envs.metadata["autoreset_mode"], AutoresetMode)
    envs.action_space.seed(0)
    seen, info = envs.reset(seed=1)
    assert envs.observation_space.contains(seen) and info["_load_scale"].all()
    for step in range(25):
        seen, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        assert envs.observation_space.contains(seen)
        assert reward.dtype == np.float64 and terminated.dtype == truncated.dtype == np.bool_
        for name, values in info.items():
            if name.startswith("_"):
                assert values.dtype == np.bool_ and values.shape == (2,) and name[1:] in info
            else:
                assert f"_{name}" in info
                assert isinstance(values, dict) or len(values) == 2
        assert ("final_obs" in info) == (step == 23)
        if step == 23:
            assert envs.single_observation_space.contains(info["final_obs"][1])
            final = info["final_info"]
            assert final["cost"][1] == info["cost"][1] and final["_kpis"].all()
            assert final["kpis"][0]["requests"] > 0
    envs.close()


def test_gymnasiums_own_vectorisation_works():
    """`vectorization_mode="sync"` puts single environments side by side."""
    envs = gym.make_vec(IDS[0], num_envs=2, vectorization_mode="sync", **SHORT)
    envs.reset(seed=1)
    for _ in range(24):
        _, _, _, over, info = envs.step(envs.action_space.sample())
    assert over.all() and info["kpis"]["requests"].shape == (2,)
    envs.close()


def test_gymnasiums_vector_wrappers_fit():
    """Statistics per episode, frozen normalisation and lists of dicts work on the vector environment."""
    from gymnasium.wrappers.vector import DictInfoToList, NormalizeObservation, RecordEpisodeStatistics

    envs = gym.make_vec(IDS[0], num_envs=2, autoreset="next_step", **SHORT)
    envs = NormalizeObservation(RecordEpisodeStatistics(envs))
    envs.reset(seed=1)
    total = np.zeros(2)
    for step in range(24):
        envs.update_running_mean = step < 20
        mean = envs.obs_rms.mean.copy()
        _, reward, _, over, info = envs.step(np.zeros(envs.action_space.shape, np.float32))
        assert (step < 20) != np.array_equal(mean, envs.obs_rms.mean)
        total += reward
    assert over.all()
    np.testing.assert_allclose(info["episode"]["r"], total)
    envs = DictInfoToList(gym.make_vec(IDS[0], num_envs=2, **SHORT))
    envs.reset(seed=1)
    assert set(envs.step(envs.action_space.sample())[4][0]) >= {"cost", "reward_lost_share", "good_tok"}


@pytest.mark.parametrize("obs", ["flat", "tokens"])
def test_next_step_mode_gives_the_same_episodes(obs):
    """With `autoreset="next_step"` episodes are those of "same_step", with one step without reward between them."""
    ours = make_vector_env("Factory-v0", num_envs=2, obs=obs, autoreset="next_step", **SHORT)
    assert ours.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    same = make_vector_env("Factory-v0", num_envs=2, obs=obs, **SHORT)
    seen, _ = ours.reset(seed=1)
    other, _ = same.reset(seed=1)
    rng = np.random.default_rng(0)

    def equal(a, b):
        return all(np.array_equal(a[k], b[k]) for k in a) if obs == "tokens" else np.array_equal(a, b)

    for step in range(52):
        assert equal(seen, other) or step == 24
        actions = rng.uniform(-1, 1, ours.action_space.shape).astype(np.float32)
        before = other
        seen, reward, _, over, info = ours.step(actions)
        assert "final_obs" not in info and ("kpis" in info) == over.all() == (step in (23, 48))
        if step == 24:  # the step that begins the next episode
            assert equal(seen, before) and not reward.any() and not info["_cost"].any()
            other = before
            continue
        other, want, _, ends, final = same.step(actions)
        assert np.array_equal(reward, want) and np.array_equal(over, ends) and info["_cost"].all()
        if over.all():
            last = {k: np.stack([o[k] for o in final["final_obs"]]) for k in seen} if obs == "tokens" else None
            assert equal(seen, last or np.stack(final["final_obs"]))
            if step == 48:
                break


def test_reward_terms_add_up_to_the_reward():
    """The terms in `info` are the reward, and KPIs come at the end alone."""
    env = gym.make(IDS[0], **SHORT)
    env.reset(seed=1)
    env.action_space.seed(1)
    for step in range(24):
        _, reward, *_, info = env.step(env.action_space.sample())
        assert reward == pytest.approx(sum(v for k, v in info.items() if k.startswith("reward_")), rel=1e-12)
        assert ("kpis" in info) == (step == 23)


def raw_site(folder, breaker_w):
    """The demo site with racks on breakers without a margin, which the raw environment can trip."""
    from flyball.fleet.site_file import SITES

    text = (SITES / "demo-16.toml").read_text()
    text = text.replace("peak_w = 31400", f"peak_w = {breaker_w}\nbreaker_w = {breaker_w}")
    path = folder / "raw.toml"
    path.write_text(text)
    return str(path)


def test_raw_caps_are_the_bids_and_cost_counts_what_they_exceed(tmp_path):
    """-1 is the lowest legal cap and free of cost, +1 the highest; over a breaker's rating it trips and costs."""
    site = raw_site(tmp_path, 24_000)
    over = ("seconds=400", "warmup_s=0", f"site='{site}'", "load.target_util=1.5")
    env = gym.make("flyball.envs:flyball/PowerRaw-v0", scenario="steady", overrides=over).unwrapped
    static = env.core.fleet.node_static
    for bid, cap in ((-1.0, "cap_min_w"), (1.0, "cap_max_w")):
        env.reset(seed=1)
        costs, trips = [], []
        for _ in range(80):
            *_, info = env.step(np.full(env.action_space.shape, bid, np.float32))
            costs.append(info["cost"])
            trips.append(float(env.core.plant.totals["breaker_trips"][0]))
        up = env.core.plant.node["down_s"][0] <= 0
        assert np.array_equal(env.core.plant.node["cap_w"][0][up], static[cap][up])
        if bid < 0:
            assert sum(costs) == 0
        else:
            assert trips[-1] >= 1 and sum(costs) >= 1e6 * trips[-1]
            # from a trip on, the rack's nodes are down: the cost of tripping is paid once
            first = int(np.argmax(np.array(trips) > 0))
            assert costs[first] >= 1e6 and (env.core.plant.node["down_s"][0] > 0).any()


def test_no_action_costs_anything_behind_the_arbiter():
    """The same bids that trip the raw environment cost nothing where an arbiter settles them."""
    env = gym.make("flyball.envs:flyball/Power-v0", scenario="curtailment-sudden", overrides=("seconds=300",))
    env.reset(seed=1)
    assert sum(env.step(np.ones(env.action_space.shape, np.float32))[4]["cost"] for _ in range(60)) == 0


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
