"""Guarantee 6: drains stay within the share of each failure domain, and services keep their minimum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball.fleet.arbiter import initial_state
from flyball.fleet.arbiter.health import XID_ACTIONS, XID_DRAINS, xid_action
from flyball.fleet.arbiter.settle import settle
from flyball.fleet.bids import Bids
from flyball.fleet.tables import DECODE, PREFILL


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), racks=st.lists(st.integers(2, 8), min_size=1, max_size=3))
def test_drains_stay_within_every_failure_domain(world, seed, racks):
    """Whatever is bid and however many nodes are faulty, a failure domain loses its allowed share at most."""
    rng = np.random.default_rng(seed)
    fleet = world.site(tuple(racks), 1.2)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    n = len(fleet.nodes)
    failure = fleet.node_static["failure_domain"]
    for _ in range(12):
        bids = Bids.neutral(1, fleet.pools, n)
        bids.node[0, :, 0] = rng.choice([-1.0, 1.0, np.nan], n)
        sn.node["xid"][0] = rng.choice([0, 0, 13, 79, 119, 9999, -3], n)
        sn.node["is_up"][0] = rng.uniform(size=n) < 0.9
        state, plan = settle(fleet, state, sn, bids)
        drained = plan.node["is_drained"][0] != 0
        lately = state.node["drained_at_s"][0] > -1.0
        for f in np.unique(failure):
            size = int((failure == f).sum())
            assert int(lately[failure == f].sum()) <= max(1, int(0.25 * size))
            assert int(drained[failure == f].sum()) <= max(1, int(0.25 * size))
        assert (plan.node["is_cordoned"][0][~drained] == 0).all()
        sn = world.follow(sn, state, plan)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_breaker_stops_cordons_until_a_person_resets_it(world, seed):
    """Half of the nodes cordoned within five minutes trip the breaker; it stays open, whatever comes, until reset."""
    rng = np.random.default_rng(seed)
    fleet = world.site((2, 2, 2, 2), 1.2)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    bids = Bids.neutral(1, fleet.pools, 8)
    sn.node["xid"][0, (1, 3, 4, 6) if rng.integers(2) else (0, 2, 5, 7)] = 79  # half, and of either stage
    state, plan = settle(fleet, state, sn, bids)
    assert plan.fleet["is_tripped"][0] == 1
    assert plan.node["is_cordoned"][0].sum() == 4  # one of every failure domain, and no more
    for dt_s in (1.0, 400.0, 4000.0):
        sn = world.follow(sn, state, plan, dt_s)
        sn.node["xid"][0] = rng.choice([0, 79, 119], 8)
        bids.node[0, :, 0] = rng.choice([-1.0, 1.0], 8)
        before = state.node["is_drained"][0].copy()
        state, plan = settle(fleet, state, sn, bids)
        assert plan.fleet["is_tripped"][0] == 1
        assert (plan.node["is_drained"][0] <= before).all()  # nodes may return, none is taken out
    sn = world.follow(sn, state, plan, 400.0)
    sn.node["xid"][0], sn.node["is_up"][0] = 0, 1
    bids.node[:] = 0.0
    state, plan = settle(fleet, state, sn, bids)
    assert plan.node["is_drained"].sum() == 0
    state = state.with_breaker_reset()
    sn = world.follow(sn, state, plan)
    sn.node["xid"][0, 1] = 79
    state, plan = settle(fleet, state, sn, bids)
    assert plan.fleet["is_tripped"][0] == 0
    assert plan.node["is_cordoned"][0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


def test_drains_that_a_policy_bids_for_never_trip_the_breaker(world):
    """Only faults are counted: a policy cannot take the breaker away from the operator."""
    fleet = world.site((2, 2, 2, 2), 1.2)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    bids = Bids.neutral(1, fleet.pools, 8)
    bids.node[0, :, 0] = 1.0
    state, plan = settle(fleet, state, sn, bids)
    assert plan.node["is_drained"].sum() >= 3
    assert plan.fleet["is_tripped"][0] == 0


@pytest.mark.parametrize("stage", [PREFILL, DECODE])
def test_the_last_serving_node_of_a_stage_is_not_drained(world, stage):
    """Minimum serving capacity survives a drain bid and a fault."""
    fleet = world.site((2,), 1.2)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    only = int(np.flatnonzero(fleet.node_static["stage"] == stage)[0])
    sn.node["xid"][0, only] = 48
    bids = Bids.neutral(1, fleet.pools, 2)
    bids.node[0, only, 0] = 1.0
    _, plan = settle(fleet, state, sn, bids)
    assert plan.node["is_drained"][0].sum() == 0


def test_a_faulty_node_is_cordoned_and_returns_when_it_is_healthy(world):
    """A fatal XID cordons and drains; XID 0 and an answering agent bring the node back."""
    fleet = world.site((8,), 1.2)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    bids = Bids.neutral(1, fleet.pools, 8)
    sn.node["xid"][0, 3] = 79
    sn.node["is_up"][0, 3] = 0
    state, plan = settle(fleet, state, sn, bids)
    assert plan.node["is_cordoned"][0].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert plan.node["cap_w"][0, 3] == 1600
    sn = world.follow(sn, state, plan)
    sn.node["xid"][0, 3] = 0
    state, plan = settle(fleet, state, sn, bids)
    assert plan.node["is_drained"][0, 3] == 1  # still down
    sn.node["is_up"][0, 3] = 1
    state, plan = settle(fleet, state, sn, bids)
    assert plan.node["is_drained"][0].sum() == 0


def test_application_errors_drain_nothing(world):
    """Codes whose outcome is an application restart, or nothing, leave the node in service."""
    fleet = world.site((8,), 1.2)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    for xid in (*XID_ACTIONS["app_restart"], *XID_ACTIONS["ignore"]):
        sn.node["xid"] = xid
        _, plan = settle(fleet, state, sn, Bids.neutral(1, fleet.pools, 8))
        assert plan.node["is_drained"].sum() == 0


def test_every_code_is_in_one_class_and_unlisted_ones_need_a_human():
    """The classification table is a partition, and silence about a code is not trust."""
    codes = [c for group in XID_ACTIONS.values() for c in group]
    assert len(codes) == len(set(codes))
    assert xid_action(79) == "reboot"
    assert xid_action(200) == "human"
    assert XID_DRAINS[200] == 1
    assert XID_DRAINS[0] == 0
