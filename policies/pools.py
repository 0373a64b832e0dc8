"""Pools as baselines see them: sums of a snapshot over each service's stages, and watts turned into bids."""

from dataclasses import dataclass

import numpy as np

from ..fleet.bids import WATTS_EXPONENT, Bids
from ..fleet.snapshot import Snapshot
from ..fleet.tables import STAGES
from ..fleet.topology import Fleet


@dataclass(frozen=True)
class PoolView:
    """Sums over pools, shape (B, P) each.

    Attributes:
        nodes: Serving nodes.
        gpus: GPUs of the serving nodes.
        coming: Nodes that load this stage.
        demand_w: Mean estimated uncapped draw per serving node; the cap's maximum where nothing is known.
        cap_max_w: Mean largest legal cap per serving node.
    """

    nodes: np.ndarray
    gpus: np.ndarray
    coming: np.ndarray
    demand_w: np.ndarray
    cap_max_w: np.ndarray


def pool_view(fleet: Fleet, snapshot: Snapshot) -> PoolView:
    """Sum a snapshot over pools."""
    static, node = fleet.node_static, snapshot.node
    ready = (node["is_up"] == 1) & (node["moving_s"] <= 0)
    demand_w = np.where(np.isfinite(node["demand_w"]), node["demand_w"], static["cap_max_w"])
    shape = (snapshot.batch, fleet.pools)
    nodes, gpus, coming = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    demand, cap_max = np.zeros(shape), np.zeros(shape)
    for pool in range(fleet.pools):
        here = (static["service"] == pool // STAGES) & (node["stage"] == pool % STAGES)
        serving = here & ready
        count = serving.sum(-1)
        nodes[:, pool] = count
        gpus[:, pool] = (serving * static["gpus"]).sum(-1)
        coming[:, pool] = (here & ~ready & (node["is_up"] == 1)).sum(-1)
        fallback_w = float(static["cap_max_w"][static["service"] == pool // STAGES].mean())
        safe = np.maximum(count, 1)
        demand[:, pool] = np.where(count > 0, (serving * demand_w).sum(-1) / safe, fallback_w)
        cap_max[:, pool] = np.where(count > 0, (serving * static["cap_max_w"]).sum(-1) / safe, fallback_w)
    return PoolView(nodes, gpus, coming, np.maximum(demand, 1.0), cap_max)


def gpu_budget_w(fleet: Fleet, snapshot: Snapshot) -> np.ndarray:
    """Watts that the root leaves to GPUs: the lower of now's limit and one announced within 10 s, less bounds.

    Returns:
        Shape (B,), at least 0.
    """
    root = snapshot.domain[:, 0]
    soon = root["next_in_s"] <= 10.0
    limit_w = np.where(soon, np.minimum(root["limit_w"], root["next_limit_w"]), root["limit_w"]).astype(float)
    fixed_w = int(fleet.node_static["non_gpu_max_w"].sum() + fleet.domain_static["unmanaged_w"].sum())
    return np.maximum(limit_w - fixed_w, 0.0)


def watt_bids(want_w: np.ndarray, demand_w: np.ndarray) -> np.ndarray:
    """Bids under which the arbiter's weights are in the ratio of `want_w`.

    Only ratios matter to the water level, so the bids are centred before they are clipped.

    Args:
        want_w: Wanted caps per node, shape (B, P).
        demand_w: Mean demand per node, shape (B, P).
    """
    log_ratio = np.log(np.maximum(want_w, 1.0) / demand_w) / WATTS_EXPONENT
    centre = 0.5 * (log_ratio.max(-1, keepdims=True) + log_ratio.min(-1, keepdims=True))
    return np.clip(log_ratio - centre, -1.0, 1.0)


def pool_bids(fleet: Fleet, snapshot: Snapshot, watts: np.ndarray, nodes: np.ndarray | None = None) -> Bids:
    """Bids with watts (B, P) and, where given, node shares (B, P); everything else neutral."""
    bids = Bids.neutral(snapshot.batch, fleet.pools, len(fleet.nodes))
    bids.pool[..., 0] = watts
    if nodes is not None:
        bids.pool[..., 1] = nodes
    return bids
