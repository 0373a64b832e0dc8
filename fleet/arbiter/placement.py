"""Placement: which workloads start where, and which must leave, in one scheduling cycle (guarantee 8).

`place` is pure. The cycle is that of FIELD.md section 3: allocate in the queues' order, then reclaim for queues below
their fair share, then preempt within queues. Whatever bids say, only the order of feasible nodes follows them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..placement import (
    NON_PREEMPTIBLE,
    Evicted,
    Eviction,
    Placed,
    PlacementNodes,
    Placements,
    Pod,
    Queue,
    Wait,
    Workload,
    WorkState,
    share_of,
)
from ..topology import Fleet
from .compiled import kernel
from .placement_evict import PREEMPTED, RECLAIMED, make_room
from .placement_fit import (
    ACCEPTS,
    BID,
    BID_STEPS,
    BROKEN,
    DEPTH,
    DOMAIN,
    DOMAIN_RANK,
    END,
    EVICTED,
    FITS,
    FOR,
    FUTURE,
    GPU_W,
    GPUS,
    NOW,
    OUTCOME,
    PARENT,
    POD,
    PODS,
    PREFER,
    PRIORITY,
    QUEUE,
    RANK,
    REQUIRE,
    SHARE,
    SKU,
    SKUS,
    START,
    STARTED,
    STATE,
    TOO_FEW_WATTS,
    WORK_RANK,
    WORK_ROWS,
    Site,
    commit,
    fit,
    occupy,
)
from .placement_queues import (
    ALLOCATED,
    CURSOR,
    DEMAND,
    FAIR,
    IN_QUOTA,
    LAST,
    LIMIT,
    PREEMPT_MIN_MS,
    Q_PARENT,
    Q_PRIORITY,
    QUEUE_ROWS,
    QUOTA,
    RECLAIM_MIN_MS,
    STRICT,
    WAITING,
    WEIGHT,
    allocate,
    bound,
    count_waiting,
    divide,
    is_within_limits,
    is_within_quotas,
    next_leaf,
)

MAX_TRIES = 256
"""Gangs for which a cycle looks for victims; the rest wait for the next one, so that a cycle's time is bounded."""

_PENDING, _RUNNING, _LEAVING = int(WorkState.PENDING), int(WorkState.RUNNING), int(WorkState.LEAVING)
_STARTED, _NO_ROOM, _NO_POWER, _QUEUE_LIMIT, _OVER_QUOTA, _BEHIND, _LIKE, _NOMINATED, _NOT = (int(w) for w in Wait)
_BROKEN = int(Eviction.BROKEN)


class Lists(NamedTuple):
    """Orders and working memory of a cycle; int64."""

    order: np.ndarray  # (W,): pending gangs by leaf queue, priority, age, id
    turn: np.ndarray  # (2, Q): where each leaf's begin and end
    victims: np.ndarray  # (W,): running gangs by leaf queue, lowest priority and last started first
    span: np.ndarray  # (2, Q)
    cursor: np.ndarray  # (Q,)
    chain: np.ndarray  # (W,)
    failed: np.ndarray  # (2, W): gangs that found no room, by ledger
    failures: np.ndarray  # (2,)


@kernel
def is_like_failed(site, lists, ledger, w, own_queue):
    """Whether a gang is at least as large as one that found no room, in each part of its shape."""
    work = site.work
    for i in range(lists.failures[ledger]):
        f = lists.failed[ledger, i]
        if (
            work[PODS, w] >= work[PODS, f]
            and work[SHARE, w] >= work[SHARE, f]
            and work[REQUIRE, w] >= work[REQUIRE, f]
            and work[SKUS, w] & ~work[SKUS, f] == 0
            and (not own_queue or (work[QUEUE, w] == work[QUEUE, f] and work[PRIORITY, w] <= work[PRIORITY, f]))
        ):
            return True
    return False


@kernel(inline=True)
def note_failure(lists, ledger, w):
    """Remember that `w` found no room: in an allocation room only shrinks."""
    lists.failed[ledger, lists.failures[ledger]] = w
    lists.failures[ledger] += 1


