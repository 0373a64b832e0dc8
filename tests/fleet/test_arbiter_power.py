"""Guarantees 1, 2, 5 and 10: whatever is bid, lost or late, what is possible fits what is in force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball.fleet.arbiter import initial_state
from flyball.fleet.arbiter.settle import settle
from flyball.fleet.bids import Bids
from flyball.fleet.plan import Reason, Shed
from flyball.fleet.tables import DECODE, PARKED
from flyball.fleet.topology import Fleet, Node, PowerDomain, Service

KINDS = ("random", "constant", "alternating", "nan", "wild", "power")
quick = settings(max_examples=25, deadline=None)


def charged_w(fleet, state, d, reserve=0):
    """Possible draw of a domain by the state's record, in Python integers."""
    row = fleet.domain_static[d]
    total = int(row["unmanaged_w"]) + int(row["non_gpu_max_w"])
    for i in range(int(row["node_start"]), int(row["node_end"])):
        s, n = fleet.node_static[i], state.node[0, i]
        total += int(s["parked_max_w"]) if n["is_parked"] else max(int(n["cap_possible_w"]), int(n["cap_cmd_w"]))
    return total


def settled(world, fleet, bids, demand_w=None, ticks=8, state=None):
    """Steady state under constant bids with prompt acknowledgements."""
    state = initial_state(fleet, 1, assume_acked=True) if state is None else state
    sn = world.warm(fleet, state, demand_w)
    for _ in range(ticks):
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
    return state, plan, sn


@quick
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    racks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    oversubscription=st.floats(1.05, 1.7),
    loss=st.sampled_from([0.0, 0.2, 0.6]),
    delay=st.integers(0, 3),
)
def test_possible_draw_never_exceeds_a_standing_limit(world, seed, kind, racks, oversubscription, loss, delay):
    """Guarantee 1, with commands and telemetry lost, late and reordered."""
    rng = np.random.default_rng(seed)
    fleet = world.site(tuple(racks), oversubscription)
    state = initial_state(fleet, 1, assume_acked=True)
    emulated = world.emulate(fleet, state, rng, loss, delay)
    for tick in range(25):
        state, plan = settle(fleet, state, emulated.look(), world.bids(fleet, rng, kind, tick))
        caps = plan.node["cap_w"][0]
        assert (caps >= fleet.node_static["cap_min_w"]).all()
        assert (caps <= fleet.node_static["cap_max_w"]).all()
        if loss <= 0.2:  # at 60 % nodes fall silent, and a silent node is charged more than it can draw
            emulated.act(plan, emulated.__class__.assert_within_limits)
        else:
            emulated.act(plan, lambda e: None)
            emulated.assert_within_limits()


@quick
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    depth=st.floats(0.02, 0.12),
    notice_s=st.sampled_from([0.0, 5.0, 8.0, 20.0]),
    where=st.integers(0, 2),
)
def test_cuts_are_met_before_they_start_or_within_the_grace(world, seed, kind, depth, notice_s, where):
    """Guarantee 2: an announced cut is met before its start, an un-noticed one within grace_s."""
    rng = np.random.default_rng(seed)
    fleet = world.site((4, 4), 1.25)
    state = initial_state(fleet, 1, assume_acked=True)
    emulated = world.emulate(fleet, state, rng)
    lower_w = int(fleet.domains[where].peak_w * (1 - depth))
    for tick in range(40):
        if tick == 8:
            if notice_s:
                emulated.announce(where, lower_w, notice_s)
            else:
                emulated.set_limit(where, lower_w)
        state, plan = settle(fleet, state, emulated.look(), world.bids(fleet, rng, kind, tick))
        assert plan.fleet["shed_level"][0] < Shed.INFEASIBLE
        emulated.act(plan, emulated.__class__.assert_within_limits)
    assert state.domain["in_force_w"][0, where] == lower_w


