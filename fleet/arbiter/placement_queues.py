"""Shares of queues: what each deserves, whose turn it is, and what it may take (FIELD.md section 3)."""

import numpy as np

from .compiled import kernel

# rows of the queue table: what is given
Q_PARENT, QUOTA, LIMIT, WEIGHT, Q_PRIORITY, PREEMPT_MIN_MS, RECLAIM_MIN_MS, STRICT = range(8)
# rows of the queue table: what is worked out; queues lie parents first, siblings by name
DEMAND, FAIR, ALLOCATED, IN_QUOTA, WAITING, CURSOR, LAST, SIMULATED = range(8, 16)
QUEUE_ROWS = 16

NO_BOUND = np.int64(1) << 40


@kernel(inline=True)
def bound(amount):
    """A quota or limit as a number; -1 is none."""
    return NO_BOUND if amount < 0 else amount


@kernel
def divide(queue, total):
    """Write what every queue deserves of `total` hundredths, from `DEMAND`.

    Of its parent's share each first gets min(quota, demand); the rest goes by priority, within one in proportion to
    the weights, again and again until all is given or nobody wants more. Hundredths that do not divide go to the
    largest remainders, and those to the first by id.
    """
    queues = queue.shape[1]
    for parent in range(-1, queues):
        share = total if parent < 0 else queue[FAIR, parent]
        has_children = False
        for q in range(queues):
            if queue[Q_PARENT, q] == parent:
                has_children = True
                want = min(queue[DEMAND, q], bound(queue[LIMIT, q]))
                queue[SIMULATED, q] = want
                queue[FAIR, q] = min(want, bound(queue[QUOTA, q]))
                if queue[QUOTA, q] < 0:  # no bound: but not more than there is
                    queue[FAIR, q] = min(queue[FAIR, q], max(share, 0))
                share -= queue[FAIR, q]
        if has_children and share > 0:
            divide_rest(queue, parent, share)


