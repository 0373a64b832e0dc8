"""Pools as baselines see them: sums of a snapshot over each service's stages, and watts turned into bids."""

from dataclasses import dataclass

import numpy as np

from ..fleet.bids import Bids
from ..fleet.snapshot import Snapshot
from ..fleet.tables import STAGES
from ..fleet.topology import Fleet

SOON_S = 10.0
"""A limit announced to start within this counts already, where it is lower."""


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


class _Static:
    """What of a fleet baselines read at every decision.

    Attributes:
        fallback_w: Mean largest cap of the pool's service, shape (P,).
        gpus_per_node: Mean GPUs of the service's nodes, at least 1, shape (P,).
        gpus: GPUs of the site.
        fixed_w: What the root's limit must cover beside GPUs.
    """

    def __init__(self, fleet: Fleet) -> None:
        node = fleet.node_static
        count = np.maximum(np.bincount(node["service"], minlength=len(fleet.services)), 1)
        cap_w = np.bincount(node["service"], node["cap_max_w"], minlength=len(fleet.services))
        gpus = np.bincount(node["service"], node["gpus"], minlength=len(fleet.services))
        self.fallback_w = np.repeat(cap_w / count, STAGES)
        self.gpus_per_node = np.repeat(np.maximum(gpus / count, 1.0), STAGES)
        self.gpus = float(np.maximum(node["gpus"].sum(), 1))
        self.fixed_w = float(node["non_gpu_max_w"].sum() + fleet.domain_static["unmanaged_w"].sum())


def static_of(fleet: Fleet) -> _Static:
    """The fleet's constants, computed once."""
    # kept in the fleet's own dictionary, as cached_property does: a fleet's hash walks all its nodes
    found = fleet.__dict__.get("_pools_static")
    if found is None:
        found = fleet.__dict__["_pools_static"] = _Static(fleet)
    return found


def pool_view(fleet: Fleet, snapshot: Snapshot) -> PoolView:
    """Sum a snapshot over pools."""
    from ..fleet.arbiter.pools import sum_pools  # numba is loaded by who bids, not by who imports

    sums = np.zeros((5, snapshot.batch, fleet.pools))
    node = snapshot.node
    if not (node.flags.c_contiguous and node.flags.writeable):
        node = node.copy(order="C")
    sum_pools(fleet.node_static, static_of(fleet).fallback_w, node, sums)
    return PoolView(*sums)


def gpu_budget_w(fleet: Fleet, snapshot: Snapshot) -> np.ndarray:
    """Watts that the root leaves to GPUs: the lower of now's limit and one announced within `SOON_S`, less bounds.

    Returns:
        Shape (B,), at least 0.
    """
    root = snapshot.domain[:, 0]
    now_w, soon = root["limit_w"], root["next_in_s"] <= SOON_S
    limit_w = np.where(soon, np.minimum(now_w, root["next_limit_w"]), now_w)
    return np.maximum(limit_w - static_of(fleet).fixed_w, 0.0)


def watt_bids(want_w: np.ndarray, demand_w: np.ndarray) -> np.ndarray:
    """Bids under which the arbiter's weights are in the ratio of `want_w`.

    Only ratios matter to the water level, so the bids are centred before they are clipped.

    Args:
        want_w: Wanted caps per node, shape (B, P).
        demand_w: Mean demand per node, shape (B, P).
    """
    from ..fleet.arbiter.pools import write_watt_bids

    out = np.empty(demand_w.shape)
    write_watt_bids(want_w, demand_w, out)
    return out


def split_bids(
    fleet: Fleet, view: PoolView, prefill_share: float | np.ndarray, gain: float = 1.0, deadband_nodes: float = 0.6
) -> np.ndarray:
    """Node bids that move each disaggregated service's split towards a share of its serving and loading nodes.

    Args:
        fleet: The site.
        view: What serves now.
        prefill_share: Scalar, or shape (B, S).
        gain: 1 asks for the whole distance at once.
        deadband_nodes: Distances below this many nodes ask for nothing.

    Returns:
        Shape (B, P), in [-1, 1].
    """
    from ..fleet.arbiter.pools import write_split_bids

    share = np.asarray(prefill_share, np.float64)
    if share.ndim == 0:
        share = np.full((len(view.nodes), len(fleet.services)), share)
    out = np.empty(view.nodes.shape)
    write_split_bids(fleet.service_static, view.nodes, view.coming, share, float(gain), float(deadband_nodes), out)
    return out


def pool_bids(fleet: Fleet, snapshot: Snapshot, watts: np.ndarray, nodes: np.ndarray | None = None) -> Bids:
    """Bids with watts (B, P) and, where given, node shares (B, P); everything else neutral."""
    bids = Bids.neutral(snapshot.batch, fleet.pools, len(fleet.nodes))
    bids.pool[..., 0] = watts
    if nodes is not None:
        bids.pool[..., 1] = nodes
    return bids