@quick
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS), reserve=st.integers(1, 2))
def test_reserve_covers_nodes_that_reboot_at_once(world, seed, kind, reserve):
    """Guarantee 1: `unknown_reserve` nodes may jump to their maximum together without a limit being passed."""
    rng = np.random.default_rng(seed)
    fleet = world.site((4, 4), 1.2, reserve=reserve)
    state = initial_state(fleet, 1, assume_acked=True)
    emulated = world.emulate(fleet, state, rng)
    victims = rng.choice(4, reserve, replace=False) + int(rng.choice([0, 4]))
    for tick in range(40):
        if tick == 10:
            for i in victims:
                emulated.nodes[i].reboot()
        if tick == 25:
            for i in victims:
                emulated.nodes[i].is_alive = True
        state, plan = settle(fleet, state, emulated.look(), world.bids(fleet, rng, kind, tick))
        emulated.act(plan, emulated.__class__.assert_within_limits)
    assert all(emulated.nodes[i].seq > 0 for i in victims)  # heard again after the reboot


@quick
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS))
def test_no_raise_makes_an_exceeded_limit_worse(world, seed, kind):
    """Where what is possible already exceeds a limit, the charge below it never rises."""
    rng = np.random.default_rng(seed)
    fleet = world.site((3, 3), 1.25)
    state = initial_state(fleet, 1)  # unknown nodes: charged at their maximum, above every limit
    sn = world.warm(fleet, state)
    sn.node["ack_seq"] = 0
    before = [charged_w(fleet, state, d) for d in range(len(fleet.domains))]
    for tick in range(15):
        heard = rng.uniform(size=6) < 0.3
        sn.time_s[0] += 1
        sn.node["cap_w"][0, heard] = state.node["cap_cmd_w"][0, heard]
        sn.node["ack_seq"][0, heard] = state.node["seq"][0, heard]
        state, _ = settle(fleet, state, sn, world.bids(fleet, rng, kind, tick))
        for d, domain in enumerate(fleet.domains):
            now = charged_w(fleet, state, d)
            assert now <= max(domain.peak_w, before[d])
            before[d] = now


@quick
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS))
def test_stale_and_silent_nodes_are_never_raised(world, seed, kind):
    """Guarantee 5: no telemetry, no raise."""
    rng = np.random.default_rng(seed)
    fleet = world.site((4, 4), 1.3)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state, rng.uniform(1000, 6000, 8))
    for tick in range(12):
        sn.node["age_s"][0] = rng.choice([0.5, 5.1, np.nan, 1e18], 8)
        sn.node["is_silent"][0] = (rng.uniform(size=8) < 0.2) | (sn.node["age_s"][0] == 1e18)
        is_blind = ~(sn.node["age_s"][0] <= 5.0) | (sn.node["is_silent"][0] != 0)
        before = state.node["cap_cmd_w"][0].copy()
        state, plan = settle(fleet, state, sn, world.bids(fleet, rng, kind, tick))
        assert (plan.node["cap_w"][0, is_blind] <= before[is_blind]).all()
        assert (state.node["cap_possible_w"][0, sn.node["is_silent"][0] != 0] == 5600).all()
        sn = world.follow(sn, state, plan)


@quick
@given(seed=st.integers(0, 2**32 - 1), low=st.floats(-1, 1), high=st.floats(-1, 1), pool=st.integers(0, 3))
def test_a_higher_watt_bid_never_lowers_ones_own_caps(world, seed, low, high, pool):
    """Guarantee 10: steady caps of a pool rise with its bid, node by node up to the last watt."""
    low, high = sorted((low, high))
    rng = np.random.default_rng(seed)
    fleet = world.site((4, 5), 1.3, services=2)
    demand_w = rng.uniform(1500, 6000, 9)
    bids = world.bids(fleet, rng, "power", 0)
    members = 2 * fleet.node_static["service"] + fleet.node_static["stage"] == pool
    sums = []
    for b in (low, high):
        bids.pool[0, pool, 0] = b
        sums.append(settled(world, fleet, bids, demand_w)[1].node["cap_w"][0])
    assert (sums[1][members] >= sums[0][members] - 1).all()
    assert sums[1][members].sum() >= sums[0][members].sum() - 1


