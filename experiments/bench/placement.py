"""Time of one scheduling cycle with 1,000 and 4,000 pending workloads.

The fleet has 1,000 nodes of 8 GPUs, nine tenths of them in use by queues of which some hold more than they deserve,
so that a cycle allocates, reclaims and preempts. Shapes are drawn as `envs.batch_jobs` draws them: mostly single GPUs,
shares of one, and a few large gangs.
"""

import time
from collections.abc import Callable

import numpy as np

from ...fleet.arbiter.placement import place
from ...fleet.arbiter.placement_cycle import run_cycle
from ...fleet.arbiter.placement_tables import make_lists, make_site, queue_table, site_rows, work_table
from ...fleet.errors import BadInput
from ...fleet.placement import CENT, PlacementNodes, Pod, Queue, Workload, WorkState
from ...fleet.topology import Fleet
from .fleets import five_levels
from .timing import REPEATS, Sample

NODES = 1000
PENDING = (1000, 4000)
QUEUES = 8

SHAPES = ((1, 50), (1, 25), (1, 100), (1, 100), (1, 200), (1, 400), (1, 800), (4, 800), (16, 800), (64, 800))
CHANCES = (0.12, 0.08, 0.3, 0.2, 0.08, 0.08, 0.08, 0.04, 0.015, 0.005)
"""Pods and hundredths of a GPU of each, and how often: sizes of a cluster where most jobs are small and most GPU-time
is that of large ones."""


def figures(
    progress: Callable[[str, float], None], nodes: int = NODES, pending: tuple[int, ...] = PENDING, seed: int = 0
) -> dict[str, float]:
    """Measure.

    Args:
        progress: Called with a label and the share done.
        nodes: Nodes of the fleet, of 8 GPUs each.
        pending: Pending workloads of each figure.
        seed: Of the fleet's use and the workloads.

    Returns:
        For each number of pending workloads `cycle_N_s`, CPU seconds of one call of `place` from nouns to nouns
        (smallest of the repeats: the machine's other work only ever adds), its `_median` and `_iqr`, the kernel's
        share of it `kernel_N_s`, and what the cycle did: `started_N`, `nominated_N`, `evicted_N`.

    Raises:
        BadInput: without nodes.
    """
    if nodes < 1:
        raise BadInput("nodes: at least 1 is needed")
    fleet, out = five_levels(nodes), {}
    for k, count in enumerate(pending):
        progress(f"{count} pending", k / len(pending))
        world = busy_world(fleet, count, np.random.default_rng(seed))
        result = place(fleet, *world)
        cycle = _cpu_seconds(lambda world=world: place(fleet, *world))
        out[f"cycle_{count}_s"] = min(cycle.values)
        out[f"cycle_{count}_s_median"], out[f"cycle_{count}_s_iqr"] = cycle.median, cycle.iqr
        out[f"kernel_{count}_s"] = min(kernel_seconds(fleet, *world).values)
        for name in ("started", "nominated", "evicted"):
            out[f"{name}_{count}"] = len(getattr(result, name))
    progress("done", 1.0)
    return {**out, "nodes": nodes, "gpus": int(fleet.node_static["gpus"].sum())}


def busy_world(fleet: Fleet, pending: int, rng: np.random.Generator):
    """Everything that `place` takes after the fleet: queues, workloads, nodes, bids, headroom and time."""
    gpus = fleet.node_static["gpus"]
    total = CENT * int(gpus.sum())
    queues = [Queue(f"dept{d}", None, total // 2) for d in range(2)] + [
        Queue(f"team{k}", f"dept{k % 2}", total // QUEUES, weight=1 + k % 3) for k in range(QUEUES)
    ]
    work, free = [], gpus.astype(np.int64).copy()
    for n in range(len(fleet.nodes)):
        while free[n] > 0 and rng.random() < 0.9:
            size = min(int(rng.choice([1, 2, 4, 8])), int(free[n]))
            on = Pod(n, tuple(range(int(gpus[n] - free[n]), int(gpus[n] - free[n]) + size)))
            # half of the teams hold most of the fleet
            team = int(rng.integers(0, QUEUES // 2)) if rng.random() < 0.8 else int(rng.integers(0, QUEUES))
            work.append(
                Workload(
                    f"run{len(work)}",
                    f"team{team}",
                    gpu=CENT * size,
                    priority=int(rng.choice([50, 75])),
                    state=WorkState.RUNNING,
                    started_s=float(rng.integers(0, 3600)),
                    on=(on,),
                )
            )
            free[n] -= size
    shapes = rng.choice(len(SHAPES), pending, p=CHANCES)
    for k, s in enumerate(shapes):
        pods, gpu = SHAPES[s]
        work.append(
            Workload(
                f"wait{k}",
                f"team{int(rng.integers(0, QUEUES))}",
                pods,
                gpu,
                priority=int(rng.choice([50, 75, 100])),
                prefer=3 if pods > 1 else 0,
                submitted_s=float(rng.integers(0, 7200)),
            )
        )
    n = len(fleet.nodes)
    nodes = PlacementNodes(gpus, np.ones(n, bool), np.zeros(n, np.int64), np.full(n, 100))
    headroom_w = np.full(len(fleet.domains), 100 * int(gpus.sum()))
    return queues, work, nodes, rng.uniform(-1, 1, n), headroom_w, 7200.0


def kernel_seconds(fleet: Fleet, queues, work, nodes, bids, headroom_w, now_s) -> Sample:
    """CPU seconds of the compiled part alone."""
    table, names = queue_table(queues)
    rows, submitted_ms, pod, free_pod = work_table(fleet, names, work)
    lists = make_lists(rows, submitted_ms, len(names))
    values = []
    for _ in range(REPEATS):
        site = make_site(site_rows(fleet), rows.copy(), pod.copy(), nodes, bids, headroom_w, 8)
        started = time.process_time()
        run_cycle(site, table.copy(), lists, round(1000 * now_s), free_pod, 256)
        values.append(time.process_time() - started)
    return Sample(tuple(values))


def _cpu_seconds(call: Callable[[], object]) -> Sample:
    """CPU seconds of a call: other processes of the machine do not count."""
    values = []
    for _ in range(REPEATS):
        started = time.process_time()
        call()
        values.append(time.process_time() - started)
    return Sample(tuple(values))
