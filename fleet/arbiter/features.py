"""The features of pool and fleet tokens in one compiled pass over what `sums` added up.

In NumPy the pass was 22 small array operations and their temporaries, which for one environment cost as much as a
settlement. Columns are in the order of `schema`, which a test holds.
"""

import math

from ..tables import DECODE, NEVER_S, PREFILL, STAGES
from .compiled import kernel
from .sums import (
    CAP,
    CLOCK,
    COMMANDED,
    DEMAND,
    DOWN,
    MOVING,
    PARKED_NODES,
    POWER,
    SERVING,
    STALE,
    TEMP,
    UTIL,
    UTIL_COUNT,
    clip,
    finite_or,
)

POOL_COLUMNS = (
    "is_prefill",
    "is_decode",
    "log_backlog",
    "log_itl",
    "util",
    "util_fast",
    "util_slow",
    "log_rate_trend",
    "good_fast",
    "reject_fast",
    "node_share",
    "moving_share",
    "parked_share",
    "down_share",
    "cap",
    "power",
    "demand",
    "clock",
    "kv",
    "temp",
    "others_util",
    "stale",
)
FLEET_COLUMNS = ("budget", "budget_ratio", "next_ratio", "next_soon", "metered", "bank")

BACKLOG_FLOOR = 0.01
"""Share of the target added to the backlog, so that an empty queue has a logarithm."""

NOTICE_S = 60.0
"""Time constant of the feature that says how soon an announced change starts."""


@kernel(inline=True)
def _log_trend(fast, slow):
    """Logarithm of the ratio of two rates, 0 where one is unknown."""
    if math.isnan(fast) or math.isnan(slow):
        return 0.0
    return math.log(clip(fast, 1.0, 1e12) / clip(slow, 1.0, 1e12))


@kernel(inline=True)
def _pool(b, p, inverse_nodes, service_static, sn_service, st_pool, sums, util_sums, out):
    """Features of one pool, not yet clipped, into `out`."""
    s = p // STAGES
    row, heard, record, st = sums[b, p], sn_service[b, s], st_pool[b, p], service_static[s]
    serving = max(row[SERVING], 1.0)
    util = row[UTIL] / max(row[UTIL_COUNT], 1.0)
    util_fast = finite_or(record.util_fast, util)
    others = (len(inverse_nodes) // STAGES) - 1
    backlog = max(finite_or(heard.backlog_s, 0.0), 0.0) / st.ttft_s + BACKLOG_FLOOR
    out[0] = 1.0 if p % STAGES == PREFILL else 0.0
    out[1] = 1.0 if p % STAGES == DECODE else 0.0
    out[2] = math.log(backlog)
    out[3] = math.log(max(finite_or(heard.itl_s, 0.0) / st.itl_s, 1e-9))
    out[4] = util
    out[5] = util_fast
    out[6] = finite_or(record.util_slow, util_fast)
    out[7] = _log_trend(record.rate_fast_tok_s, record.rate_slow_tok_s)
    out[8] = finite_or(record.good_fast_frac, 1.0)
    out[9] = finite_or(record.reject_fast_frac, 0.0)
    out[10] = row[SERVING] * inverse_nodes[p]
    out[11] = row[MOVING] * inverse_nodes[p]
    out[12] = row[PARKED_NODES] * inverse_nodes[p]
    out[13] = row[DOWN] * inverse_nodes[p]
    out[14] = row[CAP] / serving
    out[15] = row[POWER] / serving
    out[16] = row[DEMAND] / serving
    out[17] = row[CLOCK] / serving
    out[18] = finite_or(heard.kv_frac, 0.0)
    out[19] = row[TEMP] / serving
    out[20] = (util_sums[p % STAGES] - util_fast) / others if others > 0 else 0.0
    out[21] = row[STALE] / max(row[COMMANDED], 1.0)


@kernel(inline=True)
def _fleet(b, peak_w, bounds_w, tdp_w, windows, bank_max_ws, sn_domain, st_domain, out):
    """Features of the fleet, not yet clipped, into `out`."""
    root = sn_domain[b, 0]
    limit_w = clip(float(root.limit_w), 0.0, peak_w)
    next_w, soon = limit_w, 0.0
    if root.next_in_s < NEVER_S:
        next_w = clip(float(root.next_limit_w), 0.0, peak_w)
        soon = math.exp(-max(root.next_in_s, 0.0) / NOTICE_S)
    bank = 0.0
    for i in range(len(windows)):
        share = st_domain[b, windows[i]].bank_ws / bank_max_ws[i]
        bank = share if i == 0 else min(bank, share)
    out[0] = (limit_w - bounds_w) / tdp_w
    out[1] = limit_w / peak_w
    out[2] = next_w / peak_w
    out[3] = soon
    out[4] = finite_or(root.meter_w, 0.0) / max(limit_w, 1.0)
    out[5] = bank


@kernel
def write_features(
    inverse_nodes, service_static, peak_w, bounds_w, tdp_w, windows, bank_max_ws, sn_domain, sn_service, st_domain,
    st_pool, sums, pool_low, pool_high, fleet_low, fleet_high, work, pool, fleet,
):  # fmt: skip
    """Write the features of every pool and fleet token, clipped to their ranges.

    Args:
        inverse_nodes: 1 / nodes of the pool's service, shape (P,).
        service_static: `tables.SERVICE_STATIC`, shape (S,).
        peak_w: The root's nominal limit.
        bounds_w: What the root's limit must cover beside GPUs.
        tdp_w: Sum of the largest legal caps.
        windows: Domains that have a window.
        bank_max_ws: What their banks hold.
        sn_domain: `tables.DOMAIN_SNAPSHOT`, shape (B, D).
        sn_service: `tables.SERVICE_SNAPSHOT`, shape (B, S).
        st_domain: `tables.DOMAIN_STATE`, shape (B, D).
        st_pool: `tables.POOL_STATE`, shape (B, P).
        sums: What `sums.sum_nodes` wrote, shape (B, P, SUMS).
        pool_low: Range of pool features, shape (len(POOL_COLUMNS),); the other three alike.
        work: Scratch, float64, at least len(POOL_COLUMNS) + STAGES long.
        pool: float32, shape (B, P, len(POOL_COLUMNS)).
        fleet: float32, shape (B, len(FLEET_COLUMNS)).
    """
    features = len(pool_low)
    values, util_sums = work[:features], work[features:]
    for b in range(pool.shape[0]):
        for stage in range(STAGES):
            util_sums[stage] = 0.0
        for p in range(pool.shape[1]):
            row = sums[b, p]
            util_sums[p % STAGES] += finite_or(st_pool[b, p].util_fast, row[UTIL] / max(row[UTIL_COUNT], 1.0))
        for p in range(pool.shape[1]):
            _pool(b, p, inverse_nodes, service_static, sn_service, st_pool, sums, util_sums, values)
            for f in range(features):
                pool[b, p, f] = clip(values[f], pool_low[f], pool_high[f])
        _fleet(b, peak_w, bounds_w, tdp_w, windows, bank_max_ws, sn_domain, st_domain, values)
        for f in range(len(fleet_low)):
            fleet[b, f] = clip(values[f], fleet_low[f], fleet_high[f])
