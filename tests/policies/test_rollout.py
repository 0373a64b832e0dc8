"""Policies that plan on copies of the plant: the plant never moves, and the future that they may not know is hidden."""

import numpy as np
import pytest

from flyball import registry
from flyball.envs.branch import PlantSimulator
from flyball.envs.core import Core
from flyball.envs.episodes import run_episodes
from flyball.envs.event_dynamics import NO_POWER
from flyball.envs.scenario import SCENARIOS, load_scenario
from flyball.fleet.errors import BadInput
from flyball.policies.baselines.rollout import perturbations

SHORT = {"horizon_s": 20.0, "futures": 2}
FAST = {"rollout": SHORT, "clairvoyant": {"horizon_s": 30.0, "rounds": 1}}


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
    roll = simulator.branch(1, 3, 60)
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
    """What the true limits will be changes its score of the same plan."""
    core = make_core("clairvoyant", "curtailment-sudden", batch=1, seconds=400)
    policy, plant = core.background, core.plant
    nothing = np.zeros((1, core.fleet.pools, 2))
    before = policy._scores(0, core.memory[0, :6].reshape(1, 6), nothing, None)
    plant.told[:, 2:, :, 0] *= 0.6
    plant.limits[:, 2:] = (plant.limits[:, 2:] * 0.6).astype(np.int64)
    assert policy._scores(0, core.memory[0, :6].reshape(1, 6), nothing, None) < before


@pytest.mark.parametrize("name", registry.NEEDS_SIMULATOR)
def test_planning_is_not_worse_than_uniform(name):
    """With a short horizon already, over two windows of cuts without notice."""
    scenario = load_scenario("curtailment", ("seconds=600",))
    scores = [
        run_episodes(scenario, registry.baseline(p, scenario, FAST.get(p, {})), range(2)).values("goodput_tok_s_per_mw")
        for p in (name, "uniform")
    ]
    assert scores[0].mean() >= scores[1].mean()


def test_perturbations_move_watts_and_nodes_between_pools_and_create_none():
    """The first is nothing; every other one takes from one pool of a pair what it gives to the other."""
    one, two = perturbations(1, 0.2, 0.3), perturbations(2, 0.2, 0.3)
    assert len(one) == 5 and len(two) == 13 and not one[0].any()
    assert np.abs(one.sum(1)).max() < 1e-12
    assert len(perturbations(1, 0.2, 0.0)) == 3


def test_outside_the_simulator_it_is_refused_in_one_line():
    """Where there is no plant to copy, the error says where the policy can be used."""
    scenario = load_scenario("steady")
    policy = registry.baseline("rollout", scenario, {})
    with pytest.raises(BadInput, match="simulate or evaluate"):
        policy.simulator.branch(0, 1, 1)
