"""[[queues]] and [batch] of a scenario: jobs that arrive in queues and run on the nodes of one service.

What a job is. Published statistics of a cluster of 1,213 GPU nodes (Alibaba, "openb" tables of clusterdata
cluster-trace-gpu-v2023, commit 7a6c496e; Weng et al., ATC'23): of 7,064 jobs with GPUs 55.4 % take one whole GPU,
43.6 % a share of one (deciles 10, 25, 50, 75 and 90: 0.23, 0.46, 0.47, 0.81, 0.81), 0.2 % two, 0.2 % four and 0.6 %
eight; best-effort jobs run for 57, 142, 249, 1119 and 7365 s at the same deciles. Gangs of several nodes are not in
those tables: `gang_frac` is an assumption.
"""

import math
import zlib
from dataclasses import dataclass, field

import numpy as np

from ..fleet.errors import ScenarioError, SiteError
from ..fleet.placement import CENT, UNLIMITED, Queue, check_queues
from ..fleet.tables import NEVER_S
from ..fleet.toml_file import number
from ..fleet.topology import Fleet
from .training_jobs import training_services

JOB_STREAM = 14
"""Word of the seeds of jobs."""

SHARES = ((10, 0.05), (23, 0.05), (25, 0.05), (46, 0.35), (47, 0.2), (81, 0.3))
"""Shares of a GPU, in hundredths, and how often among shares: the deciles above as steps."""

SIZES = ((CENT, 0.554), (0, 0.436), (2 * CENT, 0.002), (4 * CENT, 0.002), (8 * CENT, 0.006))
"""GPUs of a job of one pod, in hundredths, and how often; 0 stands for a share."""

WORK_MEDIAN_S = 249.0
WORK_LOG_SD = 1.53
"""Of run times: median, and the spread of a lognormal with the quartiles 142 and 1119 s."""

MAX_PODS = 16
"""Most pods of a gang in the plant."""


@dataclass(frozen=True)
class QueueSpec:
    """[[queues]]: a share of the batch nodes' GPUs, in GPUs; see `fleet.placement.Queue`.

    Attributes:
        name: Its name.
        parent: The queue that it divides.
        quota: GPUs deserved; -1 is no bound.
        limit: Most GPUs; -1 is none.
        over_quota_weight: Share of what is left above the quotas.
        priority: Higher ones get what is left first.
        preempt_min_runtime_s: Before its own queue may preempt a job.
        reclaim_min_runtime_s: Before another queue may reclaim one.
        strict: Nothing overtakes a job that waits.
    """

    name: str
    parent: str | None = None
    quota: float = number(0.0, low=-1, high=1e6)
    limit: float = number(-1.0, low=-1, high=1e6)
    over_quota_weight: int = number(1, low=0, high=1_000_000)
    priority: int = number(0, low=-1000, high=1000)
    preempt_min_runtime_s: float = number(0.0, low=0, high=1e8)
    reclaim_min_runtime_s: float = number(0.0, low=0, high=1e8)
    strict: bool = False

    def queue(self) -> Queue:
        """The same in hundredths of a GPU."""
        return Queue(
            self.name,
            self.parent,
            _cents(self.quota),
            _cents(self.limit),
            self.over_quota_weight,
            self.priority,
            self.preempt_min_runtime_s,
            self.reclaim_min_runtime_s,
            self.strict,
        )


@dataclass(frozen=True)
class JobStream:
    """[[batch.jobs]]: jobs of one kind that arrive in one queue.

    Attributes:
        queue: A leaf queue.
        jobs_per_hour: Mean of a Poisson process.
        priority: 50 training, 75 preemptible build, 100 build, 125 inference; from 100 up never evicted.
        work_median_s: Median of the work at full clock, lognormal.
        work_log_sd: Its spread.
        work_max_s: Longer ones are cut to it.
        gang_frac: Share of jobs that are gangs of whole nodes (A).
        gang_nodes: Nodes of such a gang.
        require: Depth in the power tree of the domain that a gang must share; 0 is the site.
        prefer: Depth of the domain that it had better share.
    """

    queue: str
    jobs_per_hour: float = number(60.0, above=0, high=36000)
    priority: int = number(50, low=0, high=1000)
    work_median_s: float = number(WORK_MEDIAN_S, above=0, high=1e7)
    work_log_sd: float = number(WORK_LOG_SD, low=0, high=4)
    work_max_s: float = number(3600.0, above=0, high=1e8)
    gang_frac: float = number(0.0, low=0, high=1)
    gang_nodes: int = number(2, low=1, high=MAX_PODS)
    require: int = number(0, low=0, high=100)
    prefer: int = number(0, low=0, high=100)


@dataclass(frozen=True)
class BatchSpec:
    """[batch]: where jobs run and what starting and stopping them costs.

    Attributes:
        service: A service of the site of kind "training", whose nodes run the jobs.
        jobs: What arrives.
        restore_s: From its place until a job computes: images, weights, its checkpoint.
        leave_s: From being evicted until its GPUs are free: it writes a checkpoint.
        checkpoint_s: Work between checkpoints; what is newer is lost with a node.
        before_s: Jobs have arrived for so long when an episode starts.
        busy_frac: Dynamic draw of a GPU in use, as a share of computing all the time: a training step that computes
            for 62 % and communicates at 35 % of that draw (`TrainingSpec`) has 0.75.
    """

    service: str = ""
    jobs: tuple[JobStream, ...] = field(default=())
    restore_s: float = number(20.0, low=0, high=86400)
    leave_s: float = number(15.0, low=0, high=3600)
    checkpoint_s: float = number(120.0, low=1, high=86400)
    before_s: float = number(600.0, low=0, high=1e6)
    busy_frac: float = number(0.75, above=0, high=1)


