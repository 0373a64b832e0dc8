"""The filling of one domain against an exact greedy in fractions."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball.fleet.arbiter.scratch import NEAR_W, scratch_of
from flyball.fleet.arbiter.water_filling import charge_of, fill_domain, hand_out_few, hand_out_ties

node = st.tuples(
    st.floats(1.0, 5e4),  # weight
    st.integers(0, 60),  # lo
    st.integers(0, 80),  # range
)


def greedy(weights, lo, hi, available_w):
    """Watt by watt to the smallest (cap + 1) / weight, ties by id."""
    caps = list(lo)
    while sum(caps) < available_w:
        open_ = [i for i in range(len(caps)) if caps[i] < hi[i]]
        if not open_:
            break
        caps[min(open_, key=lambda i: (Fraction(caps[i] + 1) / Fraction(weights[i]), i))] += 1
    return caps


def fill(weights, lo, hi, available_w, reserve=0, cap_max=None, guess=0.0):
    n = len(weights)
    rows = [np.array(x, np.int64) for x in (lo, hi, hi if cap_max is None else cap_max, [-1] * n)]
    lo_, hi_, max_, bound = rows
    scratch = scratch_of(n, 1, 2)
    weight = np.array(weights, float)
    level = fill_domain(3, available_w, guess, weight, lo_, hi_, max_, bound, reserve, scratch)
    return level, hi_, bound, int(charge_of(hi_, max_, reserve, scratch.top))


@settings(max_examples=150, deadline=None)
@given(
    nodes=st.lists(node, min_size=1, max_size=12),
    share=st.floats(0, 1),
    equal=st.booleans(),
    guess=st.floats(0, 1e3),
)
def test_filling_equals_the_exact_greedy(nodes, share, equal, guess):
    """Caps equal those of watt-by-watt filling in exact fractions, equal weights included."""
    weights = [nodes[0][0] if equal else w for w, _, _ in nodes]
    lo = [l for _, l, _ in nodes]
    hi = [l + r for _, l, r in nodes]
    available_w = sum(lo) + int(share * (sum(hi) - sum(lo)))
    level, caps, bound, _ = fill(weights, lo, hi, available_w, guess=guess)
    expected = greedy(weights, lo, hi, available_w)
    assert caps.tolist() == expected
    assert (level == np.inf) == (sum(hi) <= available_w)
    assert [b == 3 for b in bound] == [c < h for c, h in zip(expected, hi, strict=True)]


@settings(max_examples=100, deadline=None)
@given(
    nodes=st.lists(node, min_size=1, max_size=12),
    share=st.floats(0, 1),
    reserve=st.integers(1, 3),
    extra=st.integers(0, 50),
)
def test_reserve_is_part_of_the_charge(nodes, share, reserve, extra):
    """With a reserve the charge ends exactly at the limit, or every node is at its largest cap."""
    weights = [w for w, _, _ in nodes]
    lo, hi = [l for _, l, _ in nodes], [l + r for _, l, r in nodes]
    cap_max = [h + extra for h in hi]
    low = fill(weights, lo, lo, 10**9, reserve, cap_max)[3]
    high = fill(weights, hi, hi, 10**9, reserve, cap_max)[3]
    available_w = low + int(share * (high - low))
    _, caps, _, charge_w = fill(weights, lo, hi, available_w, reserve, cap_max)
    assert charge_w == available_w or (charge_w < available_w and caps.tolist() == hi)


def test_floors_that_do_not_fit_change_nothing():
    """An infeasible domain is reported as level -1 and left alone."""
    level, caps, _, _ = fill([1.0, 2.0], [10, 10], [20, 20], 19)
    assert level == -1.0
    assert caps.tolist() == [20, 20]


def test_thousands_of_equal_nodes_share_to_the_watt():
    """Ties in their thousands: the left-over goes to the lowest ids, nobody is two watts ahead."""
    n = 5000
    _, caps, _, charge_w = fill([3.0] * n, [0] * n, [700] * n, 300 * n + 1234)
    assert charge_w == 300 * n + 1234
    assert caps.tolist() == [301] * 1234 + [300] * (n - 1234)


def test_mixed_ties_and_scatter_share_to_the_watt():
    """Large groups of equal weights among scattered ones still end exactly at the limit."""
    rng = np.random.default_rng(0)
    weights = np.concatenate([np.repeat(rng.uniform(1, 5, 37), 100), rng.uniform(1, 5, 3000)])
    rng.shuffle(weights)
    n = len(weights)
    for available_w in (400 * n + 17, 123_457 + 100 * n):
        _, caps, _, charge_w = fill(weights.tolist(), [50] * n, [700] * n, available_w)
        assert charge_w == available_w
        # water level: nobody could have had the next watt earlier than anybody's last one
        free = (caps > 50) & (caps < 700)
        assert (caps[free] / weights[free]).max() <= ((caps[free] + 1) / weights[free]).min() * (1 + 1e-12)


@settings(max_examples=100, deadline=None)
@given(nodes=st.lists(node, min_size=1, max_size=12), left_w=st.integers(1, NEAR_W))
def test_both_ways_of_handing_out_agree_with_the_greedy(nodes, left_w):
    """Few watts by a sorted list and many by thresholds give what watt-by-watt filling gives."""
    weights = [w for w, _, _ in nodes]
    lo, hi = [l for _, l, _ in nodes], [l + r for _, l, r in nodes]
    expected = greedy(weights, lo, hi, sum(lo) + left_w)
    few, ties = np.array(lo, np.int64), np.array(lo, np.int64)
    arguments = (np.array(weights, float), np.array(hi, np.int64))
    rest = hand_out_few(left_w, *arguments, few, np.empty(NEAR_W), np.empty(NEAR_W, np.int64))
    assert few.tolist() == expected
    assert rest == sum(lo) + left_w - sum(expected)
    threshold = np.empty(len(ties))
    assert hand_out_ties(left_w, *arguments, ties, threshold, threshold.view(np.int64)) == rest
    assert ties.tolist() == expected
