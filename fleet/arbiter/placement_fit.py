"""Whether a gang fits, and where: GPUs, topology and watts in two ledgers, now and after the evictions.

A gang that starts must fit both what is free now and what will be free once evicted and nominated gangs have come and
gone; one that is nominated must fit the latter alone. Pods of a gang are equal, so that taking nodes one after the
other, each to the full, finds room whenever there is some where a GPU costs the same watts everywhere and no node must
be woken; elsewhere a second pass takes the cheapest watts first, and what both miss waits.
"""

from typing import NamedTuple

import numpy as np

from .compiled import kernel

NOW, FUTURE = 0, 1
"""Ledgers."""

# rows of Site.node
GPUS, ACCEPTS, GPU_W, BID, RANK, SKU, DOMAIN = range(7)
# rows of Site.domain
START, END, PARENT, DEPTH, DOMAIN_RANK = range(5)
# rows of Site.work: what is asked
QUEUE, PRIORITY, PODS, SHARE, REQUIRE, PREFER, SKUS, STATE, STARTED, WORK_RANK, BROKEN, POD = range(12)
# rows of Site.work: what is decided
OUTCOME, EVICTED, FOR = 12, 13, 14
WORK_ROWS = 15
# rows of Site.pod
POD_NODE, POD_GPUS = range(2)
# rows of Site.picked
PICKED, COUNT, NEW_GPUS = range(3)
# rows of Site.seen
VISITED, ROOM, SLOTS, FREE = range(4)
# entries of Site.counter
STAMP, PICKS, SCORE, FOUND = range(4)

FITS, TOO_FEW_GPUS, TOO_FEW_WATTS = range(3)

BID_STEPS = 1000
"""Bids are read in thousandths."""

WHOLE = 100
NO_BOUND_W = np.int64(1) << 60


class Site(NamedTuple):
    """Everything that fits are tried on; int64 throughout."""

    node: np.ndarray  # (7, N)
    domain: np.ndarray  # (5, D)
    work: np.ndarray  # (15, W)
    pod: np.ndarray  # (2, M)
    used: np.ndarray  # (2, N, G): hundredths of each GPU that are taken, by ledger
    head_w: np.ndarray  # (2, D): watts left below each domain's limit, by ledger
    wake_w: np.ndarray  # (2, N): watts to wake a node, 0 once it is awake
    picked: np.ndarray  # (3, N)
    seen: np.ndarray  # (4, N)
    counter: np.ndarray  # (4,)


@kernel(inline=True)
def taken(site, mode, n, g):
    """Hundredths of a GPU that are not for a pod of this mode; a GPU in use in one ledger only counts as full."""
    later = site.used[FUTURE, n, g]
    if mode == FUTURE:
        return later
    now = site.used[NOW, n, g]
    if (now > 0) != (later > 0):
        return np.int64(WHOLE)
    return max(now, later)


