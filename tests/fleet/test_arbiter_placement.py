"""Guarantee 8: placement follows queues, gangs, fractions, topology and power; bids only order feasible nodes."""

from dataclasses import replace
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball.experiments.referee.placement import PlacementJudge
from flyball.fleet.arbiter.placement import place
from flyball.fleet.errors import SiteError
from flyball.fleet.placement import (
    Eviction,
    PlacementNodes,
    Placements,
    Pod,
    Queue,
    Wait,
    Workload,
    WorkState,
    check_queues,
    check_workload,
)
from flyball.fleet.topology import Fleet, Node, PowerDomain, Service

QUICK = settings(max_examples=150, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def site(racks=(2, 2), gpus=4, skus=("H100-SXM",), order=None) -> Fleet:
    """A root, two rows, racks below them in turn; `order` permutes the nodes."""
    domains = [PowerDomain("root", 10**7), PowerDomain("row0", 10**7, "root"), PowerDomain("row1", 10**7, "root")]
    nodes = []
    for r, size in enumerate(racks):
        domains.append(PowerDomain(f"rack{r}", 10**7, f"row{r % 2}"))
        for _ in range(size):
            i = len(nodes)
            nodes.append(Node(f"n{i:02}", f"rack{r}", skus[i % len(skus)], gpus, 0, "s", "decode", f"rack{r}"))
    if order is not None:
        nodes = [nodes[i] for i in order]
    return Fleet.build("test", domains, nodes, [Service("s", "llama-70b", min_prefill_nodes=0, kind="aggregated")])


def nodes_of(fleet: Fleet, gpu_w=300, wake_w=0, accepts=True) -> PlacementNodes:
    """Every node healthy and alike, unless arrays say otherwise."""
    n = len(fleet.nodes)
    return PlacementNodes(
        fleet.node_static["gpus"].copy(),
        np.broadcast_to(accepts, n).copy(),
        np.broadcast_to(wake_w, n).astype(np.int64),
        np.broadcast_to(gpu_w, n).astype(np.int64),
    )


def run(fleet, queues, work, nodes=None, bids=0.0, headroom_w=10**7, now_s=1000.0):
    """One cycle, judged."""
    nodes = nodes_of(fleet) if nodes is None else nodes
    headroom_w = np.broadcast_to(headroom_w, len(fleet.domains)).astype(np.int64)
    result = place(fleet, queues, work, nodes, np.broadcast_to(bids, len(fleet.nodes)), headroom_w, now_s)
    assert PlacementJudge(fleet, queues, work, nodes, headroom_w, now_s, result).judge() == []
    return result


def names(placed) -> set[str]:
    """Names of gangs in a list of decisions."""
    return {p.workload for p in placed}


ONE = (Queue("q", quota=-1),)


# ── hostile worlds before the judge ──────────────────────────────────────────────────────────────────────
def world_of(seed: int):
    """A small site, queues of two levels, gangs that run, leave and wait, any bids and any headroom."""
    rng = np.random.default_rng(seed)
    skus = ("H100-SXM", "B200-SXM")[: rng.integers(1, 3)]
    fleet = site(tuple(rng.integers(1, 4, rng.integers(1, 4))), int(rng.integers(1, 5)), skus)
    n = len(fleet.nodes)
    is_plain = rng.random() < 0.5
    nodes = PlacementNodes(
        np.where(rng.random(n) < 0.1, 0, fleet.node_static["gpus"]),
        rng.random(n) < 0.85,
        np.zeros(n, np.int64) if is_plain else np.where(rng.random(n) < 0.3, rng.integers(0, 900, n), 0),
        np.full(n, 300) if is_plain else rng.choice([0, 200, 430], n),
    )
    queues = [
        Queue("top", None, int(rng.integers(-1, 900)), weight=int(rng.integers(0, 4))),
        Queue("side", None, int(rng.integers(-1, 900)), priority=int(rng.integers(0, 2))),
        *(
            Queue(
                f"leaf{k}",
                "top",
                int(rng.integers(-1, 500)),
                -1 if rng.random() < 0.6 else int(rng.integers(500, 1500)),
                int(rng.integers(0, 4)),
                int(rng.integers(0, 2)),
                float(rng.choice([0, 600])),
                float(rng.choice([0, 600])),
                rng.random() < 0.2,
            )
            for k in range(int(rng.integers(1, 4)))
        ),
    ]
    leaves = [q.name for q in queues if q.name != "top"]
    work, free = [], {(i, g): 100 for i in range(n) for g in range(int(nodes.gpus[i]))}
    for k in range(int(rng.integers(1, 25))):
        w = Workload(
            f"w{rng.permutation(1000)[0]:03}-{k}",
            str(rng.choice(leaves)),
            int(rng.choice([1, 1, 1, 2, 3])),
            int(rng.choice([20, 33, 50, 100, 100, 200, 300])),
            int(rng.choice([0, 0, 30_000, 100_000])),
            priority=int(rng.choice([50, 50, 75, 100, 125])),
            require=int(rng.integers(0, 3)) if rng.random() < 0.3 else 0,
            prefer=int(rng.integers(0, 3)),
            submitted_s=float(rng.integers(0, 900)),
            started_s=float(rng.integers(0, 1000)),
        )
        if rng.random() < 0.6:
            w = _running(w, fleet, free, rng)
        work.append(w)
    headroom_w = rng.integers(-300, 4000, len(fleet.domains))
    bids = rng.choice([0.0, 1.0, -1.0, np.nan, np.inf, 0.3], n)
    return fleet, queues, work, nodes, bids, headroom_w, rng


def _running(w: Workload, fleet, free, rng) -> Workload:
    """The same gang as if it ran somewhere, where there is room; its topology is not asked about."""
    judge = PlacementJudge(fleet, ONE, [w], nodes_of(fleet), [], 0.0, Placements())
    share, on = judge.shares[w.name], []
    need, slice_ = max(1, share // 100), min(share, 100)
    for _ in range(w.pods):
        for n in rng.permutation(len(fleet.nodes)):
            open_ = [g for (i, g), left in free.items() if i == n and left >= slice_]
            if len(open_) >= need and fleet.nodes[n].sku in judge.products(w):
                on.append(Pod(int(n), tuple(open_[:need])))
                for g in open_[:need]:
                    free[n, g] -= slice_
                break
        else:
            for pod in on:
                for g in pod.gpus:
                    free[pod.node, g] += slice_
            return w
    state = WorkState.RUNNING if rng.random() < 0.8 else WorkState.LEAVING
    return replace(w, on=tuple(on), state=state, is_broken=bool(rng.random() < 0.1))


@QUICK
@given(SEEDS)
def test_no_cycle_breaks_a_clause_whatever_the_bids(seed):
    """Gangs, GPUs, watts, limits, quotas, evictions, order and idleness, before a judge that shares no code."""
    fleet, queues, work, nodes, bids, headroom_w, _ = world_of(seed)
    result = place(fleet, queues, work, nodes, bids, headroom_w, 1000.0)
    assert PlacementJudge(fleet, queues, work, nodes, headroom_w, 1000.0, result).judge() == []


@QUICK
@given(SEEDS)
def test_the_order_of_the_entries_changes_nothing(seed):
    """Permuting nodes, queues and workloads permutes the decision: ties break by id."""
    fleet, queues, work, nodes, bids, headroom_w, rng = world_of(seed)
    before = place(fleet, queues, work, nodes, bids, headroom_w, 1000.0)
    order = np.concatenate(
        [s + rng.permutation(e - s) for s, e in _rack_spans(fleet)]
    )  # nodes of a rack lie side by side: only their order within it is free
    shuffled = replace(fleet, nodes=tuple(fleet.nodes[i] for i in order))
    where = {int(old): new for new, old in enumerate(order)}
    moved = [replace(w, on=tuple(Pod(where[p.node], p.gpus) for p in w.on)) for w in work]
    moved = [moved[i] for i in rng.permutation(len(moved))]
    arrays = PlacementNodes(*(getattr(nodes, f)[order] for f in ("gpus", "accepts", "wake_w", "gpu_w")))
    mixed = [queues[i] for i in rng.permutation(len(queues))]
    after = place(shuffled, mixed, moved, arrays, bids[order], headroom_w, 1000.0)
    assert after.waits == before.waits and after.evicted == before.evicted and after.fair_share == before.fair_share
    for a, b in ((before.started, after.started), (before.nominated, after.nominated)):
        assert [(p.workload, [(where[x.node], x.gpus) for x in p.on]) for p in a] == [
            (p.workload, [(x.node, x.gpus) for x in p.on]) for p in b
        ]


def _rack_spans(fleet):
    spans = {(int(d["node_start"]), int(d["node_end"])) for d in fleet.domain_static if d["depth"] == 2}
    return sorted(spans)


@QUICK
@given(SEEDS)
def test_bids_never_decide_whether_a_gang_may_start(seed):
    """Alone in the fleet, where a GPU costs the same everywhere, a gang starts under any bids or under none."""
    fleet, queues, work, nodes, bids, headroom_w, _ = world_of(seed)
    plain = replace(nodes, wake_w=np.zeros_like(nodes.wake_w), gpu_w=np.full_like(nodes.gpu_w, 300))
    held = [w for w in work if w.state == WorkState.RUNNING and not w.is_broken]
    for w in [w for w in work if w.state == WorkState.PENDING][:3]:
        neutral = place(fleet, queues, [*held, w], plain, 0 * headroom_w[:1], headroom_w, 1000.0)
        steered = place(fleet, queues, [*held, w], plain, bids, headroom_w, 1000.0)
        assert names(neutral.started) == names(steered.started)


def test_a_gang_starts_exactly_when_some_assignment_of_its_pods_exists():
    """Against every assignment of pods to nodes that there is: occupied GPUs, watts of racks, rows and root."""
    fleet, rng = site((2, 1, 1), gpus=2), np.random.default_rng(5)
    outcomes = []
    for _ in range(60):
        headroom_w = np.array([rng.integers(0, 8), *rng.integers(0, 6, 5)]) * 300
        headroom_w = headroom_w[: len(fleet.domains)]
        holders = [
            Workload(f"r{n}{g}", "q", state=WorkState.RUNNING, on=(Pod(n, (g,)),))
            for n in range(4)
            for g in range(2)
            if rng.random() < 0.3
        ]
        gang = Workload("gang", "q", int(rng.integers(1, 5)), int(rng.choice([100, 200])), priority=40)
        queue = (Queue("q", quota=-1, preempt_min_s=1e6),)
        result = run(fleet, queue, [*holders, gang], headroom_w=headroom_w)
        exists = _exists(fleet, holders, gang, headroom_w)
        assert (names(result.started) == {"gang"}) == exists
        outcomes.append(exists)
    assert 10 < sum(outcomes) < 50


def _exists(fleet, holders, gang, headroom_w) -> bool:
    idle = [2 - sum(w.on[0].node == n for w in holders) for n in range(4)]
    each = gang.gpu // 100
    for counts in product(range(3), repeat=4):
        if sum(counts) != gang.pods or any(c * each > i for c, i in zip(counts, idle, strict=True)):
            continue
        watts = np.zeros(len(fleet.domains))
        for n, c in enumerate(counts):
            watts[fleet.path(int(fleet.node_static["domain"][n]))] += 300 * each * c
        if (watts <= headroom_w).all():
            return True
    return False


def test_of_equal_gangs_as_many_start_as_the_best_packing_holds():
    """Against every way to pack them: gangs of equal pods that must share a rack leave none out that could run."""
    fleet, rng = site((2, 1), gpus=2), np.random.default_rng(6)
    for _ in range(30):
        holders = [
            Workload(f"r{n}{g}", "q", state=WorkState.RUNNING, on=(Pod(n, (g,)),))
            for n in range(3)
            for g in range(2)
            if rng.random() < 0.25
        ]
        pods, require = int(rng.integers(1, 4)), int(rng.choice([0, 2]))
        work = [Workload(f"w{k}", "q", pods, require=require) for k in range(6)]
        queue = (Queue("q", quota=-1, preempt_min_s=1e6),)
        started = names(run(fleet, queue, [*holders, *work]).started)
        idle = [2 - sum(w.on[0].node == n for w in holders) for n in range(3)]
        assert len(started) == _most_gangs(idle, pods, [(0, 1), (2,)] if require else [(0, 1, 2)])


def _most_gangs(idle: list[int], pods: int, domains) -> int:
    """Most gangs that fit, by trying every multiset of nodes for the next one."""
    best = 0
    for domain in domains:
        for nodes in combinations_with_replacement(domain, pods):
            left = [i - nodes.count(n) for n, i in enumerate(idle)]
            if min(left) >= 0:
                best = max(best, 1 + _most_gangs(left, pods, domains))
    return best


# ── queues ───────────────────────────────────────────────────────────────────────────────────────────────
def many(queue: str, count: int, **kwargs) -> list[Workload]:
    return [Workload(f"{queue}-{k:03}", queue, submitted_s=k, **kwargs) for k in range(count)]


def test_what_is_above_the_quotas_goes_by_weight():
    """FIELD.md section 3: of 100 GPUs, two queues with a quota of 10 and weights 3:1 get 70 and 30."""
    fleet = site((5, 5), gpus=10)
    queues = (Queue("a", quota=1000, weight=3), Queue("b", quota=1000, weight=1))
    result = run(fleet, queues, many("a", 150) + many("b", 150))
    assert result.fair_share == {"a": 7000, "b": 3000}
    assert sum(name.startswith("a") for name in names(result.started)) == 70 and len(result.started) == 100


def test_queues_above_share_what_their_children_deserve():
    """A parent's share is divided among its children; what one does not want, its siblings get first."""
    fleet = site((5, 5), gpus=10)
    queues = (
        Queue("east", quota=5000),
        Queue("west", quota=5000),
        Queue("e1", "east", quota=2500),
        Queue("e2", "east", quota=2500),
        Queue("w1", "west", quota=5000),
    )
    result = run(fleet, queues, many("e1", 10) + many("e2", 80) + many("w1", 80))
    assert result.fair_share == {"east": 5000, "west": 5000, "e1": 1000, "e2": 4000, "w1": 5000}
    assert sum(name.startswith("e2") for name in names(result.started)) == 40


def test_higher_queue_priorities_take_what_is_left_first():
    """Over-quota is split by tier before it is split by weight."""
    queues = (Queue("a", quota=400, priority=1), Queue("b", quota=400, weight=9))
    result = run(site((2, 2)), queues, many("a", 20) + many("b", 20))
    assert result.fair_share == {"a": 1200, "b": 400}


def test_limits_bind_although_gpus_idle():
    """A queue never holds more than its limit, nor does the queue above it; 0 is no more at all."""
    queues = (Queue("top", limit=300), Queue("a", "top", limit=200), Queue("b", "top"), Queue("c", limit=0))
    result = run(site(), queues, many("a", 5) + many("b", 5) + many("c", 5))
    assert len(result.started) == 3 and set(result.waits.values()) == {Wait.QUEUE_LIMIT}
    assert sum(n.startswith("a") for n in names(result.started)) <= 2


def test_what_cannot_be_preempted_stays_within_the_quota():
    """Priorities from 100 up run within quota only, whatever idles."""
    result = run(site(), (Queue("q", quota=200),), many("q", 5, priority=125))
    assert len(result.started) == 2 and set(result.waits.values()) == {Wait.OVER_QUOTA}


@pytest.mark.parametrize("is_strict", [False, True])
def test_smaller_gangs_backfill_unless_the_queue_is_strict(is_strict):
    """A gang that does not fit lets smaller ones pass, but none as large; a strict queue lets nothing pass."""
    work = [
        Workload("large", "q", 20, submitted_s=0),
        Workload("larger", "q", 21, submitted_s=1),
        Workload("small", "q", 1, submitted_s=2),
    ]
    result = run(site(), (Queue("q", quota=-1, is_strict=is_strict),), work)
    assert names(result.started) == (set() if is_strict else {"small"})
    assert result.waits["large"] == Wait.NO_ROOM
    assert result.waits["larger"] == (Wait.BEHIND if is_strict else Wait.LIKE_EARLIER)


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────────
def test_shares_fill_the_gpus_in_use_before_they_open_another():
    """Two halves share a GPU, a third opens the next one; the watts of a GPU in use are paid once."""
    fleet = site((1,), gpus=4)
    result = run(fleet, ONE, many("q", 3, gpu=50), headroom_w=600)
    assert sorted(p.on[0].gpus for p in result.started) == [(0,), (0,), (1,)]
    assert run(fleet, ONE, many("q", 3, gpu=50), headroom_w=300).waits == {"q-002": Wait.NO_POWER}


def test_memory_raises_a_share_and_rules_products_out():
    """A share holds the memory asked; a GPU with less memory is never used."""
    mixed = site((2,), skus=("H100-SXM", "B200-SXM"))
    result = run(mixed, ONE, [Workload("big", "q", memory_mib=100_000)])
    assert mixed.nodes[result.started[0].on[0].node].sku == "B200-SXM"
    two = run(site((1,), gpus=1), ONE, many("q", 2, gpu=10, memory_mib=40_000))
    assert len(two.started) == 1  # 40,000 of 76,293 MiB are 53 hundredths, not 10
    assert run(mixed, ONE, [Workload("huge", "q", memory_mib=10**6)]).waits == {"huge": Wait.NO_ROOM}


def test_gangs_share_the_domain_that_they_require_and_fill_the_one_they_prefer():
    """Required: within one rack or not at all. Preferred: within one where one holds it, else wherever it fits."""
    fleet = site((1, 2))
    for kwargs, count in (({"require": 2}, 8), ({"prefer": 2}, 8)):
        on = run(fleet, ONE, [Workload("w", "q", count, **kwargs)]).started[0].on
        assert {fleet.nodes[p.node].domain for p in on} == {"rack1"}
    assert not run(fleet, ONE, [Workload("w", "q", 9, require=2)]).started
    assert run(fleet, ONE, [Workload("w", "q", 9, prefer=2)]).started
    on = run(fleet, ONE, [Workload("w", "q", 4, prefer=2)]).started[0].on
    assert {fleet.nodes[p.node].domain for p in on} == {"rack0"}  # the fullest that holds it


def test_the_best_bid_among_feasible_nodes_wins():
    """Between nodes that would do, the bid decides; NaN is neutral; a bid opens no closed node."""
    fleet = site((2, 2))
    for best in range(4):
        bids = np.where(np.arange(4) == best, 0.5, np.nan)
        assert run(fleet, ONE, many("q", 1), bids=bids).started[0].on[0].node == best
        closed = nodes_of(fleet, accepts=np.arange(4) != best)
        assert run(fleet, ONE, many("q", 1), closed, bids).started[0].on[0].node != best


# ── power ────────────────────────────────────────────────────────────────────────────────────────────────
def test_watts_are_reserved_in_every_domain_before_a_gang_starts():
    """The tightest domain decides, whichever level it is at."""
    fleet = site((2, 2))
    for name in ("root", "row0", "rack0"):
        headroom_w = np.full(len(fleet.domains), 10**6)
        headroom_w[fleet.domain_index[name]] = 1000  # three GPUs
        started = names(run(fleet, ONE, many("q", 16), headroom_w=headroom_w).started)
        assert len(started) == (3 if name == "root" else 11)


def test_waking_a_parked_node_is_paid_once_and_only_if_it_must_be():
    """Awake nodes go first; a parked one is woken when its watts fit too, and is named."""
    fleet = site((2,))
    nodes = nodes_of(fleet, wake_w=[1000, 0])
    result = run(fleet, ONE, many("q", 8), nodes, headroom_w=4 * 300)
    assert len(result.started) == 4 and {p.on[0].node for p in result.started} == {1}
    result = run(fleet, ONE, many("q", 8), nodes, headroom_w=1000 + 6 * 300)
    assert len(result.started) == 6 and 0 in result.wake


def test_cheaper_watts_are_found_where_bids_point_elsewhere():
    """A gang that the preferred nodes' watts would rule out goes to nodes that need fewer."""
    fleet = site((2,))
    nodes = nodes_of(fleet, gpu_w=np.array([430, 300]))
    result = run(fleet, ONE, many("q", 1, pods=4), nodes, bids=np.array([1.0, 0.0]), headroom_w=1200)
    assert {p.node for p in result.started[0].on} == {1}


# ── evictions ────────────────────────────────────────────────────────────────────────────────────────────
def fill(queue: str, fleet, count: int, **kwargs) -> list[Workload]:
    """Running gangs of one GPU on the first GPUs of the site."""
    at = [(n, g) for n in range(len(fleet.nodes)) for g in range(fleet.nodes[n].gpus)]
    return [
        Workload(f"{queue}-run{k:03}", queue, state=WorkState.RUNNING, on=(Pod(n, (g,)),), started_s=k, **kwargs)
        for k, (n, g) in enumerate(at[:count])
    ]


def test_a_queue_below_its_share_reclaims_until_shares_are_met():
    """The saturated queue gives, its youngest first; the gangs that gain are nominated, not started."""
    fleet = site()
    queues = (Queue("a", quota=400), Queue("b", quota=400))
    result = run(fleet, queues, fill("a", fleet, 16) + many("b", 16))
    assert not result.started and len(result.nominated) == 8
    assert names(result.evicted) == {f"a-run{k:03}" for k in range(8, 16)}
    assert {e.reason for e in result.evicted} == {Eviction.RECLAIMED}


def test_reclaiming_spares_the_protected():
    """Neither gangs that cannot be preempted nor those that ran too briefly leave."""
    fleet = site()
    short = (Queue("a", quota=400, reclaim_min_s=5000.0), Queue("b", quota=400))
    assert not run(fleet, short, fill("a", fleet, 16) + many("b", 4)).evicted
    firm = (Queue("a", quota=-1), Queue("b", quota=400))
    assert not run(fleet, firm, fill("a", fleet, 16, priority=100) + many("b", 4)).evicted


def test_higher_priorities_preempt_within_their_queue():
    """A build preempts the youngest training of its own queue, as few as it takes, and no equal priority."""
    fleet = site()
    held = fill("q", fleet, 16)
    result = run(fleet, (Queue("q", quota=-1), Queue("r", quota=-1)), [*held, Workload("w", "q", 2, priority=75)])
    assert {(e.workload, e.reason) for e in result.evicted} == {
        ("q-run015", Eviction.PREEMPTED),
        ("q-run014", Eviction.PREEMPTED),
    }
    assert not run(fleet, ONE, [*held, Workload("w", "q", 2, priority=50)]).evicted


def test_only_those_leave_whose_room_is_needed():
    """A gang that must share a rack clears that rack, and spares younger gangs elsewhere."""
    fleet = site((1, 1))
    work = [*fill("q", fleet, 8), Workload("w", "q", 1, 400, priority=75, skus=("H100-SXM",))]
    assert len(run(fleet, ONE, work).evicted) == 4


def test_what_is_being_released_is_kept_for_whom_it_was_cleared():
    """While victims leave, the gang stays nominated, and nothing else takes its place."""
    fleet = site((1,))
    gone = [replace(w, state=WorkState.LEAVING) for w in fill("q", fleet, 3)]
    large, small = Workload("large", "q", 1, 400, submitted_s=1), Workload("small", "q", submitted_s=2)
    result = run(fleet, ONE, [*gone, large, small])
    assert names(result.nominated) == {"large"} and not result.started


def test_a_broken_gang_leaves_whole():
    """A gang that lost a member does not run on in part."""
    fleet = site()
    broken = Workload("w", "q", 2, state=WorkState.RUNNING, on=(Pod(0, (0,)), Pod(1, (0,))), is_broken=True)
    assert [(e.workload, e.reason) for e in run(fleet, ONE, [broken]).evicted] == [("w", Eviction.BROKEN)]


def test_a_gang_that_lost_a_pod_frees_what_it_still_holds():
    """Its remaining GPU is free in the ledger to come, and nobody else's is."""
    fleet = site((1,), gpus=2)
    broken = Workload("w", "q", 2, state=WorkState.RUNNING, on=(Pod(0, (1,)),), is_broken=True)
    other = Workload("x", "q", state=WorkState.RUNNING, on=(Pod(0, (0,)),))
    result = run(fleet, ONE, [broken, other, *many("q", 2)])
    assert [p.on[0].gpus for p in result.nominated] == [(1,)] and result.waits["q-001"] == Wait.NO_ROOM


def test_the_largest_nodes_are_filled_to_the_last_gpu():
    """64 GPUs are a whole word of bits, its sign included."""
    fleet = site((1,), gpus=64)
    result = run(fleet, ONE, many("q", 65))
    assert sorted(p.on[0].gpus[0] for p in result.started) == list(range(64))
    held = [Workload("w", "q", gpu=6400, state=WorkState.RUNNING, on=(Pod(0, tuple(range(64))),))]
    assert not run(fleet, ONE, held + many("q", 1)).started


# ── input ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("queues", "says"),
    [
        ((), "declare at least one"),
        ((Queue("a"), Queue("a")), "'a'; rename one"),
        ((Queue("a", "b"),), "no parent queue 'b'"),
        ((Queue("a", "b"), Queue("b", "a")), "form a cycle"),
        ((Queue("a", quota=5, limit=3),), "raise the limit"),
        ((Queue("a", quota=-2),), "-1 for none"),
    ],
)
def test_queues_that_make_no_sense_are_refused(queues, says):
    """One line says which queue and what to change."""
    with pytest.raises(SiteError, match=says):
        check_queues(queues)


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (Workload("w", "x"), "'x' is no leaf queue; use q"),
        (Workload("w", "q", pods=0), "at least 1"),
        (Workload("w", "q", gpu=150), "1.5 GPUs"),
        (Workload("w", "q", require=3), "0 to 2"),
        (Workload("w", "q", skus=("T4",)), "has no T4"),
    ],
)
def test_workloads_that_cannot_be_read_are_refused(work, says):
    """One line says which workload and what to change."""
    with pytest.raises(SiteError, match=says):
        check_workload(work, ONE, site())