@kernel
def start_cycle(site, queue, lists):
    """Fill the ledgers and the queues' books from what runs, and divide the fleet.

    Returns:
        Whether anything is on its way out, so that the ledgers differ.
    """
    work, has_leaving = site.work, False
    for q in range(queue.shape[1]):
        for row in (DEMAND, ALLOCATED, IN_QUOTA, WAITING):
            queue[row, q] = 0
    for w in range(work.shape[1]):
        work[OUTCOME, w], work[EVICTED, w], work[FOR, w] = _NOT, 0, -1
        amount = work[PODS, w] * work[SHARE, w]
        if work[STATE, w] == _PENDING:
            queue[DEMAND, work[QUEUE, w]] += amount
        elif work[STATE, w] == _RUNNING or work[STATE, w] == _LEAVING:
            occupy(site, w, NOW, 1, False)
            occupy(site, w, FUTURE, 1, False)
            if work[STATE, w] == _RUNNING and work[BROKEN, w] == 0:
                allocate(queue, work[QUEUE, w], amount, work[PRIORITY, w] < NON_PREEMPTIBLE)
    for w in range(work.shape[1]):  # once all are in: a GPU that others share stays in use
        is_broken = work[STATE, w] == _RUNNING and work[BROKEN, w] == 1
        if is_broken or work[STATE, w] == _LEAVING:
            has_leaving = True
            occupy(site, w, FUTURE, -1, True)
            if is_broken:
                work[EVICTED, w] = _BROKEN
    total = 0
    for n in range(site.node.shape[1]):
        total += 100 * site.node[GPUS, n]
    for q in range(queue.shape[1] - 1, -1, -1):
        if lists.turn[1, q] > lists.turn[0, q] or lists.span[1, q] > lists.span[0, q]:
            queue[DEMAND, q] += queue[ALLOCATED, q]
        parent = queue[Q_PARENT, q]
        if parent >= 0:
            queue[DEMAND, parent] += min(queue[DEMAND, q], bound(queue[LIMIT, q]))
    divide(queue, total)
    return has_leaving


@kernel
def open_queues(site, queue, lists, phase):
    """Line up, per leaf, the gangs that a phase tries: all pending ones, or those that found no room."""
    for q in range(queue.shape[1]):
        queue[WAITING, q] = 0
    for q in range(queue.shape[1]):
        queue[CURSOR, q], queue[LAST, q] = lists.turn[0, q], lists.turn[1, q]
        for i in range(lists.turn[0, q], lists.turn[1, q]):
            if is_tried(site.work[OUTCOME, lists.order[i]], phase):
                count_waiting(queue, q, 1)


@kernel(inline=True)
def is_tried(outcome, phase):
    """Whether a phase tries a gang with this outcome so far; phase 0 allocates."""
    if phase == 0:
        return True
    is_short = (outcome == _NO_ROOM) | (outcome == _NO_POWER) | (outcome == _LIKE)
    return is_short or (phase == PREEMPTED and outcome == _QUEUE_LIMIT)


@kernel(inline=True)
def next_gang(site, queue, lists, leaf, phase):
    """The next gang of a leaf that this phase tries."""
    while not is_tried(site.work[OUTCOME, lists.order[queue[CURSOR, leaf]]], phase):
        queue[CURSOR, leaf] += 1
    w = lists.order[queue[CURSOR, leaf]]
    queue[CURSOR, leaf] += 1
    count_waiting(queue, leaf, -1)
    return w


@kernel
def try_start(site, queue, lists, w, has_leaving, pods):
    """Start a gang, or nominate it for what is being released.

    Returns:
        The outcome, a `fleet.placement.Wait`.
    """
    work = site.work
    leaf, amount = work[QUEUE, w], work[PODS, w] * work[SHARE, w]
    is_preemptible = work[PRIORITY, w] < NON_PREEMPTIBLE
    if not is_within_limits(queue, ALLOCATED, leaf, amount):
        return _QUEUE_LIMIT
    if not is_preemptible and not is_within_quotas(queue, leaf, amount):
        return _OVER_QUOTA
    outcome = _LIKE
    for ledger in range(2 if has_leaving else 1):
        if is_like_failed(site, lists, ledger, w, False):
            continue
        found = fit(site, ledger, w)
        if found == FITS:
            commit(site, ledger, w, pods)
            allocate(queue, leaf, amount, is_preemptible)
            return _STARTED if ledger == NOW else _NOMINATED
        note_failure(lists, ledger, w)
        outcome = _NO_POWER if found == TOO_FEW_WATTS else _NO_ROOM
    return outcome


