"""Looking ahead: nothing is disturbed, nothing leaks, and the truth is the truth."""

import numpy as np
import pytest

from flyball.envs.simulate import Futures
from flyball.envs.state import PLANT_ARRAYS, plant_tables
from flyball.fleet.bids import Bids
from flyball.registry import BASELINES, make_env, make_vector_env

SHORT = ("seconds=300", "warmup_s=0")


def start(env_id="Power-v0", scenario="faults", steps=15, seed=3, **kwargs):
    """An environment some steps in, and the actions to come."""
    env = make_env(env_id, scenario=scenario, overrides=kwargs.pop("overrides", SHORT), **kwargs)
    env.reset(seed=seed)
    for _ in range(steps):
        env.step(env.base_action())
    rng = np.random.default_rng(0)
    return env, rng.uniform(-1, 1, (30, *env.action_space.shape)).astype(np.float32)


def everything(env) -> bytes:
    """All that has memory, as bytes."""
    core = env.core
    parts = [*plant_tables(core.plant).values(), core.base.pool, core.base.node, core.base.fleet, core.observation.pool]
    return b"".join(np.ascontiguousarray(p).tobytes() for p in parts) + (
        b"" if core.memory is None else core.memory.tobytes()
    )


def test_every_array_of_the_plant_is_saved():
    """An array added to the plant is either saved or known to be static."""
    plant = make_env().core.plant
    own = {name.lstrip("_") for name, value in vars(plant).items() if isinstance(value, np.ndarray)}
    assert own - {"profiles"} == set(PLANT_ARRAYS)


@pytest.mark.parametrize("env_id", ["Power-v0", "Factory-v0", "PowerRaw-v0"])
def test_restoring_repeats_what_happened(env_id):
    """From a saved state the same actions give the same bytes, as often as it is restored."""
    env, actions = start(env_id)
    saved, ends = env.save(), []
    for _ in range(3):
        env.restore(saved)
        rewards = [env.step(a)[1] for a in actions[:6]]
        ends.append((everything(env), rewards))
    assert ends[0] == ends[1] == ends[2]


def test_simulating_disturbs_nothing():
    """Simulate then step equals step alone, bit for bit, whatever was simulated."""
    alone, actions = start()
    looked, _ = start()
    for how in ({}, {"load": "held"}, {"clairvoyant": True}, {"knows_plant": True}):
        before = everything(looked)
        looked.simulate(actions[:4], steps=6, seeds=3, **how)
        assert everything(looked) == before
    for action in actions[:5]:
        one, two = alone.step(action), looked.step(action)
        assert one[0].tobytes() == two[0].tobytes() and one[1:] == two[1:]
    assert everything(alone) == everything(looked)


@pytest.mark.parametrize(
    ("env_id", "action"), [("Power-v0", "bids"), ("Factory-v0", "residual"), ("PowerRaw-v0", "bids")]
)
@pytest.mark.parametrize("scenario", ["faults", "curtailment-sudden"])
def test_a_clairvoyant_sees_what_then_happens(env_id, action, scenario):
    """Its rewards and terms are those of the steps that follow, bit for bit, for every plan of a batch."""
    env, actions = start(env_id, scenario, steps=50, action=action, overrides=("seconds=600",))
    plans = np.stack([actions[:12], -actions[:12]])
    outcome = env.simulate(plans, steps=12, seeds=2, clairvoyant=True)
    saved = env.save()
    for m in range(2):
        env.restore(saved)
        for h in range(12):
            _, reward, _, _, info = env.step(plans[m, h])
            assert outcome.reward[m, 0, h] == outcome.reward[m, 1, h] == reward
            for name, values in outcome.terms.items():
                assert values[m, 0, h] == info[name], name


def test_the_background_plays_where_no_plan_is_given():
    """Without a plan a clairvoyant look is the background's own continuation."""
    env, _ = start()
    outcome = env.simulate(steps=5, seeds=1, clairvoyant=True)
    assert outcome.reward[0, 0].tolist() == [env.step(env.base_action())[1] for _ in range(5)]


@pytest.mark.parametrize("load", ["resample", "held"])
def test_the_true_future_does_not_leak(load):
    """Two presents that look alike give the same futures, however much their true futures differ."""
    env, actions = start(scenario="curtailment-sudden", steps=12, overrides=("seconds=300",))
    honest = env.simulate(actions[:8], steps=8, seeds=3, load=load)
    plant, tick = env.core.plant, int(env.core.plant.tick[0])
    plant.arrivals[:, tick:] *= 3.0
    plant.prompt_tok[:, tick:] *= 2.0
    plant.limits[:, tick:] = plant.limits[:, tick:] * 6 // 10
    plant.told[:, tick + 1 :, :, 0] *= 0.6
    plant.node["fault_margin"] = 1e-9
    plant.node["fault_rate"] *= 1e6
    plant.params["v_min"], plant.params["fault_seed"], plant.params["parameter_seed"] = 0.8, 99, 99
    changed = env.simulate(actions[:8], steps=8, seeds=3, load=load)
    assert honest.reward.tobytes() == changed.reward.tobytes()
    truth = env.simulate(actions[:8], steps=8, seeds=1, clairvoyant=True)
    assert not np.array_equal(truth.reward[:, 0], honest.reward[:, 0])


def test_an_announced_cut_is_in_every_future():
    """Futures know the limits that were announced: they settle on them and exceed none."""
    env, _ = start(scenario="curtailment", overrides=("seconds=300", "events.0.t_min_s=100", "events.0.t_max_s=100"))
    assert env.core.plant.snapshot.domain["next_in_s"][0, 0] == 25.0
    outcome = env.simulate(steps=10, seeds=2)
    copies = env._futures._copies[1]
    assert (copies.plant.snapshot.domain["limit_w"][:, 0] == 0.85 * env.core.fleet.domains[0].peak_w).all()
    assert (outcome.terms["cost"] == 0).all()