@quick
@given(seed=st.integers(0, 2**32 - 1), reserve=st.integers(0, 1))
def test_steady_caps_stay_as_they_are(world, seed, reserve):
    """Guarantee 10: settling again with the same bids returns the same caps under the same sequence."""
    rng = np.random.default_rng(seed)
    fleet = world.site((4, 5), 1.3, reserve=reserve)
    bids = world.bids(fleet, rng, "power", 0)
    state, plan, sn = settled(world, fleet, bids, rng.uniform(1500, 6000, 9))
    _, plan_again = settle(fleet, state, sn, bids)
    assert (plan_again.node["cap_w"] == plan.node["cap_w"]).all()
    assert (plan_again.node["seq"] == plan.node["seq"]).all()


@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_permuting_nodes_of_a_domain_permutes_their_caps(world, seed):
    """Guarantee 10: ids decide nothing but the last watt."""
    rng = np.random.default_rng(seed)
    fleet = world.site((6,), 1.35, decode_every=99)
    bids = world.bids(fleet, rng, "power", 0)
    demand_w = rng.uniform(1500, 6000, 6)
    order = rng.permutation(np.arange(1, 6))  # node 0 is the decode node
    order = np.concatenate([[0], order])
    caps = settled(world, fleet, bids, demand_w)[1].node["cap_w"][0]
    permuted = settled(world, fleet, bids, demand_w[order])[1].node["cap_w"][0]
    assert np.abs(permuted - caps[order]).max() <= 1


@quick
@given(
    seed=st.integers(0, 2**32 - 1),
    racks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    oversubscription=st.floats(1.02, 1.6),
    reserve=st.integers(0, 1),
)
def test_no_whole_watt_is_left_over(world, seed, racks, oversubscription, reserve):
    """Every node is at its largest cap or below a domain whose watts are all spent."""
    rng = np.random.default_rng(seed)
    fleet = world.site(tuple(racks), oversubscription, reserve=reserve, deadband_w=0)
    n = len(fleet.nodes)
    state, plan, _ = settled(world, fleet, world.bids(fleet, rng, "power", 0), rng.uniform(1500, 6000, n), 12)
    if plan.fleet["shed_level"][0] > Shed.CAP:
        return
    caps = plan.node["cap_w"][0]
    left = []
    for d in range(len(fleet.domains)):
        row = fleet.domain_static[d]
        inside = slice(int(row["node_start"]), int(row["node_end"]))
        jumps = np.sort(fleet.node_static["cap_max_w"][inside] - caps[inside])[::-1]
        spare = int(row["peak_w"]) - charged_w(fleet, state, d) - int(jumps[: int(row["unknown_reserve"])].sum())
        assert spare >= 0
        left.append(spare)
    for i in range(n):
        is_full = caps[i] == fleet.node_static["cap_max_w"][i]
        is_bound = min(left[d] for d in fleet.path(int(fleet.node_static["domain"][i]))) == 0
        assert is_full or is_bound


def test_decode_floors_hold_until_they_do_not_fit(world):
    """Decode nodes keep their floor under a hostile bid, and lose it only as an emergency."""
    fleet = world.site((4, 4), 1.3)
    bids = Bids.neutral(1, fleet.pools, 8)
    bids.pool[0, DECODE, 0], bids.pool[0, 0, 0] = -1.0, 1.0
    state, plan, sn = settled(world, fleet, bids)
    decode = fleet.node_static["stage"] == DECODE
    assert (plan.node["cap_w"][0, decode] == fleet.node_static["decode_floor_w"][decode]).all()
    floors_w = int(fleet.node_static["non_gpu_max_w"].sum()) + 8 * 1600
    sn.domain["limit_w"][0, 0] = floors_w + 100
    state, plan = settle(fleet, state, sn, bids)
    assert plan.fleet["shed_level"][0] == Shed.EMERGENCY_CAP
    assert (plan.node["reason"][0, decode] == Reason.EMERGENCY_FLOOR).all()
    assert plan.node["cap_w"][0].sum() <= 8 * 1600 + 100


