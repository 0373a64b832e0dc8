"""The vector loops state the same physics as the scalar equations, at any step."""

import numpy as np
import pytest

from flyball.envs.hardware import PROFILE, profile_table
from flyball.envs.physics import (
    busy_power_w,
    decode_batch_within,
    decode_step_s,
    decode_use,
    full_power_w,
    relative_rate,
)
from flyball.envs.plant import EPISODE, EVOLVING, Plant
from flyball.envs.scenario import load_scenario
from flyball.envs.single import Profile, single

SHORT = ("seconds=240", "warmup_s=0")
FLEET = load_scenario("bursty").fleet


class Row:
    """A profile's row by attribute."""

    def __init__(self, row):
        self.__dict__.update({name: float(row[name]) for name in PROFILE.names})


def rows():
    row = profile_table(FLEET)[0, 0]
    return Row(row), Profile(*(np.float32(row[name]) for name in PROFILE.names))


@pytest.mark.parametrize("phi", [0.18, 0.4, 0.61, 0.99, 1.0])
def test_single_precision_twins_agree_with_the_equations(phi):
    """Draw, rates and decode steps in single precision are those of double precision to five digits."""
    wide, narrow = rows()
    f = np.float32
    for batch in (0.0, 3.0, 80.0):
        step_s = decode_step_s.py_func(wide, batch, 1300.0)
        use = decode_use.py_func(wide, batch, 1300.0, step_s)
        assert single(decode_step_s)(narrow, f(batch), f(1300)) == pytest.approx(step_s, rel=1e-5)
        assert single(decode_use)(narrow, f(batch), f(1300), f(step_s)) == pytest.approx(use, rel=1e-5)
        draw_w = busy_power_w.py_func(phi, 0.3, *use, wide, 1.0, 0.65, 0.6, 0.5, 0.55)
        twin_w = single(busy_power_w)(
            f(phi), f(0.3), f(use[0]), f(use[1]), narrow, f(1), f(0.65), f(0.6), f(0.5), f(0.55)
        )
        assert twin_w == pytest.approx(draw_w, rel=1e-5)
        full_w = full_power_w.py_func(*use, wide, 1.0)
        assert full_w == pytest.approx(busy_power_w.py_func(1.0, 0.3, *use, wide, 1.0, 0.65, 0.6, 0.5, 0.55), rel=1e-12)
    assert single(relative_rate)(f(phi), f(0.3), f(0.55)) == pytest.approx(relative_rate.py_func(phi, 0.3, 0.55))


@pytest.mark.parametrize(("experts_s", "half"), [(0.0, 1.0), (0.01, 40.0)])
@pytest.mark.parametrize("itl_s", [0.03, 0.05, 0.2])
def test_the_batch_within_a_target_takes_exactly_the_target(experts_s, half, itl_s):
    """Dense or with experts, the decode step of the largest batch within an ITL target is that target."""
    wide, _ = rows()
    wide.step_experts_s, wide.experts_half = experts_s, half
    batch = decode_batch_within.py_func(wide, 1300.0, itl_s)
    assert batch > 0.0
    assert decode_step_s.py_func(wide, batch, 1300.0) == pytest.approx(itl_s, rel=1e-9)


def test_one_physics_step_per_tick_is_enough(make_core):
    """Four physics steps per tick give the energy and goodput of one within one percent."""
    scores = []
    for substeps in (1, 4):
        core = make_core("bursty", batch=2, overrides=SHORT)
        core.plant.substeps = substeps
        for _ in range(40):
            core.step(core.base)
        kpis = core.kpis(0)
        scores.append((kpis["energy_j"], kpis["goodput_tok_s_per_mw"]))
    np.testing.assert_allclose(scores[0], scores[1], rtol=0.01)


def test_a_cap_counts_from_the_instant_at_which_it_lands(make_core):
    """A cap that lands late in a tick leaves the draw before it in the energy, and its overdraw in the violation."""
    overrides = (*SHORT, "plant.meter_bias_frac=[0, 0]", "plant.dropout_frac=[0, 0]", "load.target_util=0.9")
    core = make_core("steady", batch=1, overrides=overrides)
    for _ in range(8):
        core.step(core.base)
    plant = core.plant
    tick = int(plant.tick[0])
    now_w = float(plant.domain["power_w"][0, 0])
    limit_w = int(now_w * 0.8)
    ends = []
    for lands_s in (0.0, 0.25, 0.75):
        branch = plant.branch(0, 1)
        branch.limits[0, tick:, 0] = limit_w
        branch.node["pending_w"] = branch.fleet.node_static["cap_min_w"]
        branch.node["pending_s"] = lands_s
        branch.node["pending_seq"] = branch.node["ack_seq"]
        before = branch.totals.copy()
        rows = branch.plan.node
        rows["seq"] = branch.node["ack_seq"]
        branch.tick_under(rows)
        ends.append([float((branch.totals[n] - before[n])[0]) for n in ("energy_j", "violation_ws")])
        assert (branch.node["cap_w"] == branch.fleet.node_static["cap_min_w"]).all()
    energy_j, violation_ws = np.array(ends).T
    slope_w = (energy_j[2] - energy_j[0]) / 0.75
    assert energy_j[1] - energy_j[0] == pytest.approx(0.25 * slope_w, rel=1e-3)
    assert violation_ws[0] == 0.0
    above_w = energy_j[0] + slope_w - limit_w
    assert violation_ws[2] == pytest.approx(0.75 * above_w, rel=0.06)
    assert violation_ws[2] > 2.0 * violation_ws[1] > 0.0


