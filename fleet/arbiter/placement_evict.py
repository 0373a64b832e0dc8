"""Making room for a gang that waits: reclaim from queues above their share, preempt within its own.

Evictions happen in the future ledger: victims keep their GPUs and watts until they are gone, and the gang for which
they leave is nominated, not started.
"""

from .compiled import kernel
from .placement_fit import EVICTED, FITS, FUTURE, PODS, PRIORITY, QUEUE, SHARE, STARTED, fit, occupy, undo
from .placement_queues import (
    ALLOCATED,
    FAIR,
    NO_BOUND,
    PREEMPT_MIN_MS,
    Q_PARENT,
    RECLAIM_MIN_MS,
    SIMULATED,
    is_within_limits,
    may_reclaim,
)

RECLAIMED, PREEMPTED = 1, 2
"""Of `fleet.placement.Eviction`."""

SAFE_PRIORITY = 100
"""`fleet.placement.NON_PREEMPTIBLE`."""


@kernel(inline=True)
def simulate(queue, leaf, amount):
    """Add an amount to what a leaf and those above it would hold."""
    q = leaf
    while q >= 0:
        queue[SIMULATED, q] += amount
        q = queue[Q_PARENT, q]


@kernel(inline=True)
def remove(site, queue, v):
    """Take a victim out of the future ledger."""
    occupy(site, v, FUTURE, -1, True)
    simulate(queue, site.work[QUEUE, v], -site.work[PODS, v] * site.work[SHARE, v])


@kernel(inline=True)
def put_back(site, queue, v):
    """Undo `remove`."""
    occupy(site, v, FUTURE, 1, True)
    simulate(queue, site.work[QUEUE, v], site.work[PODS, v] * site.work[SHARE, v])


@kernel(inline=True)
def is_evictable(site, queue, v, kind, now_ms, priority):
    """Whether a running gang may be asked to leave at all."""
    row = PREEMPT_MIN_MS if kind == PREEMPTED else RECLAIM_MIN_MS
    if site.work[EVICTED, v] != 0 or site.work[PRIORITY, v] >= SAFE_PRIORITY:
        return False
    if kind == PREEMPTED and site.work[PRIORITY, v] >= priority:
        return False
    return now_ms - site.work[STARTED, v] >= queue[row, site.work[QUEUE, v]]


@kernel(inline=True)
def is_more_saturated(queue, a, b):
    """Whether leaf `a` has more of its fair share than leaf `b`; the later by id of equals."""
    left = queue[SIMULATED, a] * max(queue[FAIR, b], 1) if queue[FAIR, a] > 0 else NO_BOUND
    right = queue[SIMULATED, b] * max(queue[FAIR, a], 1) if queue[FAIR, b] > 0 else NO_BOUND
    return left > right or (left == right and a > b)


@kernel
def list_victims(site, queue, w, kind, now_ms, victims, span, cursor, chain):
    """Write the gangs that may leave for `w` into `chain`, in the order in which they would.

    The most saturated queue gives first; within a queue the lowest priority, then the last started.

    Returns:
        How many.
    """
    taker, amount = site.work[QUEUE, w], site.work[PODS, w] * site.work[SHARE, w]
    queues = queue.shape[1]
    for q in range(queues):
        queue[SIMULATED, q] = queue[ALLOCATED, q]
        is_giver = q == taker if kind == PREEMPTED else q != taker
        cursor[q] = span[0, q] if is_giver else span[1, q]
    count = 0
    while True:
        giver = -1
        for q in range(queues):
            while cursor[q] < span[1, q] and not is_evictable(
                site, queue, victims[cursor[q]], kind, now_ms, site.work[PRIORITY, w]
            ):
                cursor[q] += 1
            if cursor[q] < span[1, q] and (giver < 0 or is_more_saturated(queue, q, giver)):
                giver = q
        if giver < 0:
            break
        v = victims[cursor[giver]]
        cursor[giver] += 1
        lost = site.work[PODS, v] * site.work[SHARE, v]
        if kind == PREEMPTED or may_reclaim(queue, taker, giver, amount, lost):
            simulate(queue, giver, -lost)
            chain[count] = v
            count += 1
    for q in range(queues):
        queue[SIMULATED, q] = queue[ALLOCATED, q]
    return count


@kernel(inline=True)
def fits_then(site, queue, w):
    """Whether `w` fits, and its queue's limits too, with those gone that are removed now."""
    amount = site.work[PODS, w] * site.work[SHARE, w]
    if not is_within_limits(queue, SIMULATED, site.work[QUEUE, w], amount):
        return False
    if fit(site, FUTURE, w) != FITS:
        return False
    undo(site, FUTURE)
    return True


@kernel
def make_room(site, queue, w, kind, now_ms, victims, span, cursor, chain):
    """Remove as few gangs as make `w` fit: the shortest beginning of the list, less those that need not go.

    Returns:
        How many of `chain`, which then holds them; 0 if nothing helps. The removed ones stay removed in the future
        ledger and in `SIMULATED`.
    """
    count = list_victims(site, queue, w, kind, now_ms, victims, span, cursor, chain)
    if count == 0:
        return 0
    for i in range(count):
        remove(site, queue, chain[i])
    is_enough = fits_then(site, queue, w)
    gone = count
    few, enough = 0, count
    while is_enough and enough - few > 1:
        middle = (few + enough) // 2
        gone = _shift(site, queue, chain, gone, middle)
        if fits_then(site, queue, w):
            enough = middle
        else:
            few = middle
    if not is_enough:
        _shift(site, queue, chain, gone, 0)
        return 0
    _shift(site, queue, chain, gone, enough)
    left = enough
    for i in range(enough - 2, -1, -1):  # the last one is needed, or the list would be shorter
        put_back(site, queue, chain[i])
        if fits_then(site, queue, w):
            chain[i] = -1
            left -= 1
        else:
            remove(site, queue, chain[i])
    at = 0
    for i in range(enough):
        if chain[i] >= 0:
            chain[at] = chain[i]
            at += 1
    return left


@kernel(inline=True)
def _shift(site, queue, chain, gone, wanted):
    """Remove or put back gangs until the first `wanted` of the list are gone."""
    while gone < wanted:
        remove(site, queue, chain[gone])
        gone += 1
    while gone > wanted:
        gone -= 1
        put_back(site, queue, chain[gone])
    return gone
