"""What a settlement reads: bids, telemetry and the averages that are kept of them."""

import numpy as np

from ..bids import NODES_EXPONENT, WATTS_EXPONENT
from ..tables import PARKED, PREFILL, STAGES, UNKNOWN_W
from .compiled import kernel
from .health import xid_drains
from .kinds import judge, judge_usual
from .possible import acknowledge, acknowledge_usual
from .scratch import (
    BAD,
    BID_WEIGHT,
    CLOCK_BID,
    COMMANDED,
    FACTOR,
    FRESH,
    NODES_BID,
    RESEND,
    SERVING,
    STAGE_BEFORE,
    USABLE_PARKED,
    UTIL_COUNT,
    UTIL_SUM,
)

FAST_S, SLOW_S = 8.0, 50.0
"""Time constants of the pool filters (RL.md, recipe)."""

DEMAND_S = 4.0
"""Time constant of a node's demand: long enough to be written seldom, shorter than a decision."""

CLOCK_SPAN = 0.8
MAX_WEIGHT = 1e7
MAX_DWELL_S = 1e9


@kernel(inline=True)
def clean(bid):
    """A bid as a float in [-1, 1]; NaN and infinities are neutral."""
    if not np.isfinite(bid):
        return 0.0
    return max(-1.0, min(1.0, float(bid)))


@kernel(inline=True)
def blend(old, new, gain):
    """Exponential average that starts at its first value and keeps the last one when a value is missing."""
    if not np.isfinite(new):
        return old
    if not np.isfinite(old):
        return new
    return old + gain * (new - old)


@kernel
def read_bids(bid_pool, pool):
    """Write what the pool bids mean into the scratch rows."""
    for p in range(len(bid_pool)):
        pool[FACTOR, p] = np.exp(WATTS_EXPONENT * clean(bid_pool[p, 0]))
        pool[NODES_BID, p] = NODES_EXPONENT * clean(bid_pool[p, 1])
        pool[CLOCK_BID, p] = 1.0 + CLOCK_SPAN * min(clean(bid_pool[p, 2]), 0.0)
        is_bad = not (np.isfinite(bid_pool[p, 0]) and np.isfinite(bid_pool[p, 1]) and np.isfinite(bid_pool[p, 2]))
        pool[BAD, p] = 1.0 if is_bad else 0.0
        pool[COMMANDED, p] = 0.0
        pool[SERVING, p] = 0.0
        pool[UTIL_SUM, p] = 0.0
        pool[UTIL_COUNT, p] = 0.0
        pool[USABLE_PARKED, p] = 0.0


@kernel
def read_nodes(dt_s, fleet, node_static, service_static, sn_node, st_node, bid_node, node, weight, pool):
    """Acknowledge, weigh, count and judge every node: all that the telemetry is read for, in one pass.

    Returns:
        True if health has to look at the nodes: one is drained, faulty, or bid for.
    """
    stale_s, lease_ttl_s, firmware_lag_s = fleet.stale_s, fleet.lease_ttl_s, fleet.firmware_lag_s
    hold_step_s = min(dt_s, fleet.tick_s)  # a clock that jumps releases nothing early
    gain = 1.0 - np.exp(-dt_s / DEMAND_S)
    needs_health = False
    for i in range(len(node_static)):
        static, sn, st = node_static[i], sn_node[i], st_node[i]
        stage, is_fresh = st.stage_cmd, (sn.is_silent == 0) & (sn.age_s <= stale_s)
        is_there = (sn.stage == stage) & (not sn.moving_s > 0.0)
        is_serving = is_there & (stage < STAGES) & (sn.is_up != 0) & (st.is_drained == 0)
        has_obeyed = (sn.ack_seq >= max(st.seq, st.wait_seq)) & (sn.cap_w == st.cap_cmd_w) & (sn.cap_w != UNKNOWN_W)
        st.dwell_s = min(st.dwell_s + dt_s, MAX_DWELL_S)
        node[STAGE_BEFORE, i] = stage
        if is_fresh & is_serving & has_obeyed & (sn.xid == 0) & (not bid_node[i, 0] > 0.5):
            # nearly every node: one foreseen branch in place of all those that the rules below need
            acknowledge_usual(sn, st, hold_step_s, firmware_lag_s)
            judge_usual(i, static, service_static, st, node)
            is_obeying = True
            node[RESEND, i] = 0
        else:
            acknowledge(static, sn, st, is_fresh, hold_step_s, firmware_lag_s, lease_ttl_s)
            is_obeying = is_fresh and st.unacked_s <= lease_ttl_s
            judge(i, is_obeying, -1, static, service_static, sn, st, node)
            # acknowledged and not in force: say it again under a new sequence
            is_lost = (sn.ack_seq >= st.seq) & (sn.cap_w != UNKNOWN_W) & (sn.cap_w != st.cap_cmd_w)
            node[RESEND, i] = is_fresh & is_lost
            if st.is_drained != 0 or xid_drains(sn.xid) or bid_node[i, 0] > 0.5:
                needs_health = True
        node[FRESH, i] = is_obeying
        # a parked node is weighed as the pool that it left would weigh it: it has no share while parked
        p = STAGES * static.service + (stage if stage < STAGES else PREFILL)
        demand_w = blend(st.demand_w, sn.demand_w, gain) if is_there else np.nan  # another stage, another demand
        st.demand_w = demand_w
        demand_w = demand_w if np.isfinite(demand_w) else float(static.cap_max_w)
        weight[BID_WEIGHT, i] = max(1.0, min(MAX_WEIGHT, pool[FACTOR, p] * max(demand_w, 1.0)))
        if not is_obeying or sn.is_up == 0 or st.is_drained != 0:
            continue
        if stage == PARKED:
            pool[USABLE_PARKED, STAGES * static.service] += 1.0
            continue
        pool[COMMANDED, p] += 1.0
        if is_there:
            pool[SERVING, p] += 1.0
            if np.isfinite(sn.util_frac):
                pool[UTIL_SUM, p] += max(0.0, sn.util_frac)
                pool[UTIL_COUNT, p] += 1.0
    return needs_health


@kernel
def update_filters(dt_s, sn_service, st_pool, pool):
    """Advance the pools' exponential averages."""
    fast, slow = 1.0 - np.exp(-dt_s / FAST_S), 1.0 - np.exp(-dt_s / SLOW_S)
    for p in range(len(st_pool)):
        sn, record = sn_service[p // STAGES], st_pool[p]
        util = pool[UTIL_SUM, p] / pool[UTIL_COUNT, p] if pool[UTIL_COUNT, p] > 0.0 else np.nan
        if p % STAGES == PREFILL:
            tokens, good = sn.prompt_tokens, sn.ttft_ok_frac
        else:
            tokens, good = sn.output_tokens, sn.itl_ok_frac
        # no arrivals have no mean length; they ask for no tokens
        rate = 0.0 if sn.arrival_rps == 0.0 else sn.arrival_rps * tokens
        record.util_fast = blend(record.util_fast, util, fast)
        record.util_slow = blend(record.util_slow, util, slow)
        record.rate_fast_tok_s = blend(record.rate_fast_tok_s, rate, fast)
        record.rate_slow_tok_s = blend(record.rate_slow_tok_s, rate, slow)
        record.good_fast_frac = blend(record.good_fast_frac, good, fast)
        record.reject_fast_frac = blend(record.reject_fast_frac, sn.reject_frac, fast)
        record.nodes_bid = blend(record.nodes_bid, pool[NODES_BID, p], fast)
        pool[NODES_BID, p] = record.nodes_bid