def test_infeasible_limits_park_by_priority_and_then_report(world):
    """Guarantee 9: caps, then parking from the service of lowest priority, then a report; never a crash."""
    fleet = world.site((8,), 1.3, services=2)
    bids = Bids.neutral(1, fleet.pools, 8)
    state, plan, sn = settled(world, fleet, bids)
    sn.domain["limit_w"][0, 0] = int(fleet.node_static["non_gpu_max_w"].sum()) + 8 * 1600 - 1500
    state, plan = settle(fleet, state, sn, bids)
    assert plan.fleet["shed_level"][0] == Shed.PARK
    parked = plan.node["stage"][0] == PARKED
    assert parked.sum() == 2
    assert (fleet.node_static["service"][parked] == 0).all()  # priority 100 goes before 101
    sn = world.follow(sn, state, plan)
    for _ in range(4):
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
    assert charged_w(fleet, state, 0) <= sn.domain["limit_w"][0, 0]
    sn.domain["limit_w"][0, 0] = 0
    state, plan = settle(fleet, state, sn, bids)
    assert plan.fleet["shed_level"][0] == Shed.INFEASIBLE
    assert (plan.node["stage"][0] == PARKED).all()


def test_nodes_parked_by_shedding_return_when_watts_return(world):
    """Shedding is undone with dwell and margin, one node per service and tick, to the stage it came from."""
    fleet = world.site((8,), 1.3, dwell_s=5.0)
    bids = Bids.neutral(1, fleet.pools, 8)
    state, plan, sn = settled(world, fleet, bids)
    before = plan.node["stage"][0].copy()
    peak_w = int(sn.domain["limit_w"][0, 0])
    sn.domain["limit_w"][0, 0] = int(fleet.node_static["non_gpu_max_w"].sum()) + 8 * 1600 - 1500
    for _ in range(4):
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
    assert (plan.node["stage"][0] == PARKED).sum() == 2
    sn.domain["limit_w"][0, 0] = peak_w
    for _ in range(12):
        state, plan = settle(fleet, state, sn, bids)
        assert charged_w(fleet, state, 0) <= peak_w
        sn = world.follow(sn, state, plan)
    assert (plan.node["stage"][0] == before).all()


def test_a_lower_cap_is_released_only_after_its_acknowledgement_and_the_firmware_lag(world):
    """Two-phase caps: read-back, then `firmware_lag_s`, then the watts are free."""
    fleet = world.site((2,), 1.3)
    state = initial_state(fleet, 1, assume_acked=True)
    bids = Bids.neutral(1, fleet.pools, 2)
    sn = world.warm(fleet, state)
    before = state.node["cap_possible_w"][0].copy()
    sn.domain["limit_w"][0, 0] -= 500
    state, plan = settle(fleet, state, sn, bids)
    assert (plan.node["cap_w"][0] < before).all()
    for _ in range(3):  # unacknowledged: sent again under the same sequence, nothing released
        sn.time_s[0] += 1
        state, again = settle(fleet, state, sn, bids)
        assert (again.node["seq"] == plan.node["seq"]).all()
        assert (state.node["cap_possible_w"][0] == before).all()
    sn = world.follow(sn, state, plan)
    state, _ = settle(fleet, state, sn, bids)
    assert (state.node["cap_possible_w"][0] == before).all()
    sn.time_s[0] += 1
    state, _ = settle(fleet, state, sn, bids)
    assert (state.node["cap_possible_w"] == plan.node["cap_w"]).all()


