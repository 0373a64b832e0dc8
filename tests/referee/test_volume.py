"""Volume checks can fail, steady caps are the optimum, a lying site file is noticed, and budgets clamp scaling."""

import numpy as np
import pytest

from flyball.experiments.bench import run_bench
from flyball.experiments.referee import draws, fast, optimum
from flyball.experiments.referee.sites import random_site
from flyball.experiments.referee.world import World
from flyball.fleet.bids import Bids
from flyball.fleet.errors import BadInput
from flyball.fleet.plan import Shed
from flyball.fleet.tables import PARKED, PREFILL
from flyball.fleet.topology import Fleet, Node, PowerDomain, Service, Timing


def test_soak_finds_nothing_and_counts_what_it_did():
    """Some hundred thousand node-settlements under hostile bids and losses break no promise."""
    figures = run_bench("soak", node_settlements=100_000, seed=3)["figures"]
    assert figures["node_settlements"] >= 100_000 and figures["violations"] == 0
    assert figures["lost_messages"] > 0 and figures["cuts"] > 0 and figures["exact_events"] > 0
    with pytest.raises(BadInput, match="node-settlements"):
        run_bench("soak", node_settlements=0)


@pytest.mark.parametrize("what", ["release", "range"])
def test_the_volume_check_notices_a_broken_arbiter(what, monkeypatch):
    """An arbiter that counts lower caps as released at once, or leaves the product's range, is counted."""
    right = fast.settle_kernel

    def wrong(*tables):
        state, plan = tables[8], tables[16]
        if what == "release":
            state["cap_possible_w"], state["hold_s"] = state["cap_cmd_w"], 0.0
        right(*tables)
        if what == "range":
            plan["cap_w"] += 100_000

    monkeypatch.setattr(fast, "settle_kernel", wrong)
    found = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        world = fast.FastWorld(random_site(rng, nodes=12), 16, rng)
        for _ in range(30):
            world.step()
        found += world.violations
    assert found > 0


def test_steady_caps_are_the_optimum_of_the_same_problem():
    """Water-filling is the lexicographic max-min of linear programs but for whole watts, and satisfies no less."""
    found = optimum.compare(40, seed=1)
    assert found["max_distance_w"] < 3.0  # rounding to whole watts moves a last watt or two between nodes
    assert found["share_not_below"] == 1.0
    with pytest.raises(BadInput, match="trees"):
        optimum.compare(0)


def test_draws_report_every_case_and_time_above():
    """Rows part truth within the declared bound from truth above it; within it nothing trips."""
    found = draws.draw(4, seed=5)
    assert len(found["rows"]) == 8 and sum(r["draws"] for r in found["rows"]) == 4
    for row in found["rows"]:
        assert row["seconds_above"] == sum(row["depth_s"])
        if row["declared_holds"]:
            assert row["breaker_trips"] == 0
    with pytest.raises(BadInput, match="draws"):
        draws.draw(1)


def clamp_site(peak_w):
    nodes = [Node(f"n{i}", "root", "H100-SXM", 8, 1000, "s", "prefill" if i % 2 else "decode", "f") for i in range(4)]
    timing = Timing(dwell_s=0.0, moves_per_min=60.0)
    return Fleet.build("clamp", [PowerDomain("root", peak_w)], nodes, [Service("s", "llama-70b")], timing=timing)


def run(world, bids, ticks):
    for _ in range(ticks):
        world.tick(bids)
        world.pass_time(200)
        for i in range(len(world.nodes)):
            while world.commands[i]:
                world.deliver(i)
            world.report(i)
            world.hear(i, len(world.reports[i]) - 1)
        world.pass_time(800)
    return world.plan


def node_bid(fleet, value):
    bids = Bids.neutral(1, fleet.pools, 4)
    bids.pool[0, :, 1] = value
    return bids


# FIELD.md section 4, power admission of the documented planner, case by case
def test_a_replica_is_its_cap_times_its_gpus():
    """Replica watts = cap x GPUs."""
    assert (clamp_site(40_000).node_static["cap_max_w"] == 700 * 8).all()


def test_the_ceiling_beats_the_floor():
    """Where the least number of replicas does not fit the budget, the budget wins."""
    world = World(clamp_site(40_000))
    world.demand(0, 4 * 1000 + 2 * 1600 + 2 * 664)
    plan = run(world, node_bid(world.fleet, 0.0), 6)
    assert plan.fleet["shed_level"][0] >= Shed.PARK and (plan.node["stage"][0] == PARKED).any()
    assert not world.referee.violations


def test_peak_counts_whatever_is_ready_or_targeted_and_the_scale_down_leg_goes_first():
    """Peak = sum max(ready, target) x W: a scale-up waits for the acknowledged watts of the scale-down."""
    world = World(clamp_site(4 * 1000 + 4 * 2600))
    run(world, node_bid(world.fleet, -1.0), 25)
    parked = (world.plan.node["stage"][0] == PARKED).sum()
    assert parked > 0
    more_prefill = node_bid(world.fleet, 0.0)
    more_prefill.pool[0, PREFILL, 1] = 1.0
    run(world, more_prefill, 40)
    assert (world.plan.node["stage"][0] == PARKED).sum() < parked
    assert not world.referee.violations


def test_scale_up_is_held_while_a_rollout_runs():
    """A service whose nodes load a stage starts no more than its rate of moves allows, one at a time."""
    world = World(clamp_site(40_000))
    run(world, node_bid(world.fleet, -1.0), 25)
    run(world, node_bid(world.fleet, 1.0), 10)
    assert not [v for v in world.referee.violations if v.invariant in ("move rate", "one move at a time")]
    assert (world.plan.node["stage"][0] == PREFILL).any()
