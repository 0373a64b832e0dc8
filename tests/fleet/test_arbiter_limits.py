"""Guarantees 2 and 4: the limit in force, and the mean over every window."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball.fleet.arbiter import initial_state
from flyball.fleet.arbiter.settle import settle
from flyball.fleet.bids import Bids


def charged_w(fleet, state):
    row = state.node[0]
    return int(np.maximum(row["cap_possible_w"], row["cap_cmd_w"]).sum()) + int(
        fleet.node_static["non_gpu_max_w"].sum()
    )


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["spend", "save", "random", "nan", "bursts"]),
    window_s=st.sampled_from([20.0, 60.0]),
)
def test_the_charged_mean_of_every_window_fits(world, seed, kind, window_s):
    """Guarantee 4: over every window, wherever it starts, mean charged watts <= mean_w."""
    rng = np.random.default_rng(seed)
    fleet = world.site((4, 4), 1.2, mean_frac=0.85, window_s=window_s)
    mean_w = int(fleet.domain_static["mean_w"][0])
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    charged = []
    for tick in range(200):
        bids = world.bids(fleet, rng, "power", tick)
        bids.fleet[0, 0] = {
            "spend": 1.0,
            "save": -1.0,
            "random": rng.uniform(-1, 1),
            "nan": np.nan,
            "bursts": 1.0 if tick % 50 > 35 else -1.0,
        }[kind]
        state, plan = settle(fleet, state, sn, bids)
        charged.append(charged_w(fleet, state))
        assert charged[-1] <= fleet.domains[0].peak_w
        assert state.domain["bank_ws"][0, 0] >= 0.0
        sn = world.follow(sn, state, plan)
    for start in range(200 - int(window_s)):
        assert sum(charged[start : start + int(window_s)]) <= mean_w * window_s


def test_a_saved_bank_can_be_spent(world):
    """Saving fills the bank; spending then lifts the charge above the sustained watts."""
    fleet = world.site((4, 4), 1.2, mean_frac=0.85)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    bids = Bids.neutral(1, fleet.pools, 8)
    bids.fleet[0, 0] = -1.0
    for _ in range(80):
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
    saved_ws, saved_w = float(state.domain["bank_ws"][0, 0]), charged_w(fleet, state)
    bids.fleet[0, 0] = 1.0
    for _ in range(3):
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
    assert saved_ws > 0.0
    assert charged_w(fleet, state) > max(saved_w, 0.98 * fleet.domain_static["mean_w"][0])
    assert state.domain["bank_ws"][0, 0] < saved_ws


def test_the_limit_in_force_follows_notice_grace_and_raises(world):
    """Announced cuts are in force at their start, un-noticed ones after the grace, raises at once."""
    fleet = world.site((4,), 1.2)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    bids = Bids.neutral(1, fleet.pools, 4)
    peak_w = fleet.domains[0].peak_w
    seen = []

    def tick(limit_w, next_w=peak_w, next_in_s=1e18):
        nonlocal state, sn
        sn.domain["limit_w"][0, 0] = limit_w
        sn.domain["next_limit_w"][0, 0], sn.domain["next_in_s"][0, 0] = next_w, next_in_s
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
        seen.append(int(state.domain["in_force_w"][0, 0]))

    low_w, lower_w = peak_w - 2000, peak_w - 4000
    for k in range(4):
        tick(peak_w, low_w, 4.0 - k)
    tick(low_w)
    assert seen == [peak_w] * 4 + [low_w]
    for _ in range(4):
        tick(lower_w)
    assert seen[5:] == [low_w] * 3 + [lower_w]
    tick(peak_w)
    assert seen[-1] == peak_w


def test_fallbacks_fit_the_lowest_limit_to_come_less_the_deepest_cut(world):
    """Guarantee 3: leases may all expire after an announced and an unannounced cut and still fit."""
    fleet = world.site((4, 4), 0.7)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    sn.domain["next_limit_w"][0, 0] = int(0.9 * fleet.domains[0].peak_w)
    sn.domain["next_in_s"][0, 0] = 500.0
    _, plan = settle(fleet, state, sn, Bids.neutral(1, fleet.pools, 8))
    fallbacks = plan.node["fallback_w"][0]
    assert (fallbacks <= plan.node["cap_w"][0]).all()
    assert (fallbacks >= fleet.node_static["cap_min_w"]).all()
    lowest_w = int((1 - 0.3) * int(0.9 * fleet.domains[0].peak_w))
    assert int(fallbacks.sum()) + int(fleet.node_static["non_gpu_max_w"].sum()) <= lowest_w


def test_hostile_limits_never_crash(world):
    """Negative, huge and NaN limits and times are clamped to the site's own."""
    fleet = world.site((4,), 1.2)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    for limit_w, next_w, next_in_s in (
        (-5, 10**15, np.nan),
        (10**15, -5, -3.0),
        (0, 0, 0.0),
        (10**15, 10**15, np.inf),
    ):
        sn.domain["limit_w"], sn.domain["next_limit_w"], sn.domain["next_in_s"] = limit_w, next_w, next_in_s
        _, plan = settle(fleet, state, sn, Bids.neutral(1, fleet.pools, 4))
        assert (plan.node["cap_w"] >= 1600).all()
        assert (plan.node["cap_w"] <= 5600).all()