def test_a_cap_read_back_above_what_was_possible_is_believed_at_once(world):
    """A rebooted node or another cap writer is charged for what it runs, and told again."""
    fleet = world.site((4,), 1.3)
    bids = Bids.neutral(1, fleet.pools, 4)
    state, plan, sn = settled(world, fleet, bids)
    sn.node["cap_w"][0, 1] = 5600
    state, again = settle(fleet, state, sn, bids)
    assert state.node["cap_possible_w"][0, 1] == 5600
    assert again.node["seq"][0, 1] == plan.node["seq"][0, 1] + 1


@pytest.mark.parametrize("clock", ["backwards", "jumping", "nan", "standing"])
def test_a_lying_clock_breaks_no_limit(world, clock):
    """Time that stands, jumps, runs back or is NaN leaves the sums intact."""
    rng = np.random.default_rng(3)
    fleet = world.site((4, 4), 1.3)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state, rng.uniform(1000, 6000, 8))
    for tick in range(20):
        sn.time_s[0] = {
            "backwards": -10.0 * tick,
            "jumping": (tick % 2) * 1e12,
            "nan": np.nan,
            "standing": 5.0,
        }[clock]
        state, plan = settle(fleet, state, sn, world.bids(fleet, rng, "random", tick))
        for d, domain in enumerate(fleet.domains):
            assert charged_w(fleet, state, d) <= domain.peak_w
        sn = world.follow(sn, state, plan, 0.0)


@quick
@given(
    seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(("constant", "power")), notice_s=st.sampled_from([0.0, 8.0])
)
def test_a_node_that_cannot_obey_counts_at_what_it_reads_back(world, seed, kind, notice_s):
    """Guarantee 1 with a lost GPU: its node acknowledges and stays above its cap, and the others make room for it."""
    rng = np.random.default_rng(seed)
    fleet = world.site((4, 4), 1.25)
    state = initial_state(fleet, 1, assume_acked=True)
    emulated = world.emulate(fleet, state, rng)
    i = int(rng.integers(8))
    broken = emulated.nodes[i]
    receive, stuck_w = broken.receive, 0

    def obey(row, now_s, lag_s):
        row = row.copy()
        row["cap_w"] = max(int(row["cap_w"]), stuck_w)
        receive(row, now_s, lag_s)

    for tick in range(45):
        if tick == 5:
            stuck_w, broken.receive = min(broken.cap_w, 2100), obey
        if tick == 20 and notice_s:
            emulated.announce(0, int(fleet.domains[0].peak_w * 0.9), notice_s)
        elif tick == 20:
            emulated.set_limit(0, int(fleet.domains[0].peak_w * 0.9))
        look = emulated.look()
        look.node["demand_w"] = 5000.0  # every watt is wanted, so that none is spare by chance
        look.node["xid"][0, i] = 79 if tick >= 5 else 0
        bids = world.bids(fleet, rng, kind, tick)
        bids.node[:] = 0.0  # nobody else takes the drain that the broken node needs
        state, plan = settle(fleet, state, look, bids)
        emulated.act(plan, emulated.__class__.assert_within_limits)
    assert plan.node["is_drained"][0, i] and plan.node["cap_w"][0, i] <= stuck_w
    assert state.node["cap_possible_w"][0, i] == stuck_w


