"""Guarantee 7: stage moves respect dwell, rate, minimums and the decode margin."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball.fleet.arbiter import initial_state
from flyball.fleet.arbiter.settle import settle
from flyball.fleet.bids import Bids
from flyball.fleet.tables import DECODE, PARKED, PREFILL


def run(world, fleet, bids, ticks, util=0.3, state=None):
    """Settle with prompt acknowledgements; yields (tick, stages before, state, plan, snapshot)."""
    state = initial_state(fleet, 1, assume_acked=True) if state is None else state
    sn = world.warm(fleet, state)
    sn.node["util_frac"] = util
    for tick in range(ticks):
        before = state.node["stage_cmd"][0].copy()
        asked = bids(tick) if callable(bids) else bids
        state, plan = settle(fleet, state, sn, asked)
        yield tick, before, state, plan, sn
        sn = world.follow(sn, state, plan)


def node_bids(fleet, prefill=0.0, decode=0.0):
    bids = Bids.neutral(1, fleet.pools, len(fleet.nodes))
    bids.pool[0, 0::2, 1], bids.pool[0, 1::2, 1] = prefill, decode
    return bids


def count(stages, stage):
    return int((stages == stage).sum())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["random", "constant", "alternating", "nan", "wild"]))
def test_moves_respect_dwell_rate_and_minimums(world, seed, kind):
    """At most one move per service and tick, `moves_per_min` on average, none before `dwell_s`, minimums kept."""
    rng = np.random.default_rng(seed)
    fleet = world.site((5, 5), 1.2, services=2, dwell_s=6.0, moves_per_min=10.0)
    service = fleet.node_static["service"]
    moved_at = np.full(10, -1e9)
    moves = [[], []]
    for tick, before, state, _plan, sn in run(world, fleet, lambda t: world.bids(fleet, rng, kind, t), 60):
        after = state.node["stage_cmd"][0]
        sn.node["util_frac"] = rng.choice([np.nan, 0.1, 0.6, 2.0], 10)
        for s in range(2):
            changed = np.flatnonzero((before != after) & (service == s))
            assert len(changed) <= 1
            for i in changed:
                assert tick - moved_at[i] >= 6.0
                moved_at[i] = tick
                moves[s].append(tick)
            usable = (service == s) & (state.node["is_drained"][0] == 0)
            assert count(after[usable], PREFILL) >= 1
            assert count(after[usable], DECODE) >= 1
    for ticks in moves:
        for start in range(60):
            within = [t for t in ticks if start <= t < start + 30]
            assert len(within) <= 2 + 30 * 10 / 60


@settings(max_examples=30, deadline=None)
@given(util=st.floats(0.0, 1.0), decode=st.integers(3, 9))
def test_decode_keeps_a_quarter_above_its_use(world, util, decode):
    """The decode pool never shrinks below ceil(1.25 x utilisation x nodes)."""
    fleet = world.site((decode * 2,), 1.2, dwell_s=0.0, moves_per_min=60.0)
    start = count(fleet.node_static["stage"], DECODE)
    load = util * start  # decode work in nodes; utilisation rises as the pool shrinks
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    for _ in range(30):
        serving = count(state.node["stage_cmd"][0], DECODE)
        sn.node["util_frac"] = load / serving
        state, plan = settle(fleet, state, sn, node_bids(fleet, 1.0, -1.0))
        after = count(state.node["stage_cmd"][0], DECODE)
        assert after >= min(start, math.ceil(1.25 * load - 1e-6))
        sn = world.follow(sn, state, plan)


def test_unknown_utilisation_freezes_the_decode_pool(world):
    """Without utilisation nothing is taken from decode."""
    fleet = world.site((8,), 1.2, dwell_s=0.0, moves_per_min=60.0)
    for *_, state, _plan, _sn in run(world, fleet, node_bids(fleet, 1.0, -1.0), 20, util=np.nan):
        assert count(state.node["stage_cmd"][0], DECODE) == 4


def test_neutral_bids_move_nothing(world):
    """Zero everywhere is neutral: stages stay, and nobody is parked or drained."""
    fleet = world.site((8,), 1.2, dwell_s=0.0)
    for _, before, state, plan, _ in run(world, fleet, node_bids(fleet), 40):
        assert (state.node["stage_cmd"][0] == before).all()
        assert plan.fleet["moves"][0] == 0


def test_nodes_are_parked_only_when_both_pools_ask_for_fewer(world):
    """One shrinking pool alone parks nobody; two do, and bids for more bring the nodes back."""
    fleet = world.site((8,), 1.2, dwell_s=0.0, moves_per_min=60.0)
    *_, (_, _, state, _, _) = run(world, fleet, node_bids(fleet, 0.0, -1.0), 20)
    assert count(state.node["stage_cmd"][0], PARKED) == 0
    *_, (_, _, state, _, _) = run(world, fleet, node_bids(fleet, -1.0, -1.0), 20)
    parked = count(state.node["stage_cmd"][0], PARKED)
    assert parked >= 3
    assert (state.node["is_parked"][0] == (state.node["stage_cmd"][0] == PARKED)).all()
    *_, (_, _, state, _, _) = run(world, fleet, node_bids(fleet, 1.0, 1.0), 40, state=state)
    assert count(state.node["stage_cmd"][0], PARKED) == 0


def test_leaving_parking_waits_for_its_watts(world):
    """A node leaves parking only when what the others may draw leaves room for it, and the limit holds."""
    fleet = world.site((8,), 1.3, dwell_s=0.0, moves_per_min=60.0)
    *_, (_, _, parked, _, _) = run(world, fleet, node_bids(fleet, -1.0, -1.0), 20)
    assert count(parked.node["stage_cmd"][0], PARKED) > 0
    for _, _, state, _plan, sn in run(world, fleet, node_bids(fleet, 1.0, 1.0), 30, state=parked):
        row = state.node[0]
        charge = np.where(
            row["is_parked"] != 0,
            fleet.node_static["parked_max_w"],
            np.maximum(row["cap_possible_w"], row["cap_cmd_w"]),
        )
        assert charge.sum() + fleet.node_static["non_gpu_max_w"].sum() <= sn.domain["limit_w"][0, 0]
    assert count(state.node["stage_cmd"][0], PARKED) == 0


def test_a_moving_node_is_held_at_its_smallest_cap(world):
    """While a stage loads the node's watts serve others."""
    fleet = world.site((6,), 1.2)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    sn.node["moving_s"][0, 2] = 20.0
    _, plan = settle(fleet, state, sn, node_bids(fleet))
    assert plan.node["cap_w"][0, 2] == 1600


def test_the_lowest_ids_move_first(world):
    """Among equals the lowest id moves, so that a move can be predicted."""
    fleet = world.site((8,), 1.2, dwell_s=0.0)
    for _, before, state, _, _ in run(world, fleet, node_bids(fleet, -1.0, 1.0), 20):
        changed = np.flatnonzero(before != state.node["stage_cmd"][0])
        if len(changed):
            break
    assert changed.tolist() == [int(np.flatnonzero(before == PREFILL)[0])]


def test_a_flickering_bid_moves_nothing(world):
    """Bids that swing to and fro from tick to tick average out before they move a node."""
    fleet = world.site((8,), 1.2, dwell_s=0.0, moves_per_min=60.0)

    def flicker(tick):
        sign = 1.0 if tick % 2 else -1.0
        return node_bids(fleet, sign, -sign)

    for _, before, state, plan, _ in run(world, fleet, flicker, 40):
        assert (state.node["stage_cmd"][0] == before).all()
        assert plan.fleet["moves"][0] == 0
