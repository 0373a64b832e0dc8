"""Operators' orders: limits come first, pins second, bids last."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball.fleet.arbiter import initial_state
from flyball.fleet.arbiter.overrides import NodeOrder, refusal, with_orders, without_excluded
from flyball.fleet.arbiter.prices import domain_plan
from flyball.fleet.arbiter.settle import settle
from flyball.fleet.bids import Bids
from flyball.fleet.plan import Order, Reason
from flyball.fleet.tables import PARKED

KINDS = ("random", "constant", "alternating", "nan", "wild", "power")
quick = settings(max_examples=25, deadline=None)


def random_orders(fleet, rng, state, check=True):
    """Orders about some nodes, each taken only if it is not refused."""
    orders: dict[int, NodeOrder] = {}
    for i in rng.permutation(len(fleet.nodes))[:4]:
        kind = Order(int(rng.choice([Order.PIN, Order.FREEZE, Order.EXCLUDE, Order.DRAIN])))
        static = fleet.node_static[i]
        pin_w = int(rng.integers(static["cap_min_w"], static["cap_max_w"] + 1))
        order = NodeOrder(kind, int(state.node["cap_cmd_w"][0, i]) if kind == Order.FREEZE else pin_w)
        if not check or not refusal(fleet, state, orders, int(i), order):
            orders[int(i)] = order
    return orders


@quick
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS), check=st.booleans())
def test_no_order_breaks_a_limit(world, seed, kind, check):
    """Whatever is bid and ordered, even unchecked and through a deep cut, what is possible fits what is in force."""
    rng = np.random.default_rng(seed)
    fleet = world.site((4, 4), 1.15)
    state = initial_state(fleet, 1, assume_acked=True)
    emulated = world.emulate(fleet, state, rng)
    # an excluded node counts at its maximum from one tick to the next: that one is refused where it does not fit
    orders = {i: o for i, o in random_orders(fleet, rng, state, check).items() if o.kind != Order.EXCLUDE}
    for tick in range(30):
        if tick == 12:
            emulated.set_limit(0, int(0.85 * fleet.domains[0].peak_w))
        state = with_orders(state, orders if 4 <= tick < 24 else {})
        state, plan = settle(fleet, state, emulated.look(), world.bids(fleet, rng, kind, tick))
        caps = plan.node["cap_w"][0]
        assert (caps >= fleet.node_static["cap_min_w"]).all() and (caps <= fleet.node_static["cap_max_w"]).all()
        emulated.act(plan, emulated.__class__.assert_within_limits)
    assert not state.node["pin_w"].any() and state.fleet["orders"][0] == 0


@quick
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS))
def test_a_pin_that_is_taken_holds_whatever_is_bid(world, seed, kind):
    """While limits and bids stand still every accepted pin is in force within a few ticks, above or below its floor."""
    rng = np.random.default_rng(seed)
    fleet = world.site((4, 4), 1.3)
    state = initial_state(fleet, 1, assume_acked=True)
    orders = {i: o for i, o in random_orders(fleet, rng, state).items() if o.kind in (Order.PIN, Order.FREEZE)}
    sn = world.warm(fleet, state)
    bids = world.bids(fleet, rng, kind, 0)
    bids.pool[:, :, 1] = 0.0  # stages stand still: a moving node is held at its floor
    bids.node[:] = 0.0
    for _ in range(25):
        state = with_orders(state, orders)
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
    for i, order in orders.items():
        if plan.node["stage"][0, i] != PARKED:
            assert abs(int(plan.node["cap_w"][0, i]) - order.pin_w) <= fleet.timing.deadband_w
            assert plan.node["cap_w"][0, i] <= order.pin_w


@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_an_excluded_node_counts_at_its_maximum(world, seed):
    """Caps of the others fit beside it, whatever it reads."""
    rng = np.random.default_rng(seed)
    fleet = world.site((4, 4), 1.2)
    state = initial_state(fleet, 1, assume_acked=True)
    i = int(rng.integers(8))
    orders = {i: NodeOrder(Order.EXCLUDE)}
    assert refusal(fleet, state, {}, i, orders[i]) == ""
    sn = world.warm(fleet, state)
    for tick in range(20):
        state = with_orders(state, orders)
        state, plan = settle(fleet, state, without_excluded(sn, orders), world.bids(fleet, rng, "power", tick))
        sn = world.follow(sn, state, plan)
    assert state.node["cap_possible_w"][0, i] == fleet.node_static["cap_max_w"][i]
    for d, row in enumerate(fleet.domain_static):
        inside = slice(int(row["node_start"]), int(row["node_end"]))
        possible_w = state.node["cap_possible_w"][0, inside].sum()
        assert possible_w + row["non_gpu_max_w"] + row["unmanaged_w"] <= state.domain["in_force_w"][0, d]


def test_a_refusal_names_the_domain(world):
    """Pins fit until a rack is full."""
    fleet = world.site((4, 4), 1.4)
    state = initial_state(fleet, 1, assume_acked=True)
    orders = {0: NodeOrder(Order.PIN, 5600), 1: NodeOrder(Order.PIN, 5600)}
    why = refusal(fleet, state, orders, 2, NodeOrder(Order.PIN, 5600))
    assert why.startswith("rack0 cannot carry it") or why.startswith("root cannot carry it")
    assert refusal(fleet, state, {}, 2, NodeOrder(Order.DRAIN)) == ""


@quick
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS))
def test_the_price_of_a_watt_is_what_the_next_node_would_use_it_for(world, seed, kind):
    """A price stands where and only where a limit binds a node; the next node is bound by it, at the lowest share."""
    rng = np.random.default_rng(seed)
    fleet = world.site((3, 3), 1.4, services=2)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state, rng.uniform(500, 6000, 6))
    for tick in range(6):
        bids = world.bids(fleet, rng, kind, tick)
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
        rows = domain_plan(fleet, state, plan, bids)[0]
        bound = plan.node["bound_domain"][0]
        is_short = plan.node["reason"][0] == Reason.DOMAIN_LIMIT
        for d in range(len(fleet.domains)):
            below = is_short & (bound == d)
            assert (rows["next_node"][d] >= 0) == below.any()
            assert (rows["price"][d] > 0) == below.any()
            if below.any():
                assert below[rows["next_node"][d]]
                assert np.exp(-1.51) < rows["price"][d] < np.exp(1.51)


def test_the_price_under_neutral_bids_is_one(world):
    """A watt serves a watt of demand where nobody is preferred, and a favoured pool's watt is worth more."""
    fleet = world.site((3, 3), 1.4)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    bids = Bids.neutral(1, fleet.pools, 6)
    for _ in range(6):
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
    rows = domain_plan(fleet, state, plan, bids)[0]
    assert set(np.round(rows["price"], 9)) == {0.0, 1.0}
