"""Nouns of placement: queues, workloads and where they run, with amounts in hundredths of a GPU.

The words and their meaning are those of FIELD.md section 3 (queues with quota, limit and over-quota weight; gangs;
fractions of a GPU as shares of its memory; levels of topology). `arbiter.placement` decides, `docs/placement.md` says
how.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from .errors import SiteError
from .topology import Fleet

CENT = 100
"""Amounts of GPUs are whole hundredths, so that shares add up exactly."""

UNLIMITED = -1
"""A quota or limit that is none; 0 is nothing at all."""

NON_PREEMPTIBLE = 100
"""Priorities from here up are never evicted, and run within their queue's quota only (FIELD.md section 3)."""

GPU_MEMORY_MIB = {
    "A100-SXM": 76_293,
    "H100-SXM": 76_293,
    "H200-SXM": 134_468,
    "B200-SXM": 171_661,
    "B300-SXM": 274_658,
    "GB200-NVL72": 177_383,
    "GB300-NVL72": 274_658,
}
"""Memory of one GPU: the vendors' gigabytes (80, 80, 141, 180, 288, 186 and 288) in MiB, rounded down."""


class WorkState(IntEnum):
    """Where a workload stands."""

    PENDING = 0
    RUNNING = 1
    LEAVING = 2  # evicted, its GPUs and watts not free yet
    OVER = 3  # finished, or not arrived: takes part in nothing


class Wait(IntEnum):
    """Why a pending workload did not start; STARTED if it did."""

    STARTED = 0
    NO_ROOM = 1  # no GPUs that fit its shape
    NO_POWER = 2  # GPUs, but not the watts to run them
    QUEUE_LIMIT = 3
    OVER_QUOTA = 4  # not preemptible, and its queue's quota is used up
    BEHIND = 5  # its strict queue waits for an earlier workload
    LIKE_EARLIER = 6  # at least as large as one that found no room before it
    NOMINATED = 7  # its place is being cleared: it starts when the watts and GPUs are released
    NOT_CONSIDERED = 8  # not pending


class Eviction(IntEnum):
    """Why a running workload must leave."""

    NONE = 0
    RECLAIMED = 1  # for a queue below its fair share
    PREEMPTED = 2  # for a higher priority of its own queue
    BROKEN = 3  # a member's node is gone: gangs run whole or not at all


@dataclass(frozen=True)
class Queue:
    """A share of the fleet's GPUs.

    Attributes:
        parent: Name of the queue that this one divides; None at the top.
        quota: Deserved GPUs, in hundredths; UNLIMITED for no bound, 0 for none.
        limit: Most GPUs, in hundredths; UNLIMITED for none.
        weight: Share of what is left above the quotas.
        priority: Higher ones get what is left first.
        preempt_min_s: A workload runs at least this long before its own queue may preempt it.
        reclaim_min_s: The same before another queue may reclaim.
        is_strict: Nothing overtakes a workload that waits; else smaller ones may backfill.
    """

    name: str
    parent: str | None = None
    quota: int = 0
    limit: int = UNLIMITED
    weight: int = 1
    priority: int = 0
    preempt_min_s: float = 0.0
    reclaim_min_s: float = 0.0
    is_strict: bool = False


@dataclass(frozen=True)
class Pod:
    """One member of a running gang: a node and the GPUs that it holds there."""

    node: int
    gpus: tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """A gang of equal pods that run together or not at all.

    Attributes:
        queue: A leaf queue.
        pods: Members of the gang.
        gpu: Of each, in hundredths of a GPU: below 100 a share of one GPU's memory, else whole GPUs.
        memory_mib: Memory needed on each GPU; raises a share, and rules out smaller products.
        skus: Products that it may run on; empty for any.
        priority: 50 training, 75 preemptible build, 100 build, 125 inference.
        require: Depth in the power tree of the domain that all its pods must share; 0 is the whole site.
        prefer: Depth of the domain that they had better share; 0 for no preference.
        submitted_s: When it was handed in.
        state: Where it stands.
        started_s: When it last started.
        on: Its pods where it runs or leaves; empty else.
        is_broken: It runs, but not whole.
    """

    name: str
    queue: str
    pods: int = 1
    gpu: int = CENT
    memory_mib: int = 0
    skus: tuple[str, ...] = ()
    priority: int = 50
    require: int = 0
    prefer: int = 0
    submitted_s: float = 0.0
    state: WorkState = WorkState.PENDING
    started_s: float = 0.0
    on: tuple[Pod, ...] = ()
    is_broken: bool = False


