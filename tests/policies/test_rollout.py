"""Policies that plan on copies of the plant: the plant never moves, the future that they may not know is hidden, and
who knows it is never worse than the best policy that it may put in charge."""

import numpy as np
import pytest

from flyball import registry
from flyball.envs.branch import PlantSimulator
from flyball.envs.core import Core
from flyball.envs.episodes import run_episodes
from flyball.envs.event_dynamics import NO_POWER
from flyball.envs.scenario import SCENARIOS, load_scenario
from flyball.fleet.errors import BadInput
from flyball.policies.baselines.plans import Plans, around, single_moves

FAST = {
    "rollout": {"horizon_s": 20.0, "futures": 2, "hold_s": 5.0, "screen_s": 10.0},
    "clairvoyant": {"horizon_s": 30.0, "rounds": 1, "hold_s": 10.0, "sweep_s": 900.0, "screen_s": 10.0},
}
GOODPUT = "goodput_tok_s_per_mw"


def make_core(name="rollout", scenario="faults", batch=2, seconds=300, seeds=None):
    loaded = load_scenario(scenario, (f"seconds={seconds}",))
    core = Core(loaded, registry.baseline(name, loaded, FAST.get(name, {})), batch=batch)
    core.reset(np.arange(batch) if seeds is None else seeds)
    return core


@pytest.mark.parametrize("scenario", sorted(path.stem for path in SCENARIOS.glob("*.toml")))
def test_a_copy_lives_through_what_the_plant_lives_through(scenario):
    """Under the same bids, copies and the plant are the same bits: load, faults, lost writes and events included."""
    core = make_core("greedy", scenario, seconds=900)
    simulator = PlantSimulator(core.scenario)
    simulator.follow(core.plant)
    for _ in range(40):
        core.step(core.base)
    roll = simulator.branch(np.array([1]), 3, 60)
    for _ in range(60):
        now = core.base
        core.step(now)
        roll.step(type(now)(*(np.repeat(a[1:2], 3, axis=0) for a in (now.pool, now.node, now.fleet))))
    if scenario == "faults":
        assert core.plant.totals["down_node_s"][1] > 0  # faults came, or this shows little
    for copy in range(3):
        for table in ("node", "service", "domain"):
            mine = getattr(roll._plant, table)[copy]
            assert mine.tobytes() == getattr(core.plant, table)[1].tobytes()
        assert roll.snapshot.node[copy].tobytes() == core.plant.snapshot.node[1].tobytes()


@pytest.mark.parametrize("name", registry.NEEDS_SIMULATOR)
def test_planning_leaves_the_plant_as_it_is(name):
    """A decision changes no byte of the plant, of its snapshot or of the arbiter's state."""
    core = make_core(name)
    core.step(core.base)
    plant = core.plant

    def everything():
        tables = (plant.node, plant.service, plant.domain, plant.totals, plant.tick, plant.time_s, plant.params)
        state = plant.state
        return (
            b"".join(t.tobytes() for t in (*tables, state.node, state.domain, state.pool)) + plant.snapshot.to_bytes()
        )

    before = everything()
    core.background.bid(plant.snapshot, core.observation, core.memory)
    assert everything() == before


@pytest.mark.parametrize("name", registry.NEEDS_SIMULATOR)
def test_decisions_are_deterministic_and_do_not_depend_on_the_batch(name):
    """The same seed gives the same episode, alone or beside others; bids are finite and in range."""
    pair, again, alone = make_core(name), make_core(name), make_core(name, batch=1, seeds=[1])
    for _ in range(6):
        for core in (pair, again, alone):
            core.step(core.base)
            assert np.isfinite(core.base.pool).all() and (np.abs(core.base.pool) <= 1).all()
    assert pair.base.pool.tobytes() == again.base.pool.tobytes()
    assert pair.base.pool[1].tobytes() == alone.base.pool[0].tobytes()


def test_a_partial_reset_plans_for_the_environments_that_were_reset():
    """After environment 1 of 2 starts again, its bids are those of an environment that was alone from the start."""
    core, alone = make_core(), make_core(batch=1, seeds=[9])
    for _ in range(3):
        core.step(core.base)
    core.reset([9], [1])
    assert core.base.pool[1].tobytes() == alone.base.pool[0].tobytes()
    for _ in range(3):
        core.step(core.base)
        alone.step(alone.base)
    assert core.base.pool[1].tobytes() == alone.base.pool[0].tobytes()


