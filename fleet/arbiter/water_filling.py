"""Exact weighted water-filling of one power domain, in whole watts.

Every node has a weight and an integer range [lo, hi]. A level L gives it clip(floor(L * weight), lo, hi); a
domain that does not fit is lowered to the highest level that does. The last watts are handed out one by one in
the order in which rising water would reach them: smallest (cap + 1) / weight first, ties by node id. That is
the divisor method of apportionment: a higher weight never lowers one's own cap, and the result does not depend
on the order of the nodes but for ties. Domains are settled children first; a settled domain's caps are the upper
bounds of its parent's filling, which makes the whole the greedy optimum over the tree.

The level is a real number that only *chooses* caps; every watt that is summed or compared is an int64.

A domain's charge includes its reserve: the `reserve` largest distances from a cap to the node's maximum, so that
this many nodes may jump to their maximum at once. The charge never falls when a cap rises.
"""

import numpy as np

from .compiled import kernel
from .scratch import CAP, NEAR_W

NEWTON_STEPS, EXACT_STEPS = 12, 8
"""Steps towards the level, and those of them that look for the very watt."""

INFINITY_BITS, LAST = 0x7FF << 52, (1 << 63) - 1
"""The bits of infinity, and the largest int64."""

FEW_NODES = 16
"""Among so few nodes the last watts are handed out at once."""


@kernel(inline=True)
def push_top(top, reserve, jump_w):
    """Keep the `reserve` largest values, in falling order."""
    if jump_w > top[reserve - 1]:
        j = reserve - 1
        while j > 0 and top[j - 1] < jump_w:
            top[j] = top[j - 1]
            j -= 1
        top[j] = jump_w


@kernel
def reserve_of(cap, cap_max, reserve, top):
    """The `reserve` largest distances from a cap to its maximum, added up."""
    if reserve == 1:  # the usual reserve, in a loop that vectorises
        largest = 0
        for i in range(len(cap)):
            largest = max(largest, cap_max[i] - cap[i])
        return largest
    total = 0
    if reserve > 0:
        for j in range(reserve):
            top[j] = 0
        for i in range(len(cap)):
            push_top(top, reserve, cap_max[i] - cap[i])
        for j in range(reserve):
            total += top[j]
    return total


@kernel
def charge_of(cap, cap_max, reserve, top):
    """Watts that nodes are charged at their caps, reserve included."""
    total = 0
    for i in range(len(cap)):
        total += cap[i]
    return total + reserve_of(cap, cap_max, reserve, top)


@kernel
def charge_at(level, weight, lo, hi, cap_max, reserve, top):
    """The same at a level, and the charge's slope there: the summed weight of nodes that move with the level."""
    total, moving = 0, 0
    if reserve == 1:  # the usual reserve: its largest distance comes out of the same pass
        largest = 0
        for i in range(len(lo)):
            c = min(hi[i], max(lo[i], np.int64(level * weight[i])))
            total += c
            moving += c if lo[i] < c < hi[i] else 0
            largest = max(largest, cap_max[i] - c)
        return total + largest, moving / level
    for i in range(len(lo)):
        c = min(hi[i], max(lo[i], np.int64(level * weight[i])))
        total += c
        # caps stand for weights here: integer sums vectorise, ordered sums of floats do not
        moving += c if lo[i] < c < hi[i] else 0
    if reserve > 0:
        for j in range(reserve):
            top[j] = 0
        for i in range(len(lo)):
            push_top(top, reserve, cap_max[i] - min(hi[i], max(lo[i], np.int64(level * weight[i]))))
        for j in range(reserve):
            total += top[j]
    return total, moving / level


@kernel
def caps_at(level, weight, lo, hi, cap):
    """Write the caps of a level into `cap`."""
    for i in range(len(cap)):
        cap[i] = min(hi[i], max(lo[i], np.int64(level * weight[i])))