def test_a_late_renewal_after_a_fallback_is_charged(world):
    """A node that fell back may still take a renewal of the command that it acknowledges: charged until it cannot."""
    fleet = world.site((4,), 1.2)
    bids = Bids.neutral(1, fleet.pools, 4)
    state, plan, sn = settled(world, fleet, bids)
    held_w = int(sn.node["cap_w"][0, 0])
    sn.domain["limit_w"][0, 0] = fleet.domains[0].peak_w - 4000
    state, plan = settle(fleet, state, sn, bids)
    assert plan.node["cap_w"][0, 0] < held_w
    seq = sn.node["ack_seq"][0, 0]
    for _ in range(5):
        sn = world.follow(sn, state, plan)
        sn.node["ack_seq"][0, 0], sn.node["cap_w"][0, 0] = seq, 1600
        state, plan = settle(fleet, state, sn, bids)
        assert state.node["cap_possible_w"][0, 0] >= held_w
    for _ in range(3):
        sn = world.follow(sn, state, plan)
        state, plan = settle(fleet, state, sn, bids)
    assert state.node["cap_possible_w"][0, 0] == plan.node["cap_w"][0, 0] < held_w


def with_ballast(peak_w, least=0):
    """Two nodes of chat and three of a training service that goes first."""
    services = [
        Service("ballast", "llama-70b", min_prefill_nodes=0, min_decode_nodes=least, priority=50, kind="training"),
        Service("chat", "llama-70b", min_prefill_nodes=0, priority=200, kind="aggregated"),
    ]
    served = ("chat", "chat", "ballast", "ballast", "ballast")
    nodes = [Node(f"n{i}", "root", "H100-SXM", 8, 2800, s, "decode", "f") for i, s in enumerate(served)]
    return Fleet.build("ballast", [PowerDomain("root", peak_w)], nodes, services)


def test_a_training_gang_yields_its_watts_down_to_the_smallest_cap(world):
    """The decode floor guards a latency; a gang only slows down, so what it is not bid goes to those who serve."""
    fleet = with_ballast(5 * 2800 + 2 * 5600 + 3 * 1700)
    bids = Bids.neutral(1, fleet.pools, 5)
    bids.pool[0, DECODE, 0], bids.pool[0, 2 + DECODE, 0] = -1.0, 1.0
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    for _ in range(30):
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
    caps = plan.node["cap_w"][0]
    assert (caps[2:] < fleet.node_static["decode_floor_w"][2:]).all() and (caps[:2] > 5000).all()


def test_a_deep_cut_parks_all_ballast_before_any_node_that_serves(world):
    """Guarantee 9: with no least number of nodes, the lowest priority is shed to its last node first."""
    fleet = with_ballast(5 * 2800 + 5 * 5600)
    bids = Bids.neutral(1, fleet.pools, 5)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    parked_w = int(fleet.node_static["parked_max_w"][0])
    sn.domain["limit_w"][0, 0] = 5 * 2800 + 2 * 1600 + 3 * parked_w
    for _ in range(40):
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
    assert (plan.node["stage"][0] == PARKED).tolist() == [False, False, True, True, True]
    sn.domain["limit_w"][0, 0] = fleet.domains[0].peak_w
    for _ in range(400):
        state, plan = settle(fleet, state, sn, bids)
        sn = world.follow(sn, state, plan)
    assert not (plan.node["stage"][0] == PARKED).any()


def test_silent_nodes_do_not_free_the_reserve(world):
    """Guarantee 1: while one node is silent, nobody is raised into watts that another node's reboot would need."""
    fleet = world.site((4, 4), 1.3, reserve=1)
    bids = Bids.neutral(1, fleet.pools, 8)
    state, plan, sn = settled(world, fleet, bids)
    bids.pool[0, :, 0] = (1.0, -1.0)
    for _ in range(6):
        sn = world.follow(sn, state, plan)
        sn.node["is_silent"][0, 3], sn.node["is_up"][0, 3] = 1, 0
        state, plan = settle(fleet, state, sn, bids)
        row = state.node[0]
        possible_w = np.where(row["silent_w"] > 0, row["silent_w"], row["cap_possible_w"])
        jump_w = fleet.node_static["cap_max_w"] - possible_w
        total_w = int(possible_w.sum() + jump_w.max() + fleet.node_static["non_gpu_max_w"].sum())
        assert total_w <= fleet.domains[0].peak_w