@kernel
def allocate_all(site, queue, lists, has_leaving, pods):
    """The first phase: every pending gang in its queue's turn.

    Returns:
        Where the next pods are written.
    """
    open_queues(site, queue, lists, 0)
    while True:
        leaf = next_leaf(queue)
        if leaf < 0:
            return pods
        w = next_gang(site, queue, lists, leaf, 0)
        outcome = try_start(site, queue, lists, w, has_leaving, pods)
        site.work[OUTCOME, w] = outcome
        if outcome in (_STARTED, _NOMINATED):
            pods += site.work[PODS, w]
        if outcome != _STARTED and queue[STRICT, leaf] == 1:
            left = queue[LAST, leaf] - queue[CURSOR, leaf]
            for i in range(queue[CURSOR, leaf], queue[LAST, leaf]):
                site.work[OUTCOME, lists.order[i]] = _BEHIND
            queue[CURSOR, leaf] = queue[LAST, leaf]
            count_waiting(queue, leaf, -left)


@kernel
def evict_for(site, queue, lists, kind, now_ms, pods, tries):
    """The second and third phase: nominate gangs for what others must leave.

    Returns:
        Where the next pods are written, and how many tries are left.
    """
    work = site.work
    lists.failures[FUTURE] = 0
    open_queues(site, queue, lists, kind)
    while tries > 0:
        leaf = next_leaf(queue)
        if leaf < 0:
            break
        w = next_gang(site, queue, lists, leaf, kind)
        amount = work[PODS, w] * work[SHARE, w]
        is_preemptible = work[PRIORITY, w] < NON_PREEMPTIBLE
        if is_like_failed(site, lists, FUTURE, w, True):
            continue
        if not is_preemptible and not is_within_quotas(queue, leaf, amount):
            continue
        tries -= 1
        gone = make_room(site, queue, w, kind, now_ms, lists.victims, lists.span, lists.cursor, lists.chain)
        if gone == 0:
            note_failure(lists, FUTURE, w)
            continue
        for i in range(gone):
            v = lists.chain[i]
            work[EVICTED, v], work[FOR, v] = kind, w
            allocate(queue, work[QUEUE, v], -work[PODS, v] * work[SHARE, v], True)
        fit(site, FUTURE, w)
        commit(site, FUTURE, w, pods)
        allocate(queue, leaf, amount, is_preemptible)
        work[OUTCOME, w] = _NOMINATED
        pods += work[PODS, w]
    return pods, tries


@kernel
def run_cycle(site, queue, lists, now_ms, pods, max_tries):
    """One scheduling cycle in place: outcomes, evictions and pods are written into `site`.

    Args:
        site: Tables with ledgers that hold no gang yet; `head_w` of both is what is left beside all that runs.
        queue: Queues, parents first.
        lists: Orders and working memory.
        now_ms: Time of the cycle.
        pods: Where pods of gangs placed now are written in `site.pod`.
        max_tries: Gangs for which victims are sought.
    """
    lists.failures[:] = 0
    has_leaving = start_cycle(site, queue, lists)
    pods = allocate_all(site, queue, lists, has_leaving, pods)
    for kind in (RECLAIMED, PREEMPTED):
        pods, max_tries = evict_for(site, queue, lists, kind, now_ms, pods, max_tries)


def site_rows(fleet: Fleet) -> tuple[np.ndarray, np.ndarray]:
    """What a site's tables say of nodes and domains for `Site`, shapes (7, N) and (5, D)."""
    static, domains = fleet.node_static, fleet.domain_static
    node = np.zeros((7, len(static)), np.int64)
    node[DOMAIN], node[SKU], node[RANK] = static["domain"], static["sku"], _ranks([n.name for n in fleet.nodes])
    domain = np.zeros((5, len(domains)), np.int64)
    domain[START], domain[END] = domains["node_start"], domains["node_end"]
    domain[PARENT], domain[DEPTH] = domains["parent"], domains["depth"]
    domain[DOMAIN_RANK] = _ranks([d.name for d in fleet.domains])
    return node, domain


def queue_table(queues: Sequence[Queue]) -> tuple[np.ndarray, list[str]]:
    """Queues as the kernels read them, parents first and siblings by name, shape (16, Q), and their names."""
    by_name = {q.name: q for q in queues}

    def path(q: Queue) -> tuple[str, ...]:
        return (*(() if q.parent is None else path(by_name[q.parent])), q.name)

    ordered = sorted(queues, key=path)
    names = [q.name for q in ordered]
    table = np.zeros((QUEUE_ROWS, len(ordered)), np.int64)
    for k, q in enumerate(ordered):
        table[Q_PARENT, k] = -1 if q.parent is None else names.index(q.parent)
        table[QUOTA, k], table[LIMIT, k], table[WEIGHT, k] = q.quota, q.limit, q.weight
        table[Q_PRIORITY, k], table[STRICT, k] = q.priority, q.is_strict
        table[PREEMPT_MIN_MS, k] = round(1000 * q.preempt_min_s)
        table[RECLAIM_MIN_MS, k] = round(1000 * q.reclaim_min_s)
    return table, names


