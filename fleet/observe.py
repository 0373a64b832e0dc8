"""From a snapshot and the arbiter's memory to the features of `schema`: the same code wherever a policy runs.

Sums over nodes are made by a kernel that adds in the order of the nodes: an environment's features are the same
bits whether it is observed alone or within a batch, which pairwise or BLAS sums do not promise. The kernel is
imported when something is first observed, so that importing this module does not load numba.
"""

from dataclasses import dataclass

import numpy as np

from .arbiter.state import BANK_FRAC, ArbiterState
from .schema import FLEET_FEATURES, NODE_FEATURES, POOL_FEATURES, Field
from .snapshot import Snapshot
from .tables import NEVER_S, PREFILL, STAGES
from .topology import Fleet

BACKLOG_FLOOR = 0.01
"""Share of the target added to the backlog, so that an empty queue has a logarithm."""

NOTICE_S = 60.0
"""Time constant of the feature that says how soon an announced change starts."""


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
        self.ttft_s = np.repeat(fleet.service_static["ttft_s"], STAGES)
        self.itl_s = np.repeat(fleet.service_static["itl_s"], STAGES)
        self.is_prefill = np.arange(fleet.pools) % STAGES == PREFILL
        self.pool_service = np.repeat(np.arange(len(fleet.services)), STAGES)
        self.peak_w = float(domain["peak_w"][0])
        self.bounds_w = float(domain["non_gpu_max_w"][0] + domain["unmanaged_w"][0])
        self.tdp_w = float(node["cap_max_w"].sum())
        self.windows = np.flatnonzero(domain["mean_w"] > 0)
        mean_w, window_s = domain["mean_w"][self.windows], domain["window_s"][self.windows]
        self.bank_max_ws = BANK_FRAC * mean_w * window_s
        self.pool_low, self.pool_high = _ranges(POOL_FEATURES)
        self.node_low, self.node_high = _ranges(NODE_FEATURES)
        self.fleet_low, self.fleet_high = _ranges(FLEET_FEATURES)
        self.pool_columns = {f.name: i for i, f in enumerate(POOL_FEATURES)}
        self.fleet_columns = {f.name: i for i, f in enumerate(FLEET_FEATURES)}