def test_a_reset_gpu_takes_only_its_replica(make_core):
    """One GPU in reset halves what a node of two replicas decodes and draws no more than the rest, plus idle."""
    core = make_core("steady", batch=2, overrides=(*SHORT, "plant.lost_write_frac=[0, 0]"), seeds=[4, 4])
    for _ in range(6):
        core.step(core.base)
    plant = core.plant
    n = int(np.flatnonzero((plant.node["stage"][0] == 1) & (plant.node["batch"][0] > 0))[0])
    plant.node["gpus_down"][1, n] = 1
    plant.step(core.base, ticks=1)
    whole, broken = plant.node[0, n], plant.node[1, n]
    assert broken["batch"] == pytest.approx(0.5 * whole["batch"], rel=0.15)
    assert 0.0 < broken["gpu_w"] < 0.75 * whole["gpu_w"]


def test_saving_and_restoring_replays_the_same_future(make_core):
    """After `restore`, for all environments or some, the plant goes on bit for bit as it did."""
    core = make_core("faults", batch=3, overrides=SHORT)
    plant = core.plant
    plant.step(core.base, ticks=20)
    state = plant.save()
    plant.step(core.base, ticks=20)
    future = plant.save()
    plant.restore(state, np.array([1]))
    assert plant.node[0].tobytes() == future.arrays["node"][0].tobytes()
    assert plant.node[1].tobytes() == state.arrays["node"][1].tobytes()
    plant.restore(state)
    plant.step(core.base, ticks=20)
    again = plant.save()
    for name in EVOLVING:
        assert again.arrays[name].tobytes() == future.arrays[name].tobytes(), name


@pytest.mark.parametrize("name", ["bursty", "faults", "training-ballast", "thermal"])
def test_a_step_of_many_ticks_is_its_ticks_bit_for_bit(make_core, name):
    """Nodes that stay in their columns for twenty ticks end as nodes written back after every tick, broken or not."""
    core = make_core(name, batch=2, overrides=SHORT)
    plant = core.plant
    plant.fail(1, xid=79, down_s=7.0)  # down at first, loading its model after that
    state = plant.save()
    plant.step(core.base, ticks=20)
    whole = plant.save()
    plant.restore(state)
    for _ in range(20):
        plant.step(core.base, ticks=1)
    ticks = plant.save()
    for table in EVOLVING:
        assert whole.arrays[table].tobytes() == ticks.arrays[table].tobytes(), table


def test_limits_that_somebody_wrote_do_not_outlive_a_reset(make_core):
    """Limits that are the same in every episode are only left in place while nobody had them to write."""
    core = make_core("bursty", batch=2, overrides=SHORT)
    plant = core.plant
    limits, told = plant.limits.copy(), plant.told.copy()
    core.reset([5, 6])
    plant.limits[:, 3:] //= 2
    plant.told[:, 3:, :, 0] *= 0.5
    core.reset([7, 8])
    assert (plant.limits == limits).all() and (plant.told == told).all()


def test_every_array_of_a_plant_is_saved_or_of_the_episode():
    """No array with a batch axis is forgotten by `save` and `branch`."""
    plant = Plant(load_scenario("bursty"), FLEET, 3)
    arrays = {name.lstrip("_"): value for name, value in vars(plant).items() if isinstance(value, np.ndarray)}
    assert {name for name, value in arrays.items() if value.shape[:1] == (3,)} <= set(EPISODE) | set(EVOLVING)


def test_a_branch_meets_the_future_of_its_environment(make_core):
    """Every copy of a branch goes on bit for bit as the environment that it was cut from."""
    core = make_core("faults", batch=3, overrides=SHORT)
    core.plant.step(core.base, ticks=20)
    branch = core.plant.branch(1, 2)
    bids = type(core.base)(*(getattr(core.base, kind)[[1, 1]].copy() for kind in ("pool", "node", "fleet")))
    core.plant.step(core.base, ticks=20)
    branch.step(bids, ticks=20)
    for copy in range(2):
        for name in ("node", "domain", "service", "totals"):
            assert getattr(branch, name)[copy].tobytes() == getattr(core.plant, name)[1].tobytes(), name
