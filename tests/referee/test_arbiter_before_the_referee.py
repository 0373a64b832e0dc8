"""The arbiter keeps its promises before the referee: random trees, hostile bids, networks, clocks and reboots."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from flyball.experiments.referee.adversary import BID_KINDS, Adversary, Trouble, hostile_bids
from flyball.experiments.referee.sites import random_site
from flyball.experiments.referee.world import World
from flyball.fleet.bids import Bids
from flyball.fleet.plan import Shed
from flyball.fleet.tables import PARKED
from flyball.fleet.topology import Fleet, Node, PowerDomain, Service, Timing

TROUBLES = {
    "nothing": Trouble(),
    "loss": Trouble(loss=0.3),
    "repeats": Trouble(delay_ms=300, repeat=0.3),
    "reboots": Trouble(reboot=0.02),
    "restarts": Trouble(restart=0.05),
    "cuts": Trouble(cut=0.1),
    "clock jumps": Trouble(jump=0.2, cut=0.0),
    "faults": Trouble(fault=0.2),
}


def play(seed, trouble, ticks=30, kind=None, is_strict=False, **timing):
    rng = np.random.default_rng(seed)
    world = World(
        random_site(rng, **timing),
        trusts_clock=not trouble.jump,
        trusts_network=trouble.is_network_right,
        is_strict=is_strict,
    )
    Adversary(world, rng, kind, trouble).play(ticks)
    return world.referee


@pytest.mark.parametrize("name", TROUBLES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from((None, *BID_KINDS)))
def test_every_promise_holds(name, seed, kind):
    """Whatever is bid and whatever of this kind goes wrong, the referee finds nothing."""
    referee = play(seed, TROUBLES[name], kind=kind)
    assert not referee.violations, str(referee.violations[0])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_limit_is_passed_when_everything_goes_wrong_at_once(seed):
    """Loss, delays of seconds, repeats, reordering, reboots, restarts and cuts together: what is drawn still fits."""
    referee = play(seed, Trouble(0.2, 2000, 0.2, 0.02, True, 0.02, 0.0, 0.1, 0.1))
    assert not [v for v in referee.violations if v.invariant == "possible draw"]


class Interleavings(RuleBasedStateMachine):
    """Arbiter, leases and emulated nodes, one message at a time, judged after every event."""

    @initialize(seed=st.integers(0, 2**32 - 1))
    def begin(self, seed):
        self.rng = np.random.default_rng(seed)
        self.world = World(random_site(self.rng, nodes=4), trusts_network=False)

    @rule(kind=st.sampled_from(BID_KINDS))
    def tick(self, kind):
        self.world.pass_time(300)
        self.world.tick(hostile_bids(self.world.fleet, self.rng, kind, self.world.plans))
        self.world.pass_time(700)

    @rule(i=st.integers(0, 3))
    def deliver(self, i):
        if self.world.commands[i]:
            self.world.deliver(i)

    @rule(i=st.integers(0, 3))
    def lose(self, i):
        if self.world.commands[i]:
            self.world.lose(i)

    @rule()
    def exchange(self):
        for i in range(4):
            while self.world.commands[i]:
                self.world.deliver(i)
            self.world.report(i)
            self.world.hear(i, len(self.world.reports[i]) - 1)

    @rule(ms=st.sampled_from([100, 1000, 6000]))
    def wait(self, ms):
        self.world.pass_time(ms)

    @rule()
    def restart(self):
        self.world.restart()

    def teardown(self):
        if hasattr(self, "world"):
            broken = [v for v in self.world.referee.violations if v.invariant == "possible draw"]
            assert not broken, str(broken[0])


def test_interleavings_of_single_messages_pass_no_limit():
    """Grants, losses, late deliveries, expiries and restarts in any order: what is drawn fits."""
    run_state_machine_as_test(Interleavings, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))


def small_site(reserve=0, sku="H100-SXM", **settings_):
    """Two racks of two nodes, limits in the middle of what caps can do."""
    domains = [PowerDomain("root", 4 * 5200, unknown_reserve=reserve)]
    domains += [PowerDomain(f"rack{r}", 2 * 5700, "root", unknown_reserve=reserve) for r in range(2)]
    nodes = [
        Node(f"n{i}", f"rack{i // 2}", sku, 8, 1000, "s", "prefill" if i % 2 else "decode", f"rack{i // 2}")
        for i in range(4)
    ]
    return Fleet.build("small", domains, nodes, [Service("s", "llama-70b")], **settings_)


def exchange(world, silent=()):
    for i in range(len(world.nodes)):
        if i not in silent:
            while world.commands[i]:
                world.deliver(i)
            world.report(i)
            world.hear(i, len(world.reports[i]) - 1)


ACTIONS = (
    "all heard",
    "node 0 hears nothing",
    "node 3's report is lost",
    "nobody hears",
    "expiry",
    "restart",
    "cut",
    "reboot",
)


def act(world, action, step):
    bids = Bids.neutral(1, world.fleet.pools, 4)
    bids.pool[0, :, 0] = (1.0, -1.0) if step % 2 else (-1.0, 1.0)
    if action == "restart":
        world.restart()
    elif action == "cut":
        world.demand(0, 4 * 3700)
    elif action == "reboot":
        world.reboot(2)
    elif action == "expiry":
        world.pass_time(5000)
    world.tick(bids)
    world.pass_time(200)
    if action == "node 3's report is lost":
        for i in range(4):
            while world.commands[i]:
                world.deliver(i)
    exchange(
        world,
        {"node 0 hears nothing": {0}, "node 3's report is lost": {3}, "nobody hears": set(range(4))}.get(action, ()),
    )
    world.pass_time(800)


def test_every_short_history_of_a_small_site_passes_no_limit():
    """Two racks of two nodes: every sequence of losses, expiries, restarts, cuts, reboots of length 4 is judged."""
    count = 0
    layer = [World(small_site(reserve=1), trusts_network=False)]
    for depth in range(4):
        following = []
        for world in layer:
            for action in ACTIONS:
                branch = world.copy()
                act(branch, action, depth)
                assert not [v for v in branch.referee.violations if v.invariant == "possible draw"], action
                count += 1
                following.append(branch)
        layer = following
    assert count == sum(len(ACTIONS) ** k for k in range(1, 5)) and count > 4000


@pytest.mark.parametrize("seed", [20, 38])
def test_a_reserve_covers_one_reboot_after_the_other(seed):
    """Guarantee 1: a node may reboot as soon as the one before it obeys a cap that it acknowledged."""
    assert not play(seed, Trouble(reboot=0.1), 60, is_strict=True).violations


FALLBACKS = {"fallbacks fit the deepest cut", "fallbacks fit the lowest limit"}


@pytest.mark.parametrize("seed", [24, 33, 50])
def test_fallbacks_that_were_not_acknowledged_are_absorbed_by_others(seed):
    """Guarantee 3: a node that did not acknowledge its new fallback in time is charged at the old one until it does."""
    rng = np.random.default_rng(seed)
    world = World(random_site(rng))
    Adversary(world, rng, None, Trouble(0.2, 2000, 0.2, 0.02, True, 0.02, 0.0, 0.1, 0.1)).play(60)
    assert not [v for v in world.referee.violations if v.invariant in FALLBACKS]


def fallen_w(world):
    """What the site draws once every lease that is held, or may still be taken, has expired."""
    return world.referee.bounds_w[0] + sum(n.fallback_w() for n in world.referee.nodes)


def test_others_make_room_for_a_fallback_that_cannot_be_lowered():
    """Guarantee 3, to the watt: within two graces of an announcement what all fall to fits it, deaf node and all."""
    fleet = small_site(deepest_cut_frac=0.0)
    world = World(fleet)
    bids = Bids.neutral(1, fleet.pools, 4)
    for _ in range(8):
        world.tick(bids)
        world.pass_time(200)
        exchange(world)
        world.pass_time(800)
    before_w = fallen_w(world)
    limit_w = before_w - 4000
    world.announce(0, limit_w, 60_000)
    for _ in range(6):
        world.tick(bids)
        world.pass_time(200)
        world.commands[0].clear()
        world.report(0)
        world.hear(0, len(world.reports[0]) - 1)
        exchange(world, {0})
        world.pass_time(800)
    assert fallen_w(world) <= limit_w < before_w
    assert not world.referee.violations


def tight_site():
    """Smallest caps that do not fit half of the limit, parked nodes that do; the second service matters more."""
    domains = [PowerDomain("root", 4 * (1000 + 5600))]
    nodes = [
        Node(
            f"n{i}",
            "root",
            "H100-SXM",
            8,
            1000,
            f"s{i % 2}",
            "decode",
            "f",
        )
        for i in range(4)
    ]
    services = [
        Service(f"s{s}", "llama-70b", priority=100 + s, kind="aggregated", min_decode_nodes=0) for s in range(2)
    ]
    return Fleet.build("tight", domains, nodes, services)


def test_nodes_park_when_leases_expire_where_smallest_caps_do_not_fit_what_is_announced():
    """Guarantee 3: the service dies before an announced limit below the smallest caps; parked, the fleet fits it."""
    fleet = tight_site()
    parked_w, least_w = int(fleet.node_static["parked_max_w"][0]), int(fleet.node_static["cap_min_w"][0])
    limit_w = 4 * 1000 + 2 * least_w + 2 * parked_w
    world = World(fleet)
    world.announce(0, limit_w, 30_000)
    for _ in range(4):
        world.tick(Bids.neutral(1, fleet.pools, 4))
        world.pass_time(200)
        exchange(world)
        world.pass_time(800)
    assert world.plan.node["fallback_w"][0].tolist() == [0, least_w, 0, least_w], "the lesser service parks"
    assert (world.plan.node["stage"][0] != PARKED).all(), "nobody is parked while leases live"
    world.pass_time(60_000)
    assert [n.stage == PARKED for n in world.nodes] == [True, False, True, False]
    assert not world.referee.violations
    # and a service that comes back finds them, and may let them serve again once there is room
    world.restart()
    world.demand(0, 4 * (1000 + 5600))
    for _ in range(10):
        world.tick(Bids.neutral(1, fleet.pools, 4))
        world.pass_time(200)
        exchange(world)
        world.pass_time(800)
    assert all(n.stage != PARKED for n in world.nodes) and (world.plan.node["fallback_w"][0] >= least_w).all()
    assert not world.referee.violations


def test_a_saving_bid_parks_nobody():
    """Guarantee 9: nodes are parked for lack of watts, never because a policy would rather save a window's."""
    floors_w = 4 * (1000 + 2400)
    domains = [PowerDomain("root", floors_w + 600, mean_w=floors_w + 500)]
    nodes = [Node(f"n{i}", "root", "H100-SXM", 8, 1000, "s", "decode", "f") for i in range(4)]
    fleet = Fleet.build("save", domains, nodes, [Service("s", "llama-70b", kind="aggregated")])
    world = World(fleet)
    bids = Bids.neutral(1, fleet.pools, 4)
    bids.fleet[:] = -1.0
    exchange(world)
    world.tick(bids)
    assert int(world.plan.fleet["shed_level"][0]) <= Shed.CAP


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=7)
def test_long_lags_survive_a_right_clock(seed):
    """A firmware lag of several ticks is waited for."""
    assert not play(seed, Trouble(loss=0.1), firmware_lag_s=2.5).violations