def _ranges(features: tuple[Field, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([f.low for f in features], np.float32), np.array([f.high for f in features], np.float32)


def _static_of(fleet: Fleet) -> _Static:
    # kept in the fleet's own dictionary, as cached_property does: a fleet's hash walks all its nodes
    found = fleet.__dict__.get("_observe_static")
    if found is None:
        found = fleet.__dict__["_observe_static"] = _Static(fleet)
    return found


def _filled(values: np.ndarray, missing) -> np.ndarray:
    """Values with everything that is not finite replaced; contiguous."""
    return np.where(np.isfinite(values), values, missing)


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
    from .arbiter.sums import SUMS, sum_nodes

    static = _static_of(fleet)
    batch, count = snapshot.node.shape
    node = np.zeros((batch, count if nodes else 0, len(NODE_FEATURES)), np.float32)
    sums = np.zeros((batch, fleet.pools, SUMS))
    sum_nodes(fleet.node_static, fleet.timing.stale_s, _plain(snapshot.node), _plain(state.node), sums, node)
    np.clip(node, static.node_low, static.node_high, out=node)
    pool = _pool_features(static, state, snapshot, sums)
    np.clip(pool, static.pool_low, static.pool_high, out=pool)
    fleet_features = _fleet_features(static, state, snapshot)
    np.clip(fleet_features, static.fleet_low, static.fleet_high, out=fleet_features)
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


def _pool_features(static: _Static, state: ArbiterState, snapshot: Snapshot, sums: np.ndarray) -> np.ndarray:
    from .arbiter import sums as row

    batch, pools, _ = sums.shape
    sums = np.ascontiguousarray(sums.transpose(2, 0, 1))
    serving = sums[row.SERVING]
    means = sums / np.maximum(serving, 1.0)
    util = sums[row.UTIL] / np.maximum(sums[row.UTIL_COUNT], 1.0)
    service = snapshot.service[:, static.pool_service]
    record = state.pool
    util_fast = _filled(record["util_fast"], util)
    trend = np.clip(record["rate_fast_tok_s"], 1.0, 1e12) / np.clip(record["rate_slow_tok_s"], 1.0, 1e12)
    backlog = np.maximum(_filled(service["backlog_s"], 0.0), 0.0) / static.ttft_s + BACKLOG_FLOOR
    itl = np.maximum(_filled(service["itl_s"], 0.0) / static.itl_s, 1e-9)
    out = np.empty((batch, pools, len(POOL_FEATURES)), np.float32)
    column = static.pool_columns
    logs = np.log(np.stack((backlog, itl, _filled(trend, 1.0))))
    for name, value in (
        ("is_prefill", static.is_prefill),
        ("is_decode", ~static.is_prefill),
        ("log_backlog", logs[0]),
        ("log_itl", logs[1]),
        ("util", util),
        ("util_fast", util_fast),
        ("util_slow", _filled(record["util_slow"], util_fast)),
        ("log_rate_trend", logs[2]),
        ("good_fast", _filled(record["good_fast_frac"], 1.0)),
        ("reject_fast", _filled(record["reject_fast_frac"], 0.0)),
        ("node_share", serving * static.inverse_nodes),
        ("moving_share", sums[row.MOVING] * static.inverse_nodes),
        ("parked_share", sums[row.PARKED_NODES] * static.inverse_nodes),
        ("down_share", sums[row.DOWN] * static.inverse_nodes),
        ("cap", means[row.CAP]),
        ("power", means[row.POWER]),
        ("demand", means[row.DEMAND]),
        ("clock", means[row.CLOCK]),
        ("kv", _filled(service["kv_frac"], 0.0)),
        ("temp", means[row.TEMP]),
        ("others_util", _others(util_fast)),
        ("stale", sums[row.STALE] / np.maximum(sums[row.COMMANDED], 1.0)),
    ):
        out[:, :, column[name]] = value
    return out


def _others(util_fast: np.ndarray) -> np.ndarray:
    """Mean over the other services' pools of the same stage; 0 where there is one service only."""
    batch, pools = util_fast.shape
    services = pools // STAGES
    if services == 1:
        return np.zeros((batch, pools))
    by_stage = util_fast.reshape(batch, services, STAGES)
    total = np.zeros((batch, STAGES))
    for s in range(services):
        total += by_stage[:, s]
    return ((total[:, None] - by_stage) / (services - 1)).reshape(batch, pools)


def _fleet_features(static: _Static, state: ArbiterState, snapshot: Snapshot) -> np.ndarray:
    root = snapshot.domain[:, 0]
    limit_w = np.clip(root["limit_w"], 0, static.peak_w)
    is_announced = root["next_in_s"] < NEVER_S
    next_w = np.where(is_announced, np.clip(root["next_limit_w"], 0, static.peak_w), limit_w)
    next_in_s = np.where(is_announced, np.maximum(root["next_in_s"], 0.0), np.inf)
    bank = np.zeros(len(limit_w))
    if len(static.windows):
        bank = (state.domain["bank_ws"][:, static.windows] / static.bank_max_ws).min(axis=1)
    out = np.empty((len(limit_w), len(FLEET_FEATURES)), np.float32)
    column = static.fleet_columns
    for name, value in (
        ("budget", (limit_w - static.bounds_w) / static.tdp_w),
        ("budget_ratio", limit_w / static.peak_w),
        ("next_ratio", next_w / static.peak_w),
        ("next_soon", np.exp(-next_in_s / NOTICE_S)),
        ("metered", _filled(root["meter_w"], 0.0) / np.maximum(limit_w, 1.0)),
        ("bank", bank),
    ):
        out[:, column[name]] = value
    return out