@kernel
def divide_rest(queue, parent, share):
    """Split what is above the quotas between the children of `parent`, highest priority first."""
    queues = queue.shape[1]
    while share > 0:
        top, weights = -NO_BOUND, np.int64(0)
        for q in range(queues):
            if queue[Q_PARENT, q] == parent and queue[FAIR, q] < queue[SIMULATED, q] and queue[WEIGHT, q] > 0:
                top = max(top, queue[Q_PRIORITY, q])
        for q in range(queues):
            if _takes(queue, q, parent, top):
                weights += queue[WEIGHT, q]
        if weights == 0:
            return
        given, of = np.int64(0), share
        for q in range(queues):
            if _takes(queue, q, parent, top):
                part = min(of * queue[WEIGHT, q] // weights, queue[SIMULATED, q] - queue[FAIR, q])
                queue[CURSOR, q] = part
                given += part
            else:
                queue[CURSOR, q] = -1
        if given > 0:
            for q in range(queues):
                if queue[CURSOR, q] > 0:
                    queue[FAIR, q] += queue[CURSOR, q]
            share -= given
            continue
        while share > 0:  # fewer hundredths than queues that want them
            best = -1
            for q in range(queues):
                rest = of * queue[WEIGHT, q] % weights
                if queue[CURSOR, q] == 0 and (best < 0 or rest > of * queue[WEIGHT, best] % weights):
                    best = q
            if best < 0:
                break
            queue[FAIR, best] += 1
            queue[CURSOR, best] = -1
            share -= 1


@kernel(inline=True)
def _takes(queue, q, parent, priority):
    return (
        queue[Q_PARENT, q] == parent
        and queue[WEIGHT, q] > 0
        and queue[Q_PRIORITY, q] == priority
        and queue[FAIR, q] < queue[SIMULATED, q]
    )


@kernel(inline=True)
def is_before(queue, a, b):
    """Whether sibling `a` comes before `b`: below its quota, higher priority, less saturated, then by id."""
    below_a = queue[ALLOCATED, a] < bound(queue[QUOTA, a])
    below_b = queue[ALLOCATED, b] < bound(queue[QUOTA, b])
    if below_a != below_b:
        return below_a
    if queue[Q_PRIORITY, a] != queue[Q_PRIORITY, b]:
        return queue[Q_PRIORITY, a] > queue[Q_PRIORITY, b]
    # saturation: allocated / fair share, by cross products; a queue that deserves nothing is saturated
    left = queue[ALLOCATED, a] * max(queue[FAIR, b], 1) if queue[FAIR, a] > 0 else NO_BOUND
    right = queue[ALLOCATED, b] * max(queue[FAIR, a], 1) if queue[FAIR, b] > 0 else NO_BOUND
    return left < right or (left == right and a < b)


@kernel
def next_leaf(queue):
    """The leaf whose turn it is among those with workloads still to be tried; -1 for none."""
    parent = -1
    while True:
        best = -1
        for q in range(queue.shape[1]):
            is_waiting = queue[Q_PARENT, q] == parent and queue[WAITING, q] > 0
            if is_waiting and (best < 0 or is_before(queue, q, best)):
                best = q
        if best < 0:
            return parent
        parent = best


@kernel(inline=True)
def allocate(queue, leaf, amount, is_preemptible):
    """Charge an amount (or return a negative one) to a leaf and every queue above it."""
    q = leaf
    while q >= 0:
        queue[ALLOCATED, q] += amount
        if not is_preemptible:
            queue[IN_QUOTA, q] += amount
        q = queue[Q_PARENT, q]


@kernel(inline=True)
def count_waiting(queue, leaf, change):
    """One workload more or fewer to try below each queue from `leaf` up."""
    q = leaf
    while q >= 0:
        queue[WAITING, q] += change
        q = queue[Q_PARENT, q]


@kernel
def is_within_limits(queue, row, leaf, amount):
    """Whether a leaf may take an amount above what `row` holds, as far as limits go, its own and those above it."""
    q = leaf
    while q >= 0:
        if queue[row, q] + amount > bound(queue[LIMIT, q]):
            return False
        q = queue[Q_PARENT, q]
    return True


@kernel
def is_within_quotas(queue, leaf, amount):
    """Whether what cannot be preempted stays within every quota from a leaf up."""
    q = leaf
    while q >= 0:
        if queue[IN_QUOTA, q] + amount > bound(queue[QUOTA, q]):
            return False
        q = queue[Q_PARENT, q]
    return True


@kernel
def may_reclaim(queue, taker, giver, amount, lost):
    """Whether leaf `taker` may gain `amount` while leaf `giver`, at `SIMULATED`, loses `lost`.

    Where their ancestors part, the giver must be above its fair share. A taker that stays within its quota may take
    what is above the giver's quota; one that stays within its fair share, as long as it is no more saturated
    afterwards than the giver.
    """
    a = taker
    while a >= 0:
        b = giver
        while b >= 0:
            if queue[Q_PARENT, a] == queue[Q_PARENT, b]:
                break
            b = queue[Q_PARENT, b]
        if b >= 0:
            break
        a = queue[Q_PARENT, a]
    if a < 0 or a == b:
        return False
    q = taker
    while q >= 0 and q != queue[Q_PARENT, a]:  # nobody on the way up may end above what it deserves
        if queue[SIMULATED, q] + amount > max(queue[FAIR, q], bound(queue[QUOTA, q])):
            return False
        q = queue[Q_PARENT, q]
    held, after = queue[SIMULATED, b], queue[ALLOCATED, a] + amount
    if held <= queue[FAIR, b]:
        return False
    if after <= bound(queue[QUOTA, a]) and held > bound(queue[QUOTA, b]):
        return True
    return after <= queue[FAIR, a] and after * max(queue[FAIR, b], 1) <= (held - lost) * max(queue[FAIR, a], 1)