def test_arrays_of_another_fleet_are_refused():
    """The message names the array and both shapes."""
    fleet = site()
    with pytest.raises(ValueError, match=r"headroom_w has shape \(2,\); this fleet needs \(5,\)"):
        place(fleet, ONE, [], nodes_of(fleet), np.zeros(4), np.zeros(2))
    with pytest.raises(ValueError, match=r"nodes.gpus has shape \(1,\)"):
        place(fleet, ONE, [], nodes_of(site((1,))), np.zeros(4), np.zeros(5))


def test_the_judge_finds_what_is_wrong():
    """A judge that blames nothing is no judge: each forged decision is named."""
    fleet, work = site((1,)), many("q", 2)
    good = run(fleet, ONE, work)
    nodes, room = nodes_of(fleet), np.full(len(fleet.domains), 10**6)

    def blamed(result, **kwargs):
        args = {"nodes": nodes, "headroom_w": room, **kwargs}
        return PlacementJudge(fleet, ONE, work, args["nodes"], args["headroom_w"], 0.0, result).judge()

    twice = tuple(replace(p, on=(Pod(0, (0,)),)) for p in good.started)
    assert any("holds 200" in line for line in blamed(replace(good, started=twice)))
    assert any("takes nothing new" in line for line in blamed(good, nodes=nodes_of(fleet, accepts=False)))
    assert any("W start into" in line for line in blamed(good, headroom_w=room * 0))
    assert any("of 1 pods" in line for line in blamed(replace(good, started=(replace(good.started[0], on=()),))))
    lazy = replace(good, started=(), waits={w.name: Wait.NO_ROOM for w in work})
    assert any("although it fits" in line for line in blamed(lazy))
    late = replace(good, started=good.started[1:], waits={"q-000": Wait.NO_ROOM})
    assert any("overtakes" in line for line in blamed(late))
