"""Settling as a function: pure, deterministic, the same bits alone and in a batch, numba only when used."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball.fleet.arbiter import ArbiterState, initial_state, settle
from flyball.fleet.bids import Bids
from flyball.fleet.plan import Reason


def batch_of(world, fleet, rng, batch):
    state = initial_state(fleet, batch, assume_acked=True)
    n = len(fleet.nodes)
    sn = world.warm(fleet, state, rng.uniform(500, 6500, (batch, n)), batch)
    sn.node["age_s"] = rng.choice([0.5, 0.5, 6.0], (batch, n))
    sn.node["xid"] = rng.choice([0, 0, 0, 79], (batch, n))
    sn.node["util_frac"] = rng.choice([np.nan, 0.2, 0.9], (batch, n))
    sn.domain["limit_w"] = sn.domain["limit_w"] * rng.uniform(0.6, 1.0, (batch, 1))
    return state, sn


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["random", "nan", "wild", "power"]))
def test_a_batch_equals_its_rows_one_at_a_time(world, seed, kind):
    """States and plans of a batch of B are the bytes of B single settlements."""
    rng = np.random.default_rng(seed)
    fleet = world.site((3, 4, 2), 1.4, reserve=1, services=2, mean_frac=0.9)
    state, sn = batch_of(world, fleet, rng, 5)
    for tick in range(4):
        bids = world.bids(fleet, rng, kind, tick, batch=5)
        following, plan = settle(fleet, state, sn, bids)
        for b in range(5):
            one = Bids(bids.pool[b : b + 1], bids.node[b : b + 1], bids.fleet[b : b + 1])
            single, single_plan = settle(fleet, state.env(b), sn.env(b), one)
            assert single.to_bytes() == following.env(b).to_bytes()
            assert single_plan.node.tobytes() == plan.node[b].tobytes()
            assert single_plan.fleet.tobytes() == plan.fleet[b].tobytes()
        state, sn = following, world.follow(sn, following, plan)


def test_settling_changes_nothing_that_it_was_given(world):
    """`settle` is pure: state, snapshot and bids keep their bytes, and equal inputs give equal bytes."""
    rng = np.random.default_rng(1)
    fleet = world.site((4, 4), 1.4)
    state, sn = batch_of(world, fleet, rng, 2)
    bids = world.bids(fleet, rng, "wild", 0, batch=2)
    before = (state.to_bytes(), sn.to_bytes(), bids.pool.tobytes(), bids.node.tobytes())
    first = settle(fleet, state, sn, bids)
    second = settle(fleet, state, sn, bids)
    assert (state.to_bytes(), sn.to_bytes(), bids.pool.tobytes(), bids.node.tobytes()) == before
    assert first[0].to_bytes() == second[0].to_bytes()
    assert first[1].to_bytes() == second[1].to_bytes()


def test_read_only_and_strided_inputs_settle_alike(world):
    """Tables that came off the wire, or are views, give the same bytes."""
    rng = np.random.default_rng(2)
    fleet = world.site((4, 4), 1.4)
    state, sn = batch_of(world, fleet, rng, 1)
    bids = world.bids(fleet, rng, "random", 0)
    expected = settle(fleet, state, sn, bids)
    frozen = sn.copy()
    for table in (frozen.time_s, frozen.node, frozen.domain, frozen.service):
        table.flags.writeable = False
    wide = Bids(np.repeat(bids.pool, 2, axis=2)[:, :, ::2], bids.node.astype(np.float64), bids.fleet)
    found = settle(fleet, state, frozen, wide)
    assert found[0].to_bytes() == expected[0].to_bytes()
    assert found[1].to_bytes() == expected[1].to_bytes()


def test_wrong_shapes_are_refused_by_name(world):
    """A table of another fleet is named, with both shapes."""
    fleet = world.site((4,), 1.4)
    state, sn = batch_of(world, fleet, np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match=r"bids\.pool has shape \(1, 2, 2\)"):
        settle(fleet, state, sn, Bids(np.zeros((1, 2, 2)), np.zeros((1, 4, 2)), np.zeros((1, 1))))


def test_states_survive_bytes(world):
    """A state is restored from its bytes, and bytes of another fleet are refused."""
    fleet = world.site((4,), 1.4)
    state = initial_state(fleet, 1)
    assert ArbiterState.from_bytes(fleet, state.to_bytes()).to_bytes() == state.to_bytes()
    with pytest.raises(ValueError, match="bytes"):
        ArbiterState.from_bytes(world.site((5,), 1.4), state.to_bytes())


def test_a_cold_start_charges_everything_until_it_is_heard(world):
    """Nothing acknowledged: smallest caps commanded, largest caps charged; then the fleet comes up."""
    fleet = world.site((4,), 1.4)
    state = initial_state(fleet, 1)
    assert (state.node["cap_possible_w"] == 5600).all()
    sn = world.warm(fleet, state)
    sn.node["is_silent"], sn.node["age_s"], sn.node["ack_seq"] = 1, 1e18, 0
    bids = Bids.neutral(1, fleet.pools, 4)
    state, plan = settle(fleet, state, sn, bids)
    assert (plan.node["cap_w"] == 1600).all()
    assert (plan.node["reason"] == Reason.UNKNOWN).all()
    sn.node["is_silent"], sn.node["age_s"] = 0, 0.1
    for _ in range(8):
        sn = world.follow(sn, state, plan)
        state, plan = settle(fleet, state, sn, bids)
    total = int(plan.node["cap_w"].sum()) + 4 * 2800
    assert total == fleet.domains[0].peak_w


def test_bad_bids_are_neutral_and_said_so(world):
    """NaN and infinite bids settle like zeros, with the reason BAD_BID where nothing else binds."""
    fleet = world.site((4,), 0.9)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state, np.full((1, 4), 3000.0))
    neutral = Bids.neutral(1, fleet.pools, 4)
    bad = Bids(np.full_like(neutral.pool, np.nan), np.full_like(neutral.node, np.nan), neutral.fleet * np.nan)
    for _ in range(3):
        good_state, good = settle(fleet, state, sn, neutral)
        _, plan = settle(fleet, state, sn, bad)
        assert (plan.node["cap_w"] == good.node["cap_w"]).all()
        state, sn = good_state, world.follow(sn, good_state, good)
    assert (plan.node["reason"] == Reason.BAD_BID).all()
    assert (good.node["reason"] == Reason.GRANTED).all()
    assert plan.fleet["interventions"][0] == 4


def test_clock_bids_only_ever_lower_the_ceiling(world):
    """1 + 0.8 min(b, 0): from 0.2 at the lowest bid to no ceiling at zero and above."""
    fleet = world.site((4,), 1.2)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    bids = Bids.neutral(1, fleet.pools, 4)
    for bid, ceiling in ((-1.0, 0.2), (-0.5, 0.6), (0.0, 1.0), (1.0, 1.0), (np.nan, 1.0)):
        bids.pool[:, :, 2] = bid
        _, plan = settle(fleet, state, sn, bids)
        assert np.allclose(plan.node["clock_frac"], ceiling)


def test_pool_filters_keep_their_last_value_when_telemetry_is_missing(world):
    """Averages start at the first value, follow it, and survive NaN."""
    fleet = world.site((4,), 1.2)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    bids = Bids.neutral(1, fleet.pools, 4)
    sn.node["util_frac"] = 0.5
    state, plan = settle(fleet, state, sn, bids)
    assert np.allclose(state.pool["util_fast"], 0.5)
    sn = world.follow(sn, state, plan, dt_s=8.0)
    sn.node["util_frac"] = 1.0
    state, plan = settle(fleet, state, sn, bids)
    assert np.allclose(state.pool["util_fast"], 1.0 - 0.5 * np.exp(-1.0))
    assert np.allclose(state.pool["util_slow"], 1.0 - 0.5 * np.exp(-8.0 / 50.0))
    kept = state.pool.tobytes()
    sn = world.follow(sn, state, plan)
    sn.node["util_frac"] = np.nan
    for name in sn.service.dtype.names:
        sn.service[name] = np.nan
    state, _ = settle(fleet, state, sn, bids)
    assert state.pool.tobytes() == kept


def test_nouns_and_state_never_load_numba():
    """Agents import the fleet's nouns, the state and observe; the compiler stays out."""
    code = (
        "import sys, flyball.fleet, flyball.fleet.observe, flyball.fleet.plan, flyball.fleet.bids;"
        "import flyball.fleet.arbiter as a; a.initial_state;"
        "assert 'numba' not in sys.modules;"
        "from flyball.fleet.arbiter import settle; assert 'numba' in sys.modules;"
        "from flyball.fleet.arbiter import settle as again; assert callable(settle) and again is settle"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_small_changes_of_demand_write_nothing(world):
    """Demand that jitters by a percent leaves every cap as it is; a real change does not."""
    fleet = world.site((4, 4), 1.4)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    bids = Bids.neutral(1, fleet.pools, len(fleet.nodes))
    rng = np.random.default_rng(0)
    demand_w = sn.node["demand_w"].copy()
    for _ in range(20):  # until the caps stand
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
    still = state.node["seq"].copy()
    for _ in range(30):
        sn.node["demand_w"] = demand_w * rng.uniform(0.99, 1.01, demand_w.shape)
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
    assert (state.node["seq"] == still).all()
    sn.node["demand_w"][0, 0] *= 0.5
    for _ in range(10):
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
    assert (state.node["seq"] != still).any()
