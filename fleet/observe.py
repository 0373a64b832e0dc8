"""From a snapshot and the arbiter's memory to the features of `schema`: the same code wherever a policy runs.

Two kernels do the work: `arbiter.sums` adds over nodes in their order, so that an environment's features are the
same bits whether it is observed alone or within a batch, which pairwise or BLAS sums do not promise, and
`arbiter.features` turns sums into features. They are imported when something is first observed, so that importing
this module does not load numba.
"""

from dataclasses import dataclass

import numpy as np

from .arbiter.state import BANK_FRAC, ArbiterState
from .schema import FLEET_FEATURES, NODE_FEATURES, POOL_FEATURES, Field
from .snapshot import Snapshot
from .tables import STAGES
from .topology import Fleet


@dataclass(frozen=True)
class Observation:
    """Features of every token, float32, clipped to the ranges of `schema`, never NaN.

    Attributes:
        pool: (B, P, Fp).
        node: (B, N, Fn); (B, 0, Fn) when node features were not asked for.
        fleet: (B, Ff).
        pool_mask: (B, P), False where a service has no nodes.
        node_mask: (B, N), False for padding.
    """

    pool: np.ndarray
    node: np.ndarray
    fleet: np.ndarray
    pool_mask: np.ndarray
    node_mask: np.ndarray


class _Static:
    """What does not change between two observations of one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        node, domain = fleet.node_static, fleet.domain_static
        nodes = np.bincount(node["service"], minlength=len(fleet.services)).astype(np.float64)
        self.has_nodes = np.repeat(nodes > 0, STAGES)
        self.inverse_nodes = np.repeat(1.0 / np.maximum(nodes, 1.0), STAGES)
        self.inverse_w = 1.0 / node["cap_max_w"]
        self.peak_w = float(domain["peak_w"][0])
        self.bounds_w = float(domain["non_gpu_max_w"][0] + domain["unmanaged_w"][0])
        self.tdp_w = float(node["cap_max_w"].sum())
        self.windows = np.flatnonzero(domain["mean_w"] > 0)
        mean_w, window_s = domain["mean_w"][self.windows], domain["window_s"][self.windows]
        self.bank_max_ws = BANK_FRAC * mean_w * window_s
        self.pool_low, self.pool_high = _ranges(POOL_FEATURES)
        self.node_low, self.node_high = _ranges(NODE_FEATURES)
        self.fleet_low, self.fleet_high = _ranges(FLEET_FEATURES)


def _ranges(features: tuple[Field, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([f.low for f in features], np.float32), np.array([f.high for f in features], np.float32)


def _static_of(fleet: Fleet) -> _Static:
    # kept in the fleet's own dictionary, as cached_property does: a fleet's hash walks all its nodes
    found = fleet.__dict__.get("_observe_static")
    if found is None:
        found = fleet.__dict__["_observe_static"] = _Static(fleet)
    return found


def observe(fleet: Fleet, state: ArbiterState, snapshot: Snapshot, nodes: bool = True) -> Observation:
    """The features of every pool, node and fleet token.

    Args:
        fleet: The site.
        state: The arbiter's state after the last settlement.
        snapshot: What is known now.
        nodes: False leaves node features out, for policies that read pools only.

    Returns:
        The observation; missing values read as: util 0, draw = cap in force, demand and clock uncapped,
        latency far below target, SLOs met.
    """
    from .arbiter.features import write_features
    from .arbiter.sums import SUMS, sum_nodes

    static = _static_of(fleet)
    batch, count = snapshot.node.shape
    node = np.empty((batch, count if nodes else 0, len(NODE_FEATURES)), np.float32)
    pool = np.empty((batch, fleet.pools, len(POOL_FEATURES)), np.float32)
    fleet_features = np.empty((batch, len(FLEET_FEATURES)), np.float32)
    sums = np.zeros((batch, fleet.pools, SUMS))
    sum_nodes(
        fleet.node_static, static.inverse_w, fleet.timing.stale_s, _plain(snapshot.node), _plain(state.node),
        static.node_low, static.node_high, sums, node,
    )  # fmt: skip
    write_features(
        static.inverse_nodes, fleet.service_static, static.peak_w, static.bounds_w, static.tdp_w, static.windows,
        static.bank_max_ws, _plain(snapshot.domain), _plain(snapshot.service), _plain(state.domain),
        _plain(state.pool), sums, static.pool_low, static.pool_high, static.fleet_low, static.fleet_high,
        np.empty(len(POOL_FEATURES) + STAGES), pool, fleet_features,
    )  # fmt: skip
    return Observation(
        pool,
        node,
        fleet_features,
        np.repeat(static.has_nodes[None], batch, axis=0),
        np.ones(node.shape[:2], bool),
    )


def _plain(table: np.ndarray) -> np.ndarray:
    """The table as the kernel was compiled for it: contiguous and writeable."""
    return table if table.flags.c_contiguous and table.flags.writeable else table.copy(order="C")
