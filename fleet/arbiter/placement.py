"""Placement: which workloads start where, and which must leave, in one scheduling cycle (guarantee 8).

`place` is pure. The cycle is that of FIELD.md section 3: allocate in the queues' order, then reclaim for queues below
their fair share, then preempt within queues. Whatever bids say, only the order of feasible nodes follows them.
"""

from collections.abc import Sequence

import numpy as np

from ..placement import (
    PlacementNodes,
    Placements,
    Queue,
    Workload,
)
from ..topology import Fleet
from .placement_cycle import run_cycle
from .placement_tables import make_lists, make_site, placements_of, queue_table, site_rows, work_table

MAX_TRIES = 256
"""Gangs for which a cycle looks for victims; the rest wait for the next one, so that a cycle's time is bounded."""


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
    return placements_of(site, table, names, workloads)
