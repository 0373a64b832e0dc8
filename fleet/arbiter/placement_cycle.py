"""The kernels of one scheduling cycle: divide, allocate, reclaim, preempt (docs/placement.md)."""

from typing import NamedTuple

import numpy as np

from ..placement import (
    NON_PREEMPTIBLE,
    Eviction,
    Wait,
    WorkState,
)
from .compiled import kernel
from .placement_evict import PREEMPTED, RECLAIMED, make_room
from .placement_fit import (
    BROKEN,
    EVICTED,
    FITS,
    FOR,
    FUTURE,
    GPUS,
    NOW,
    OUTCOME,
    PODS,
    PRIORITY,
    QUEUE,
    REQUIRE,
    SHARE,
    SKUS,
    STATE,
    TOO_FEW_WATTS,
    commit,
    fit,
    occupy,
)
from .placement_queues import (
    ALLOCATED,
    CURSOR,
    DEMAND,
    IN_QUOTA,
    LAST,
    LIMIT,
    Q_PARENT,
    STRICT,
    WAITING,
    allocate,
    bound,
    count_waiting,
    divide,
    is_within_limits,
    is_within_quotas,
    next_leaf,
)

# kernels compile plain numbers
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