@kernel(inline=True)
def read_room(site, mode, n, share):
    """Write how many pods the GPUs of node `n` hold, how many of them on GPUs in use, and what is free."""
    idle, slots, free = 0, 0, 0
    for g in range(site.node[GPUS, n]):
        used = taken(site, mode, n, g)
        free += WHOLE - used
        if used == 0:
            idle += 1
        elif share < WHOLE:
            slots += (WHOLE - used) // share
    if share < WHOLE:
        room = slots + idle * (WHOLE // share)
    else:
        room, slots = idle // (share // WHOLE), 0
    site.seen[ROOM, n], site.seen[SLOTS, n], site.seen[FREE, n] = room, slots, free


@kernel(inline=True)
def new_gpus(pods, share, slots):
    """GPUs that come into use with so many pods of a node."""
    if share >= WHOLE:
        return pods * (share // WHOLE)
    per = WHOLE // share
    return (max(pods - slots, 0) + per - 1) // per


@kernel(inline=True)
def pods_within(site, mode, n, pods, share):
    """Of so many pods on node `n`, as many as every domain above it has the watts for."""
    gpu_w, slots = site.node[GPU_W, n], site.seen[SLOTS, n]
    for ledger in range(mode, 2):
        room_w = NO_BOUND_W
        d = site.node[DOMAIN, n]
        while d >= 0:
            room_w = min(room_w, site.head_w[ledger, d])
            d = site.domain[PARENT, d]
        wake_w = site.wake_w[ledger, n]
        room_w -= wake_w
        if room_w < 0 and wake_w > 0:
            return np.int64(0)
        if gpu_w > 0:
            gpus = max(room_w, 0) // gpu_w
            pods = min(pods, gpus // (share // WHOLE) if share >= WHOLE else slots + gpus * (WHOLE // share))
    return pods


@kernel(inline=True)
def charge(site, mode, n, gpus, sign):
    """Take the watts of GPUs that come into use on node `n` from every domain above it, or give them back."""
    for ledger in range(mode, 2):
        watts = sign * (gpus * site.node[GPU_W, n] + site.wake_w[ledger, n])
        d = site.node[DOMAIN, n]
        while d >= 0:
            site.head_w[ledger, d] -= watts
            d = site.domain[PARENT, d]


@kernel(inline=True)
def key_of(site, mode, n, share, by_watts):
    """Order of the nodes: higher bids, awake, on GPUs in use, fullest, then by id; the smallest key is first."""
    bid = BID_STEPS - site.node[BID, n]
    wake_w = site.wake_w[mode, n]
    key = bid << 34
    if by_watts:
        room, slots = site.seen[ROOM, n], site.seen[SLOTS, n]
        watts = (new_gpus(room, share, slots) * site.node[GPU_W, n] + wake_w) // max(room, 1)
        key = (min(watts, np.int64(1) << 16) << 45) + key
    if wake_w > 0:
        key += np.int64(1) << 33
    if share < WHOLE and site.seen[SLOTS, n] == 0:
        key += np.int64(1) << 32
    return key + (site.seen[FREE, n] << 18) + site.node[RANK, n]


@kernel
def undo(site, mode):
    """Give back the watts of what was picked."""
    for i in range(site.counter[PICKS]):
        charge(site, mode, site.picked[PICKED, i], site.picked[NEW_GPUS, i], -1)
    site.counter[PICKS] = 0


@kernel
def try_range(site, mode, w, start, end, by_watts):
    """Pick nodes start..end-1 for gang `w`; its watts are charged where it fits.

    Returns:
        FITS, TOO_FEW_GPUS or TOO_FEW_WATTS.
    """
    share, pods, skus = site.work[SHARE, w], site.work[PODS, w], site.work[SKUS, w]
    site.counter[PICKS] = site.counter[SCORE] = 0
    room = 0
    for n in range(start, end):
        site.seen[ROOM, n] = 0
        if site.node[ACCEPTS, n] != 0 and (skus >> site.node[SKU, n]) & 1 == 1:
            read_room(site, mode, n, share)
            room += site.seen[ROOM, n]
    if room < pods:
        return TOO_FEW_GPUS
    left = pods
    while left > 0:
        best, best_key = -1, np.int64(0)
        for n in range(start, end):
            if site.seen[ROOM, n] > 0:
                key = key_of(site, mode, n, share, by_watts)
                if best < 0 or key < best_key:
                    best, best_key = n, key
        if best < 0:
            undo(site, mode)
            return TOO_FEW_WATTS
        count = pods_within(site, mode, best, min(site.seen[ROOM, best], left), share)
        site.seen[ROOM, best] = 0
        if count > 0:
            gpus = new_gpus(count, share, site.seen[SLOTS, best])
            charge(site, mode, best, gpus, 1)
            i = site.counter[PICKS]
            site.picked[PICKED, i], site.picked[COUNT, i], site.picked[NEW_GPUS, i] = best, count, gpus
            site.counter[PICKS] += 1
            site.counter[SCORE] += count * site.node[BID, best]
            left -= count
    return FITS


@kernel
def try_domain(site, mode, w, d):
    """Pick nodes below domain `d` by bid, and if their watts do not fit by watts."""
    start, end = site.domain[START, d], site.domain[END, d]
    found = try_range(site, mode, w, start, end, False)
    if found == TOO_FEW_WATTS:
        found = try_range(site, mode, w, start, end, True)
    return found


@kernel
def free_below(site, mode, d):
    """Hundredths of GPUs that are free below a domain."""
    free = 0
    for n in range(site.domain[START, d], site.domain[END, d]):
        if site.node[ACCEPTS, n] != 0:
            for g in range(site.node[GPUS, n]):
                free += WHOLE - taken(site, mode, n, g)
    return free


@kernel
def fit(site, mode, w):
    """Pick nodes for gang `w`, from the domain that it prefers up to the one that it requires.

    Of domains of one depth that hold it, the one whose picked nodes bid most, then the fullest, then by id. The picks
    are left in `site.picked`, their watts charged.

    Returns:
        FITS, or the reason of the last domain tried.
    """
    require = site.work[REQUIRE, w]
    depth = max(site.work[PREFER, w], require)
    found = TOO_FEW_GPUS
    while depth >= require:
        best, best_score, best_free = -1, np.int64(0), np.int64(0)
        is_only = depth == 0
        for d in range(site.domain.shape[1]):
            if site.domain[DEPTH, d] != depth:
                continue
            result = try_domain(site, mode, w, d)
            if result == TOO_FEW_WATTS:
                found = TOO_FEW_WATTS
            if result != FITS:
                continue
            if is_only:
                return FITS
            score, free = site.counter[SCORE], free_below(site, mode, d)
            undo(site, mode)
            is_better = best < 0 or score > best_score
            if not is_better and score == best_score:
                is_better = free < best_free or (
                    free == best_free and site.domain[DOMAIN_RANK, d] < site.domain[DOMAIN_RANK, best]
                )
            if is_better:
                best, best_score, best_free = d, score, free
        if best >= 0:
            return try_domain(site, mode, w, best)
        depth -= 1
    return found


@kernel
def commit(site, mode, w, first):
    """Give the picked nodes' GPUs to gang `w`, its pods from `first` on in `site.pod`.

    A share goes to the fullest GPU in use that holds it, whole GPUs to the idle ones of the lowest index.
    """
    share, at = site.work[SHARE, w], first
    for i in range(site.counter[PICKS]):
        n = site.picked[PICKED, i]
        for _ in range(site.picked[COUNT, i]):
            gpus = np.int64(0)
            need = max(share // WHOLE, 1)
            for _ in range(need):
                best, best_used = -1, np.int64(-1)
                for g in range(site.node[GPUS, n]):
                    used = taken(site, mode, n, g)
                    if used + min(share, WHOLE) <= WHOLE and used > best_used:
                        best, best_used = g, used
                for ledger in range(mode, 2):
                    site.used[ledger, n, best] += min(share, WHOLE)
                gpus |= np.int64(1) << best
            site.pod[POD_NODE, at], site.pod[POD_GPUS, at] = n, gpus
            at += 1
        for ledger in range(mode, 2):
            site.wake_w[ledger, n] = 0
    site.work[POD, w] = first
    site.counter[PICKS] = 0


@kernel
def occupy(site, w, ledger, sign, has_watts):
    """Add a running gang's pods to a ledger (sign 1) or take them out (-1), with the watts of GPUs that change use."""
    share = min(site.work[SHARE, w], WHOLE)
    for at in range(site.work[POD, w], site.work[POD, w] + site.work[PODS, w]):
        n, gpus = site.pod[POD_NODE, at], site.pod[POD_GPUS, at]
        changed = 0
        for g in range(site.used.shape[2]):
            if (gpus >> g) & 1 == 1:
                before = site.used[ledger, n, g]
                site.used[ledger, n, g] = before + sign * share
                if (before == 0) != (site.used[ledger, n, g] == 0):
                    changed += 1
        if has_watts and changed > 0:
            watts = sign * changed * site.node[GPU_W, n]
            d = site.node[DOMAIN, n]
            while d >= 0:
                site.head_w[ledger, d] -= watts
                d = site.domain[PARENT, d]