def test_the_rollout_does_not_see_what_is_to_come():
    """Another future of load, limits, faults and parameters leaves the decision of now as it is."""
    core = make_core(scenario="curtailment-sudden", batch=1, seconds=400)
    for _ in range(20):
        core.step(core.base)
    plant, policy = core.plant, core.background
    seen = policy.bid(plant.snapshot, core.observation, core.memory)[0].pool.copy()
    now = int(plant.tick[0])
    plant.arrivals[:, now:] *= 3.0
    plant.output_tok[:, now:] *= 0.3
    plant.told[:, now + 1 :, :, 0] *= 0.5
    plant.limits[:, now + 1 :] //= 2
    plant.node["fault_rate"] *= 1e6
    plant.params["fault_scale"] = 1e6
    plant.params["event_kind"], plant.params["event_count"] = NO_POWER, 1
    plant.params["event_start"], plant.params["event_end"] = now + 2, now + 60
    plant.params["power_scale"] *= 1.05
    plant.params["kappa"] = 0.4
    assert np.array_equal(policy.bid(plant.snapshot, core.observation, core.memory)[0].pool, seen)


def test_the_clairvoyant_sees_a_cut_that_nobody_announced():
    """What the true limits will be changes what it expects of the same plan."""
    core = make_core("clairvoyant", "curtailment-sudden", batch=1, seconds=400)
    policy, plant = core.background, core.plant

    def expected():
        return policy.bid(plant.snapshot, core.observation, policy.start(1))[1][0, -len(policy.members) :]

    before = expected()
    plant.told[:, 2:, :, 0] *= 0.6
    plant.limits[:, 2:] = (plant.limits[:, 2:] * 0.6).astype(np.int64)
    assert (expected() < before).all()


@pytest.mark.parametrize("family", ["bursty", "curtailment", "faults"])
def test_the_clairvoyant_is_never_worse_than_its_best_member(family):
    """In every window it ends at least as well as whichever member of its portfolio does best there."""
    scenario = load_scenario(family, ("seconds=300", "load.target_util=0.9"))
    constants = {"hold_s": 60.0, "sweep_s": 120.0, "rounds": 1, "screen_s": 30.0}
    clairvoyant = registry.baseline("clairvoyant", scenario, constants)
    windows = range(7, 9)
    members = [run_episodes(scenario, member, windows).values(GOODPUT) for member in clairvoyant.members]
    mine = run_episodes(scenario, clairvoyant, windows).values(GOODPUT)
    assert (mine >= np.max(members, axis=0) * (1 - 1e-9)).all()
    assert mine.sum() > 1.001 * np.max(members, axis=0).sum()  # it finds more than they do


def test_a_member_put_in_charge_does_what_was_predicted_of_it():
    """Without perturbations the score of the first sweep's best member is what the episode then yields."""
    scenario = load_scenario("faults", ("seconds=200", "load.target_util=0.9"))
    policy = registry.baseline("clairvoyant", scenario, {"rounds": 0, "hold_s": 900.0})
    core = Core(scenario, policy, batch=2)
    core.reset(np.array([3, 4]))
    expected = core.memory[:, -len(policy.members) :].max(-1)
    for _ in range(40):
        core.step(core.base)
    np.testing.assert_allclose(core.plant.totals["good_tok"], expected, rtol=1e-12)


@pytest.mark.parametrize("name", registry.NEEDS_SIMULATOR)
def test_planning_is_not_worse_than_uniform(name):
    """With a short horizon already, over two windows of cuts without notice."""
    scenario = load_scenario("curtailment", ("seconds=600",))
    scores = [
        run_episodes(scenario, registry.baseline(p, scenario, FAST.get(p, {})), range(2)).values(GOODPUT)
        for p in (name, "uniform")
    ]
    assert scores[0].mean() >= scores[1].mean()


def test_moves_shift_watts_and_nodes_between_pools_and_create_none():
    """Each takes from one pool of a pair what it gives to the other."""
    one, two = single_moves(1, 0.2, 0.3), single_moves(2, 0.2, 0.3)
    assert len(one) == 4 and len(two) == 12
    assert np.abs(one.sum(1)).max() < 1e-12
    assert len(single_moves(1, 0.2, 0.0)) == 2


def test_a_move_ends_when_its_time_is_over():
    """Plans around a plan hold every move for every length, then leave its second member in charge, unperturbed."""
    plan = Plans.of(np.array([3]), pools=2)
    tried = around(plan, single_moves(1, 0.2, 0.3), (1, 4))
    assert tried.left.tolist() == [[1] * 4 + [4] * 4] and (tried.in_charge == 3).all()
    later = tried.after(1)
    assert not later.held_now[0, :4].any() and later.held_now[0, 4:].any(axis=(1, 2)).all()
    assert np.array_equal(Plans.from_array(later.to_array()).held_now, later.held_now)


def test_outside_the_simulator_it_is_refused_in_one_line():
    """Where there is no plant to copy, the error says where the policy can be used."""
    scenario = load_scenario("steady")
    policy = registry.baseline("rollout", scenario, {})
    with pytest.raises(BadInput, match="simulate or evaluate"):
        policy.simulator.branch(np.array([0]), 1, 1)