@pytest.mark.parametrize("start_s", [73, 74])
def test_an_unnoticed_cut_in_its_grace_stays_in_it(start_s):
    """A cut that was just told of, settled already or not, comes into force when it truly does."""
    over = ("seconds=300", "warmup_s=0", f"events.0.t_min_s={start_s}", f"events.0.t_max_s={start_s}")
    env, _ = start(scenario="curtailment-sudden", overrides=over)
    assert env.core.plant.snapshot.domain["limit_w"][0, 0] < env.core.fleet.domains[0].peak_w
    assert (env.simulate(steps=3, seeds=3).terms["cost"] == 0).all()
    futures, truth = env._futures._copies[1].plant.limits[:, 75:-1], env.core.plant.limits[:, 75:-1]
    assert truth[0, 0, 0, 0] < truth[0, 0, 0, 1]
    assert all(np.array_equal(one, truth[0]) for one in futures)


def test_futures_are_shared_by_plans_and_differ_by_seed():
    """Equal plans meet equal futures; another seed is another future."""
    env, actions = start(scenario="bursty")
    outcome = env.simulate(np.stack([actions[:4]] * 2), steps=8, seeds=[5, 6, 7])
    assert np.array_equal(outcome.reward[0], outcome.reward[1])
    assert len(set(outcome.returns[0])) == 3
    again = env.simulate(actions[:4], steps=8, seeds=[6])
    assert np.array_equal(again.reward[0, 0], outcome.reward[0, 1])


def test_kpis_of_a_future_are_of_its_steps_alone():
    """Goodput and energy of the look-ahead are those of what it played."""
    env, _ = start(scenario="steady", overrides=SHORT)
    before = env.core.kpis()
    outcome = env.simulate(steps=6, seeds=1, clairvoyant=True)
    for _ in range(6):
        env.step(env.base_action())
    after = env.core.kpis()
    assert outcome.kpis["energy_j"][0, 0] == pytest.approx(after["energy_j"] - before["energy_j"], rel=1e-9)
    assert outcome.kpis["requests"][0, 0] == pytest.approx(after["requests"] - before["requests"], rel=1e-9)


def test_one_environment_of_a_batch_can_be_looked_ahead_from():
    """Looking ahead from row 1 of a vector environment is looking ahead from its single environment."""
    vector = make_vector_env(num_envs=3, scenario="bursty", overrides=SHORT)
    vector.reset(seed=4)
    single = make_env(scenario="bursty", overrides=SHORT)
    single.reset(seed=5)
    a = vector.simulate(steps=4, seeds=2, env=1)
    b = single.simulate(steps=4, seeds=2)
    assert a.reward.tobytes() == b.reward.tobytes()


def test_plans_may_be_bids_or_closed_loops():
    """Bids and functions of the copies give what the same actions give; a function sees each copy's own state."""
    env, actions = start("Factory-v0", scenario="multi-service")
    plans = np.stack([actions[:6], -actions[:6]])
    want = env.simulate(plans, steps=8, seeds=2).reward
    each = [[env.core.bids(a[None]) for a in plan] for plan in plans]
    bids = Bids(*(np.stack([[getattr(b, k)[0] for b in plan] for plan in each]) for k in ("pool", "node", "fleet")))
    assert np.array_equal(env.simulate(bids, steps=8, seeds=2).reward, want)
    looped = env.simulate(lambda copies, step: copies.base, steps=8, seeds=2, count=2)
    assert looped.reward.shape == (2, 2, 8)
    assert np.array_equal(looped.reward[1:], env.simulate(None, steps=8, seeds=2).reward)


def test_plans_are_held_and_cut_to_what_is_left():
    """A short plan holds its last action; the episode's end shortens the look; a bad shape says the fix."""
    env, actions = start(steps=55)
    held = env.simulate(actions[0], steps=20, seeds=1)
    assert held.reward.shape == (1, 1, 5)
    assert np.array_equal(held.reward, env.simulate(np.stack([actions[0]] * 20), steps=20, seeds=1).reward)
    with pytest.raises(ValueError, match=r"give \(3,\), \(steps, 3\) or \(M, steps, 3\)"):
        env.simulate(np.zeros((2, 7)))
    with pytest.raises(ValueError, match="resample"):
        env.simulate(load="guess")
    for _ in range(5):
        env.step(actions[0])
    with pytest.raises(ValueError, match="over"):
        env.simulate()


def test_copies_are_kept_between_looks():
    """The arrays of the copies are made once for a size."""
    env, _ = start(scenario="steady")
    futures = Futures()
    futures.play(env.core, steps=1, seeds=2)
    first = futures._copies[1]
    futures.play(env.core, steps=2, seeds=2)
    assert futures._copies[1] is first


@pytest.mark.skipif("rollout" not in BASELINES, reason="this build has no baseline that plans with copies of its own")
def test_a_planner_in_the_background_is_not_disturbed():
    """A background that rolls its own plant forward thinks on as if nobody had looked ahead, and so do its copies."""
    alone, _ = start(scenario="bursty", background="rollout", steps=4)
    looked, _ = start(scenario="bursty", background="rollout", steps=4)
    outcome = looked.simulate(steps=2, seeds=1, clairvoyant=True)
    rewards = [looked.step(looked.base_action())[1] for _ in range(2)]
    assert outcome.reward[0, 0].tolist() == rewards
    assert rewards == [alone.step(alone.base_action())[1] for _ in range(2)]
    assert everything(alone) == everything(looked)