def test_long_lags_survive_a_jumping_clock():
    """Guarantee 1 rests on no clock: a jump releases nothing before the firmware's lag has passed."""
    assert not play(0, Trouble(jump=0.3), 30, firmware_lag_s=2.5).violations


def dying_site(ttl_s):
    """One feed whose limits caps fill, with leases of some length."""
    timing = Timing(lease_ttl_s=ttl_s, stale_s=ttl_s)
    nodes = [Node(f"n{i}", "root", "H100-SXM", 8, 1000, "s", "prefill" if i % 2 else "decode", "f") for i in range(4)]
    return Fleet.build("dying", [PowerDomain("root", 4 * 5600)], nodes, [Service("s", "llama-70b")], timing=timing)


def seconds_above_after_death(ttl_s, cut_frac=0.3, until_ms=12_000):
    """When the draw last exceeded an un-noticed cut, if the service dies with it just after a tick; seconds."""
    fleet = dying_site(ttl_s)
    world = World(fleet)
    for _ in range(10):
        world.tick(Bids.neutral(1, fleet.pools, 4))
        world.pass_time(200)
        exchange(world)
        world.pass_time(800)
    world.tick(Bids.neutral(1, fleet.pools, 4))
    for i in range(4):  # the last renewal arrives at once, and nothing after it
        while world.commands[i]:
            world.deliver(i)
    cut_w, cut_ms, last_s = int((1 - cut_frac) * 4 * 5600), world.now_ms, 0.0
    world.demand(0, cut_w)
    for _ in range(until_ms // 10):
        drawn_w = world.referee.bounds_w[0] + sum(n.draws_w(world.now_ms) for n in world.referee.nodes)
        if drawn_w > cut_w:
            last_s = (world.now_ms - cut_ms) / 1000
        world.pass_time(10)
    return fleet, world, last_s


def test_a_cut_that_the_service_does_not_survive_is_met_when_leases_have_run_out():
    """The hole of guarantee 2 has an exact bound: `dead_service_grace_s`, neither more nor less."""
    fleet, world, last_s = seconds_above_after_death(5.0)
    bound_s = fleet.timing.dead_service_grace_s
    assert fleet.timing.grace_s < bound_s == 6.0
    assert bound_s - 0.02 <= last_s < bound_s
    assert {v.invariant for v in world.referee.violations} == {"possible draw"}, "the referee tells of the hole"


def test_leases_as_short_as_the_grace_leave_no_hole():
    """With `lease_ttl_s <= grace_s - firmware_lag_s` guarantee 2 holds through the death of the service."""
    fleet, world, last_s = seconds_above_after_death(2.0)
    assert fleet.timing.dead_service_grace_s == fleet.timing.grace_s > last_s > 0.0
    assert not world.referee.violations