def test_a_second_cut_runs_its_own_grace(world):
    """Guarantee 2: two un-noticed cuts are each in force one grace after they were made."""
    fleet = world.site((4,), 1.2)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    bids = Bids.neutral(1, fleet.pools, 4)
    peak_w = fleet.domains[0].peak_w
    low_w, lower_w = peak_w - 2000, peak_w - 4000
    seen = []
    for limit_w in (low_w, lower_w, lower_w, lower_w, lower_w, lower_w):
        sn.domain["limit_w"][0, 0] = limit_w
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
        seen.append(int(state.domain["in_force_w"][0, 0]))
    assert fleet.timing.grace_s == 3.0
    assert seen == [peak_w, peak_w, peak_w, low_w, lower_w, lower_w]


def test_fallbacks_make_room_for_nodes_that_will_not_fall(world):
    """Guarantee 3: a silent node counts at its maximum in the sum of the fallbacks, until it is heard again."""
    fleet = world.site((4, 4), 0.7)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    bids = Bids.neutral(1, fleet.pools, 8)
    state, plan = settle(fleet, state, sn, bids)
    before_w = state.node["fallback_share_w"][0].copy()
    sn = world.follow(sn, state, plan)
    sn.node["is_silent"][0, 5] = 1
    state, plan = settle(fleet, state, sn, bids)
    share_w = state.node["fallback_share_w"][0]
    draw_w = int(np.delete(share_w, 5).sum()) + int(fleet.node_static["cap_max_w"][5])
    fits_w = int((1 - fleet.deepest_cut_frac) * fleet.domains[0].peak_w)
    assert draw_w + int(fleet.node_static["non_gpu_max_w"].sum()) <= fits_w
    assert (share_w <= before_w).all()
    sn = world.follow(sn, state, plan)
    sn.node["is_silent"][0, 5] = 0
    state, _ = settle(fleet, state, sn, bids)
    assert state.node["fallback_share_w"][0].tolist() == before_w.tolist()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cut_frac=st.floats(0.0, 0.3))
def test_a_cut_is_met_by_expired_leases_alone(world, seed, cut_frac):
    """Guarantee 3: if the service dies with a cut of up to `deepest_cut_frac`, what leases fall back to fits it."""
    rng = np.random.default_rng(seed)
    # generous above the smallest caps: nothing would have to be parked
    fleet = world.site((4, 4), 0.8)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    for tick in range(8):
        state, plan = settle(fleet, state, sn, world.bids(fleet, rng, "power", tick))
        sn = world.follow(sn, state, plan)
    limit_w = int((1.0 - cut_frac) * fleet.domains[0].peak_w)
    fallen_w = int(np.minimum(plan.node["cap_w"][0], plan.node["fallback_w"][0]).sum())
    assert fallen_w + int(fleet.node_static["non_gpu_max_w"].sum()) <= limit_w


def test_leases_within_the_grace_close_it_for_a_dead_service(world):
    """The time after which a cut is met by a dead service is the grace itself when leases are short enough."""
    default, short = world.site((4,), 0.8).timing, world.site((4,), 0.8, lease_ttl_s=2.0).timing
    assert (default.grace_s, default.dead_service_grace_s) == (3.0, 6.0)
    assert short.dead_service_grace_s == short.grace_s == 3.0