@dataclass(frozen=True)
class PlacementNodes:
    """What placement must know of every node; arrays of shape (N,).

    Attributes:
        gpus: Healthy GPUs; 0 where the node is down.
        accepts: May get new work: fresh, not cordoned, not draining, and, if parked, allowed to be woken.
        wake_w: Watts that waking it takes before its first GPU is in use; 0 where it is awake.
        gpu_w: Watts reserved for each GPU in use.
    """

    gpus: np.ndarray
    accepts: np.ndarray
    wake_w: np.ndarray
    gpu_w: np.ndarray


@dataclass(frozen=True)
class Placed:
    """A gang and where its pods go."""

    workload: str
    on: tuple[Pod, ...]


@dataclass(frozen=True)
class Evicted:
    """A gang that must leave, why, and for whom ("" where it is broken)."""

    workload: str
    reason: Eviction
    beneficiary: str


@dataclass(frozen=True)
class Placements:
    """What one scheduling cycle decided.

    Attributes:
        started: Gangs that start now: GPUs and watts are free and reserved.
        nominated: Gangs whose place is being cleared; they start in a later cycle.
        evicted: Gangs that must leave.
        waits: Why each pending workload did not start, by name.
        wake: Indices of parked nodes to wake for the gangs that start.
        fair_share: Hundredths of GPUs that each queue deserves, by name.
    """

    started: tuple[Placed, ...] = ()
    nominated: tuple[Placed, ...] = ()
    evicted: tuple[Evicted, ...] = ()
    waits: dict[str, Wait] = field(default_factory=dict)
    wake: tuple[int, ...] = ()
    fair_share: dict[str, int] = field(default_factory=dict)


def check_queues(queues: Sequence[Queue]) -> None:
    """Check that queues form trees with sensible numbers.

    Raises:
        SiteError: one line that names the queue and what to change.
    """
    by_name = {q.name: q for q in queues}
    if not queues:
        raise SiteError("queues: none given; declare at least one under [[queues]]")
    if len(by_name) < len(queues):
        twice = next(q.name for i, q in enumerate(queues) if q.name in [p.name for p in queues[:i]])
        raise SiteError(f"two queues are called {twice!r}; rename one")
    for q in queues:
        if q.quota < UNLIMITED or q.limit < UNLIMITED or q.weight < 0:
            raise SiteError(f"queue {q.name!r}: quota and limit are at least 0 or -1 for none, weight at least 0")
        if UNLIMITED < q.limit < q.quota:
            raise SiteError(f"queue {q.name!r}: its limit is below its quota; raise the limit")
        seen, at = [q.name], q
        while at.parent is not None:
            if at.parent not in by_name:
                raise SiteError(f"queue {at.name!r}: no parent queue {at.parent!r}; declare it under [[queues]]")
            at = by_name[at.parent]
            if at.name in seen:
                raise SiteError("queues form a cycle: " + " -> ".join([*seen, at.name]))
            seen.append(at.name)


def check_workload(work: Workload, queues: Sequence[Queue], fleet: Fleet) -> None:
    """Check one workload against the queues and the site.

    Raises:
        SiteError: one line that names the workload and what to change.
    """
    where = f"workload {work.name!r}"
    leaves = {q.name for q in queues} - {q.parent for q in queues}
    if work.queue not in leaves:
        raise SiteError(f"{where}: {work.queue!r} is no leaf queue; use {', '.join(sorted(leaves))}")
    if work.pods < 1 or work.gpu < 1:
        raise SiteError(f"{where}: pods and gpu must be at least 1 (gpu is in hundredths)")
    if work.gpu > CENT and work.gpu % CENT:
        raise SiteError(f"{where}: {work.gpu / CENT:g} GPUs a pod; give a share below 1 or a whole number")
    deepest = int(fleet.domain_static["depth"].max())
    if not 0 <= work.require <= deepest or not 0 <= work.prefer <= deepest:
        raise SiteError(f"{where}: require and prefer are depths of the power tree, 0 to {deepest}")
    unknown = [s for s in work.skus if s not in fleet.sku_names]
    if unknown:
        raise SiteError(f"{where}: the site has no {unknown[0]}; it has {', '.join(fleet.sku_names)}")


def share_of(work: Workload, fleet: Fleet) -> tuple[int, int]:
    """Hundredths of a GPU that each pod takes, and the products that can hold it, as bits over `fleet.sku_names`.

    A share is the same on every product, that of the smallest memory that can hold the pod: one number is charged to
    the queue wherever it lands. Without a product that can hold it no bit is set, and it waits for ever.
    """
    fits = [
        k
        for k, name in enumerate(fleet.sku_names)
        if work.memory_mib <= GPU_MEMORY_MIB[name] and (not work.skus or name in work.skus)
    ]
    bits = sum(1 << k for k in fits)
    if work.gpu >= CENT or not fits:
        return work.gpu, bits
    smallest_mib = min(GPU_MEMORY_MIB[fleet.sku_names[k]] for k in fits)
    return max(work.gpu, -(-CENT * work.memory_mib // smallest_mib)), bits