def make_lists(work: np.ndarray, submitted_ms: np.ndarray, queues: int) -> Lists:
    """Orders of the pending and the running gangs of a work table."""
    count = work.shape[1]
    pending, running = work[STATE] == _PENDING, work[STATE] == _RUNNING
    order = np.lexsort((work[WORK_RANK], submitted_ms, -work[PRIORITY], work[QUEUE], ~pending)).astype(np.int64)
    victims = np.lexsort((work[WORK_RANK], -work[STARTED], work[PRIORITY], work[QUEUE], ~running)).astype(np.int64)
    return Lists(
        order=order,
        turn=_spans(work[QUEUE][pending], queues),
        victims=victims,
        span=_spans(work[QUEUE][running], queues),
        cursor=np.zeros(queues, np.int64),
        chain=np.zeros(count, np.int64),
        failed=np.zeros((2, count), np.int64),
        failures=np.zeros(2, np.int64),
    )


def make_site(
    rows: tuple[np.ndarray, np.ndarray],
    work: np.ndarray,
    pod: np.ndarray,
    nodes: PlacementNodes,
    bids: np.ndarray,
    headroom_w: np.ndarray,
    most_gpus: int,
) -> Site:
    """Tables of one cycle with empty ledgers; `rows` are of `site_rows`, `most_gpus` the most that a node has."""
    node, domain = rows[0].copy(), rows[1]
    count = node.shape[1]
    node[GPUS], node[ACCEPTS], node[GPU_W] = nodes.gpus, nodes.accepts, nodes.gpu_w
    node[BID] = read_bids(bids, count)
    return Site(
        node=node,
        domain=domain,
        work=work,
        pod=pod,
        used=np.zeros((2, count, most_gpus), np.int64),
        head_w=np.array([headroom_w, headroom_w], np.int64),
        wake_w=np.array([nodes.wake_w, nodes.wake_w], np.int64),
        picked=np.zeros((3, count), np.int64),
        seen=np.zeros((4, count), np.int64),
        counter=np.zeros(4, np.int64),
    )


def read_bids(bids: np.ndarray, count: int) -> np.ndarray:
    """Bids to receive work, in thousandths; NaN is neutral, anything else is clipped to [-1, 1]."""
    bids = np.nan_to_num(np.broadcast_to(np.asarray(bids, np.float64), (count,)), nan=0.0, posinf=1.0, neginf=-1.0)
    return np.rint(np.clip(bids, -1.0, 1.0) * BID_STEPS).astype(np.int64)


def place(
    fleet: Fleet,
    queues: Sequence[Queue],
    workloads: Sequence[Workload],
    nodes: PlacementNodes,
    bids: np.ndarray,
    headroom_w: np.ndarray,
    now_s: float = 0.0,
    max_tries: int = MAX_TRIES,
) -> Placements:
    """Decide one scheduling cycle.

    Args:
        fleet: The site.
        queues: Checked by `fleet.placement.check_queues`.
        workloads: Pending, running and leaving ones, checked by `check_workload`.
        nodes: What is known of the nodes.
        bids: To receive new work, shape (N,), in [-1, 1]; they only order the nodes on which a gang fits.
        headroom_w: Watts left below each domain's limit beside all that runs or leaves, shape (D,), whole watts.
        now_s: Time of the cycle, on the clock of the workloads.
        max_tries: Gangs for which victims are sought.

    Returns:
        What starts where, what is nominated, what must leave, and why the rest waits.

    Raises:
        ValueError: if an array has another shape than the fleet asks for.
    """
    for name, array, count in (
        *((f"nodes.{f}", getattr(nodes, f), len(fleet.nodes)) for f in ("gpus", "accepts", "wake_w", "gpu_w")),
        ("headroom_w", headroom_w, len(fleet.domains)),
    ):
        if np.shape(array) != (count,):
            raise ValueError(f"{name} has shape {np.shape(array)}; this fleet needs ({count},)")
    table, names = queue_table(queues)
    work, submitted_ms, pod, free_pod = work_table(fleet, names, workloads)
    most_gpus = int(fleet.node_static["gpus"].max())
    site = make_site(site_rows(fleet), work, pod, nodes, bids, headroom_w, most_gpus)
    run_cycle(site, table, make_lists(work, submitted_ms, len(names)), round(1000 * now_s), free_pod, max_tries)
    return _placements(site, table, names, workloads)