@kernel
def hand_out_few(left_w, weight, hi, cap, first, who):
    """Give 1 to NEAR_W watts one by one, smallest (cap + 1) / weight first, ties by id.

    Only the `left_w` nodes with the smallest thresholds can get any: one pass finds them, then the watts go to
    the head of that list, which moves back to its next threshold.

    Returns:
        Watts that nobody could take.
    """
    count = 0
    for i in range(len(cap)):
        if cap[i] >= hi[i]:
            continue
        threshold = (cap[i] + 1) / weight[i]
        if count == left_w and threshold >= first[count - 1]:
            continue
        j = count if count < left_w else left_w - 1
        while j > 0 and first[j - 1] > threshold:
            first[j], who[j] = first[j - 1], who[j - 1]
            j -= 1
        first[j], who[j] = threshold, i
        count = min(count + 1, left_w)
    if count == left_w:
        # where nobody's second watt comes before another's first, which is the rule, everyone on the list gets one
        is_one_each = True
        for j in range(count):
            i = who[j]
            is_one_each &= (cap[i] + 1 >= hi[i]) | ((cap[i] + 2) / weight[i] > first[count - 1])
        if is_one_each:
            for j in range(count):
                cap[who[j]] += 1
            return 0
    while left_w > 0 and count > 0:
        i = who[0]
        cap[i] += 1
        left_w -= 1
        threshold = (cap[i] + 1) / weight[i] if cap[i] < hi[i] else np.inf
        j = 0
        while j + 1 < count and (first[j + 1] < threshold or (first[j + 1] == threshold and who[j + 1] < i)):
            first[j], who[j] = first[j + 1], who[j + 1]
            j += 1
        first[j], who[j] = threshold, i
        if threshold == np.inf:
            count -= 1
    return left_w


@kernel
def hand_out_ties(left_w, weight, hi, cap, threshold, bits):
    """The same for many watts and few distinct thresholds: at most NEAR_W thresholds, one after the other.

    Args:
        threshold: Written, shape (n,): what each node's next watt waits for.
        bits: The same memory as int64. Positive floats are in the order of their bits, and the least of whole numbers
            is found many at a time.

    Returns:
        What is left.
    """
    if left_w > NEAR_W * len(cap):
        return left_w  # more than so many thresholds can take
    for i in range(len(cap)):
        threshold[i] = (cap[i] + 1) / weight[i] if cap[i] < hi[i] else np.inf
    for _ in range(NEAR_W):
        if left_w <= 0:
            break
        first = LAST
        for i in range(len(cap)):
            first = min(first, bits[i])
        if first >= INFINITY_BITS:
            break
        for i in range(len(cap)):
            if bits[i] == first and left_w > 0:
                cap[i] += 1
                left_w -= 1
                threshold[i] = (cap[i] + 1) / weight[i] if cap[i] < hi[i] else np.inf
    return left_w


@kernel
def only_jumper(hi, cap_max, cap):
    """Index of the node whose distance to its maximum is the largest, if it is alone in that and can rise, else -1."""
    largest = reserve_of(cap, cap_max, 1, cap)
    count, index = 0, 0
    for i in range(len(cap)):
        is_it = cap_max[i] - cap[i] == largest
        count += is_it
        index += i if is_it else 0
    return index if count == 1 and cap[index] < hi[index] else -1


@kernel
def is_next(index, weight, hi, cap):
    """True if this node is the next to rise: nobody has a smaller threshold, nor a smaller id at the same one."""
    threshold = (cap[index] + 1) / weight[index]
    for i in range(len(cap)):
        if cap[i] < hi[i]:
            other = (cap[i] + 1) / weight[i]
            if other < threshold or (other == threshold and i < index):
                return False
    return True


@kernel
def next_free(available_w, left_w, weight, hi, cap_max, cap, reserve, top):
    """The node that is next to rise, if its watt costs nothing: its distance to the maximum is in the reserve.

    Args:
        left_w: What the charge of `cap` leaves.

    Returns:
        Its index, -1 when nobody can rise or the watt does not fit.
    """
    if reserve == 1:
        jumper = only_jumper(hi, cap_max, cap)
        # where nothing is left only the jumper's own watt costs nothing, and mostly somebody else is next
        if jumper < 0 or (left_w == 0 and not is_next(jumper, weight, hi, cap)):
            return -1
    who, first = -1, np.inf
    for i in range(len(cap)):
        if cap[i] < hi[i]:
            threshold = (cap[i] + 1) / weight[i]
            if threshold < first:
                who, first = i, threshold
    if who >= 0:
        cap[who] += 1
        is_free = charge_of(cap, cap_max, reserve, top) <= available_w
        cap[who] -= 1
        if is_free:
            return who
    return -1


@kernel
def hand_out(rounds, left_w, available_w, weight, hi, cap_max, cap, reserve, scratch):
    """Hand out what the charge of `cap` leaves; with a reserve a watt given may cost nothing, so look again.

    Returns:
        What is left.
    """
    for _ in range(rounds):
        if left_w <= 0:
            break
        if left_w > NEAR_W:
            left_w = hand_out_ties(left_w, weight, hi, cap, scratch.threshold, scratch.threshold_bits)
        else:
            left_w = hand_out_few(left_w, weight, hi, cap, scratch.first, scratch.who)
        if reserve <= 0 or left_w > 0:
            break
        left_w = available_w - charge_of(cap, cap_max, reserve, scratch.top)
    return left_w