JOB = np.dtype(
    [
        ("arrival_s", "f8"),  # NEVER_S: no such job
        ("work_s", "f8"),  # at full clock
        ("done_s", "f8"),  # within checkpoints
        ("since_s", "f8"),  # since the last one
        ("left_s", "f8"),  # of restoring or leaving
        ("started_s", "f8"),
        ("state", "i8"),  # a fleet.placement.WorkState
        ("has_started", "i8"),
        ("queue", "i8"),
        ("priority", "i8"),
        ("pods", "i8"),
        ("share", "i8"),  # hundredths of a GPU per pod
        ("require", "i8"),
        ("prefer", "i8"),
        ("pod_node", "i8", (MAX_PODS,)),
        ("pod_gpus", "i8", (MAX_PODS,)),
    ],
    align=True,
)
"""One job; rows lie by queue, falling priority and arrival, so that pending ones are in their queue's order."""


def check_batch(queues: tuple[QueueSpec, ...], batch: BatchSpec, fleet: Fleet) -> None:
    """Check queues and jobs against the site.

    Raises:
        ScenarioError: one line with the key and what to change.
    """
    if not queues and not batch.service and not batch.jobs:
        return
    try:
        check_queues([q.queue() for q in queues])
    except SiteError as e:
        raise ScenarioError(str(e)) from None
    if batch.service not in training_services(fleet):
        known = ", ".join(training_services(fleet)) or 'none: set kind = "training" under its [[service]]'
        raise ScenarioError(f"batch.service: the site has no training service {batch.service!r}; it has {known}")
    leaves = {q.name for q in queues} - {q.parent for q in queues}
    nodes = [n for n in fleet.nodes if n.service == batch.service]
    deepest = int(fleet.domain_static["depth"].max())
    for i, stream in enumerate(batch.jobs):
        where = f"batch.jobs[{i}]"
        if stream.queue not in leaves:
            raise ScenarioError(f"{where}.queue: {stream.queue!r} is no leaf queue; use {', '.join(sorted(leaves))}")
        if stream.gang_frac > 0 and stream.gang_nodes > len(nodes):
            raise ScenarioError(f"{where}.gang_nodes: {stream.gang_nodes} of {len(nodes)} nodes; lower it")
        if max(stream.require, stream.prefer) > deepest:
            raise ScenarioError(f"{where}: require and prefer are depths of the power tree, 0 to {deepest}")
    if not batch.jobs:
        raise ScenarioError("batch.jobs: none given; declare at least one under [[batch.jobs]]")


def most_jobs(batch: BatchSpec, seconds: float) -> int:
    """Rows that hold every episode's jobs: six standard deviations above the mean."""
    mean = sum(s.jobs_per_hour for s in batch.jobs) * (seconds + batch.before_s) / 3600.0
    return math.ceil(mean + 6.0 * math.sqrt(mean) + 10.0)


def draw_jobs(
    batch: BatchSpec, queue_names: list[str], fleet: Fleet, seconds: float, seed: int, arrivals: np.ndarray
) -> np.ndarray:
    """One episode's jobs.

    Args:
        batch: What arrives.
        queue_names: Of the queue table, in its order.
        fleet: The site.
        seconds: Length of the episode.
        seed: Of the episode.
        arrivals: The episode's requests, any shape: jobs belong to the load, and its seed and block draw them too.

    Returns:
        Rows of `JOB`, shape (most_jobs,).
    """
    rows = np.zeros(most_jobs(batch, seconds), JOB)
    node_gpus = min(n.gpus for n in fleet.nodes if n.service == batch.service)
    at, word = 0, zlib.crc32(np.ascontiguousarray(arrivals).tobytes())
    for k, stream in enumerate(batch.jobs):
        rng = np.random.default_rng([seed, JOB_STREAM, word, k])
        mean = stream.jobs_per_hour * (seconds + batch.before_s) / 3600.0
        count = min(int(rng.poisson(mean)), len(rows) - at)
        part = rows[at : at + count]
        part["arrival_s"] = np.sort(rng.uniform(-batch.before_s, seconds, count))
        work_s = stream.work_median_s * np.exp(stream.work_log_sd * rng.standard_normal(count))
        part["work_s"] = np.clip(work_s, 1.0, stream.work_max_s)
        size, chance = np.array(SIZES).T
        share = size[rng.choice(len(size), count, p=chance / chance.sum())].astype(np.int64)
        small, often = np.array(SHARES).T
        shares = small[rng.choice(len(small), count, p=often / often.sum())].astype(np.int64)
        part["share"] = np.minimum(np.where(share == 0, shares, share), CENT * node_gpus)
        part["pods"] = 1
        is_gang = rng.random(count) < stream.gang_frac
        part["share"][is_gang], part["pods"][is_gang] = CENT * node_gpus, stream.gang_nodes
        part["queue"], part["priority"] = queue_names.index(stream.queue), stream.priority
        part["require"], part["prefer"] = stream.require, stream.prefer
        at += count
    return in_order(rows[:at], len(rows))


def in_order(rows: np.ndarray, count: int) -> np.ndarray:
    """Jobs by queue, falling priority and arrival, and rows without a job up to `count`."""
    out = np.zeros(count, JOB)
    out["arrival_s"] = NEVER_S
    out[: len(rows)] = rows[np.lexsort((rows["arrival_s"], -rows["priority"], rows["queue"]))]
    return out


def _cents(gpus: float) -> int:
    """GPUs in hundredths; -1 stays."""
    return UNLIMITED if gpus < 0 else round(CENT * gpus)