def work_table(fleet: Fleet, queue_names: list[str], workloads: Sequence[Workload]):
    """Workloads as the kernels read them.

    Returns:
        The table (15, W), when each was submitted in milliseconds, the pods that run (2, M) with room for those to
        come, and how many run.
    """
    work = np.zeros((WORK_ROWS, len(workloads)), np.int64)
    index = {name: k for k, name in enumerate(queue_names)}
    pods: list[tuple[int, int]] = []
    shares: dict[tuple, tuple[int, int]] = {}
    for column, w in zip(work.T, workloads, strict=True):
        kind = (w.gpu, w.memory_mib, w.skus)
        if kind not in shares:
            shares[kind] = share_of(w, fleet)
        share, bits = shares[kind]
        column[QUEUE], column[PRIORITY], column[PODS], column[SHARE] = index[w.queue], w.priority, w.pods, share
        column[REQUIRE], column[PREFER], column[SKUS], column[STATE] = w.require, w.prefer, bits, w.state
        column[STARTED], column[BROKEN], column[POD] = round(1000 * w.started_s), w.is_broken, len(pods)
        if w.state in (WorkState.RUNNING, WorkState.LEAVING):
            column[PODS] = len(w.on)  # a broken gang may have lost some
            pods += [(p.node, _mask(p.gpus)) for p in w.on]
    work[WORK_RANK] = _ranks([w.name for w in workloads])
    pending = work[STATE] == _PENDING
    most = int(fleet.node_static["gpus"].sum()) * 100  # pods that the whole fleet can hold
    to_come = min(int(work[PODS][pending].sum()), 2 * most)
    pod = np.zeros((2, len(pods) + to_come + 1), np.int64)
    if pods:
        pod[:, : len(pods)] = np.array(pods, np.int64).T
    return work, np.array([round(1000 * w.submitted_s) for w in workloads], np.int64), pod, len(pods)


def _placements(site: Site, table: np.ndarray, names: list[str], workloads: Sequence[Workload]) -> Placements:
    """The cycle's decisions by name."""
    work, started, nominated, evicted, wake = site.work, [], [], [], set()
    for k in np.argsort(work[WORK_RANK]):
        outcome = work[OUTCOME, k]
        if outcome in (_STARTED, _NOMINATED):
            rows = site.pod[:, work[POD, k] : work[POD, k] + work[PODS, k]]
            on = tuple(Pod(int(n), _gpus(int(m))) for n, m in rows.T)
            (started if outcome == _STARTED else nominated).append(Placed(workloads[k].name, on))
            if outcome == _STARTED:
                wake |= {p.node for p in on}
        if work[EVICTED, k]:
            beneficiary = "" if work[FOR, k] < 0 else workloads[work[FOR, k]].name
            evicted.append(Evicted(workloads[k].name, Eviction(int(work[EVICTED, k])), beneficiary))
    waits = {w.name: Wait(int(o)) for w, o in zip(workloads, work[OUTCOME], strict=True) if o not in (_STARTED, _NOT)}
    return Placements(
        tuple(started),
        tuple(nominated),
        tuple(evicted),
        waits,
        tuple(sorted(wake)),
        {name: int(fair) for name, fair in zip(names, table[FAIR], strict=True)},
    )


def _ranks(names: list[str]) -> np.ndarray:
    """Rank of each name among all, which breaks ties whatever the order of the entries."""
    ranks = np.empty(len(names), np.int64)
    ranks[np.argsort(np.array(names, dtype=object), kind="stable")] = np.arange(len(names))
    return ranks


def _spans(leaf: np.ndarray, queues: int) -> np.ndarray:
    """Where each leaf's entries begin and end in a list sorted by leaf, shape (2, Q)."""
    ends = np.cumsum(np.bincount(leaf, minlength=queues))
    return np.array([ends - np.bincount(leaf, minlength=queues), ends], np.int64)


def _mask(gpus: tuple[int, ...]) -> int:
    """Indices of GPUs as the bits of a signed 64-bit number."""
    bits = sum(1 << g for g in gpus)
    return bits - (1 << 64) if bits >= 1 << 63 else bits


def _gpus(mask: int) -> tuple[int, ...]:
    """Undo `_mask`."""
    return tuple(g for g in range(64) if mask >> g & 1)
