"""Placement's nouns as the tables that its kernels read, and decisions as nouns again."""

from collections.abc import Sequence

import numpy as np

from ..placement import (
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
from .placement_cycle import Lists
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
    FOR,
    GPU_W,
    GPUS,
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
    WORK_RANK,
    WORK_ROWS,
    Site,
)
from .placement_queues import (
    FAIR,
    LIMIT,
    PREEMPT_MIN_MS,
    Q_PARENT,
    Q_PRIORITY,
    QUEUE_ROWS,
    QUOTA,
    RECLAIM_MIN_MS,
    STRICT,
    WEIGHT,
)


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
    pending, running = work[STATE] == WorkState.PENDING, work[STATE] == WorkState.RUNNING
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
    pending = work[STATE] == WorkState.PENDING
    most = int(fleet.node_static["gpus"].sum()) * 100  # pods that the whole fleet can hold
    to_come = min(int(work[PODS][pending].sum()), 2 * most)
    pod = np.zeros((2, len(pods) + to_come + 1), np.int64)
    if pods:
        pod[:, : len(pods)] = np.array(pods, np.int64).T
    return work, np.array([round(1000 * w.submitted_s) for w in workloads], np.int64), pod, len(pods)


def placements_of(site: Site, table: np.ndarray, names: list[str], workloads: Sequence[Workload]) -> Placements:
    """The cycle's decisions by name."""
    started, nominated, evicted, wake = [], [], [], set()
    outcomes, evictions = site.work[OUTCOME].tolist(), site.work[EVICTED].tolist()
    for k in np.argsort(site.work[WORK_RANK]).tolist():
        if outcomes[k] in (Wait.STARTED, Wait.NOMINATED):
            first, count = site.work[POD, k], site.work[PODS, k]
            on = tuple(Pod(n, _gpus(mask)) for n, mask in site.pod[:, first : first + count].T.tolist())
            if outcomes[k] == Wait.STARTED:
                started.append(Placed(workloads[k].name, on))
                wake |= {p.node for p in on}
            else:
                nominated.append(Placed(workloads[k].name, on))
        if evictions[k]:
            beneficiary = site.work[FOR, k]
            name = "" if beneficiary < 0 else workloads[beneficiary].name
            evicted.append(Evicted(workloads[k].name, Eviction(evictions[k]), name))
    waits = {
        w.name: Wait(o)
        for w, o in zip(workloads, outcomes, strict=True)
        if o not in (Wait.STARTED, Wait.NOT_CONSIDERED)
    }
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