@kernel
def solve_level(available_w, left_w, guess, weight, lo, hi, cap_max, cap, reserve, scratch):
    """Write the largest caps that fit into `cap`; the charge at `lo` leaves `left_w`, and that at `hi` does not fit.

    Safeguarded Newton on the piecewise linear charge: it lands on the watt or near it in a few passes, unless many
    nodes share one weight and the charge jumps by one watt of each; then handing out by thresholds finishes it.
    Mixed cases are bisected down to neighbouring floats, and so are those where the reserve leaves watts that cost
    nothing. The result, every watt in order that fits, does not depend on the guess.

    Returns:
        The level.
    """
    top = scratch.top
    low, high, over_w = 0.0, np.inf, 0
    exact_steps = EXACT_STEPS if len(lo) > FEW_NODES else 0
    x = guess
    for step in range(NEWTON_STEPS):
        at_x, active = charge_at(x, weight, lo, hi, cap_max, reserve, top)
        if at_x <= available_w:
            low, left_w = x, available_w - at_x
            # among many nodes a look at another level costs less than to hand out a watt
            if left_w == 0 or (left_w <= NEAR_W and step >= exact_steps):
                break
        else:
            high, over_w = x, at_x - available_w
        # half a watt above the limit is the middle of the levels at which the charge is the limit
        if low > 0.0 and high < np.inf and left_w + over_w <= len(lo):
            x = low + (high - low) * (left_w + 0.5) / (left_w + over_w)
        else:
            x = x + (available_w - at_x + 0.5) / active if active > 0.0 else -1.0
        if not low < x < high:
            x = 2.0 * low + 1.0 if high == np.inf else 0.5 * (low + high)
    caps_at(low, weight, lo, hi, cap)
    if left_w > 0:
        left_w = hand_out(4, left_w, available_w, weight, hi, cap_max, cap, reserve, scratch)
    if left_w <= 0 and (reserve <= 0 or next_free(available_w, left_w, weight, hi, cap_max, cap, reserve, top) < 0):
        return low
    for _ in range(2000):  # doubling from nothing, then halving down to neighbouring floats
        x = 2.0 * low + 1.0 if high == np.inf else 0.5 * (low + high)
        if not low < x < high:
            break
        at_x, active = charge_at(x, weight, lo, hi, cap_max, reserve, top)
        if at_x <= available_w:
            low, left_w = x, available_w - at_x
        else:
            high = x
    caps_at(low, weight, lo, hi, cap)
    # only nodes with one threshold are left, so that this ends
    left_w = hand_out(len(cap) + 4, left_w, available_w, weight, hi, cap_max, cap, reserve, scratch)
    while reserve > 0:
        i = next_free(available_w, left_w, weight, hi, cap_max, cap, reserve, top)
        if i < 0:
            break
        cap[i] += 1
    return low


@kernel
def fill_domain(d, available_w, guess, weight, lo, hi, cap_max, bound, reserve, scratch):
    """Lower `hi` of one domain's nodes in place so that their charge fits `available_w`.

    Args:
        d: Index of the domain, written to `bound` for every node that it lowers.
        available_w: Watts for the nodes' caps and the reserve.
        guess: A level near the answer, e.g. the last one; 0 for none.
        weight: Weights of the domain's nodes, shape (n,), positive.
        lo: Smallest caps, shape (n,), watts.
        hi: Largest caps, shape (n,), watts; the result.
        cap_max: What a node may draw when it stops obeying, shape (n,), watts.
        bound: Index of the domain that bound each node last, shape (n,).
        reserve: Nodes that may jump to `cap_max` at once.
        scratch: Working rows.

    Returns:
        The level; infinity when the domain does not bind, -1 when even `lo` does not fit (nothing changed).
    """
    top = scratch.top
    if charge_of(hi, cap_max, reserve, top) <= available_w:
        return np.inf
    left_w = available_w - charge_of(lo, cap_max, reserve, top)
    if left_w < 0:
        return -1.0
    cap = scratch.node[CAP, : len(hi)]
    if not 0.0 < guess < np.inf:
        total_weight, fixed_w = 0.0, 0
        for i in range(len(hi)):
            if lo[i] < hi[i]:
                total_weight += weight[i]
            else:
                fixed_w += hi[i]
        guess = max(available_w - fixed_w, 1) / max(total_weight, 1.0)
    level = solve_level(available_w, left_w, guess, weight, lo, hi, cap_max, cap, reserve, scratch)
    for i in range(len(hi)):
        if cap[i] < hi[i]:
            hi[i] = cap[i]
            bound[i] = d
    return level
