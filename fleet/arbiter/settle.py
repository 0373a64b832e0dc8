"""One settlement: snapshot and bids in, commands out, for every environment of a batch.

`settle` is the pure function; `settle_kernel` is the same in place, for callers that are compiled themselves
(the simulator's fused loop). Environments are settled one after the other by scalar code, so that a batch of B
equals B single settlements bit for bit.

Order within a tick: time and filters, acknowledgements, limits, health, stages, targets (lowered at once),
grants (raises out of released watts), fallbacks, plan.
"""

import numpy as np

from ..bids import NODES_EXPONENT, WATTS_EXPONENT, Bids
from ..plan import Plan, Reason
from ..snapshot import Snapshot
from ..tables import DECODE, PARKED, PREFILL, STAGES, UNKNOWN_W
from ..topology import Fleet
from .compiled import kernel
from .health import update_drains, xid_drains
from .limits import BANK_FRAC, update_limits
from .power import (
    acknowledge,
    bound_targets,
    classify,
    command_cap,
    drop_wishes,
    grant,
    hold_targets,
    set_allowed,
    set_fallbacks,
    set_reserves,
    set_targets,
)
from .scratch import (
    ALLOWED,
    BAD,
    BID_WEIGHT,
    BOUND,
    CAP_MAX,
    CLOCK_BID,
    COMMANDED,
    DOWN,
    DRAINED,
    FACTOR,
    FLOOR,
    FRESH,
    HELD,
    HI,
    KIND,
    LO,
    MOVING,
    NODES_BID,
    PARKING,
    SERVING,
    SILENT,
    SPARE,
    STAGE_BEFORE,
    TARGET,
    USABLE_PARKED,
    UTIL_COUNT,
    UTIL_SUM,
    WISH,
    make_scratch,
)
from .stages import command_stage, update_stages
from .state import ArbiterState
from .water_filling import fill_domain

__all__ = ["make_scratch", "settle", "settle_kernel", "uniform_caps"]

MAX_STEP_S = 10.0
"""A settlement credits at most this much time: a clock that jumps must not refill filters, ramps or banks."""

MAX_LAPSE_S = 1e6
FAST_S, SLOW_S = 8.0, 50.0
"""Time constants of the pool filters (RL.md, recipe)."""

DEMAND_S = 4.0
"""Time constant of a node's demand: long enough to be written seldom, shorter than a decision."""

CLOCK_SPAN = 0.8
MAX_WEIGHT = 1e7
MAX_DWELL_S = 1e9

# numba reads enum members as plain numbers only when they are plain numbers
GRANTED, DOMAIN_LIMIT, CAP_RANGE, WAITING_FOR_RELEASE = (
    int(Reason.GRANTED),
    int(Reason.DOMAIN_LIMIT),
    int(Reason.CAP_RANGE),
    int(Reason.WAITING_FOR_RELEASE),
)
RAMP, STALE, UNKNOWN, IS_PARKED, IS_MOVING, IS_DRAINED, BAD_BID, EMERGENCY_FLOOR, DEADBAND = (
    int(Reason.RAMP),
    int(Reason.STALE),
    int(Reason.UNKNOWN),
    int(Reason.PARKED),
    int(Reason.MOVING),
    int(Reason.DRAINED),
    int(Reason.BAD_BID),
    int(Reason.EMERGENCY_FLOOR),
    int(Reason.DEADBAND),
)


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
def read_nodes(dt_s, fleet, node_static, sn_node, st_node, bid_node, node, weight, pool):
    """Acknowledge, weigh and count every node.

    Returns:
        True if health has to look at the nodes: one is drained, faulty, or bid for.
    """
    hold_step_s = min(dt_s, 2.0 * fleet.tick_s)
    gain = 1.0 - np.exp(-dt_s / DEMAND_S)
    needs_health = False
    for i in range(len(node_static)):
        static, sn, st = node_static[i], sn_node[i], st_node[i]
        is_fresh = sn.is_silent == 0 and sn.age_s <= fleet.stale_s
        node[STAGE_BEFORE, i] = st.stage_cmd
        st.dwell_s = min(st.dwell_s + dt_s, MAX_DWELL_S)
        acknowledge(static, sn, st, is_fresh, hold_step_s, fleet.firmware_lag_s, fleet.lease_ttl_s)
        is_obeying = is_fresh and st.unacked_s <= fleet.lease_ttl_s
        node[FRESH, i] = is_obeying
        # a parked node is weighed as the pool that it left would weigh it: it has no share while parked
        p = STAGES * static.service + (st.stage_cmd if st.stage_cmd < STAGES else PREFILL)
        if sn.stage == st.stage_cmd and not sn.moving_s > 0.0:
            st.demand_w = blend(st.demand_w, sn.demand_w, gain)
        else:
            st.demand_w = np.nan  # another stage has another demand
        demand_w = st.demand_w if np.isfinite(st.demand_w) else float(static.cap_max_w)
        weight[BID_WEIGHT, i] = max(1.0, min(MAX_WEIGHT, pool[FACTOR, p] * max(demand_w, 1.0)))
        if st.is_drained != 0 or xid_drains(sn.xid) or bid_node[i, 0] > 0.5:
            needs_health = True
        if not is_obeying or sn.is_up == 0 or st.is_drained != 0:
            continue
        if st.stage_cmd == PARKED:
            pool[USABLE_PARKED, STAGES * static.service] += 1.0
            continue
        pool[COMMANDED, p] += 1.0
        if sn.stage == st.stage_cmd and not sn.moving_s > 0.0:
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


@kernel
def reason_of(i, want_w, cap_w, is_held_back, is_small, static, st, node, pool, p):
    """What bound a node's cap."""
    kind = node[KIND, i]
    if kind == SILENT:
        return UNKNOWN
    if kind == HELD:
        return UNKNOWN if st.unacked_s > 0.0 else STALE
    if kind == PARKING:
        return IS_PARKED
    if kind in (DRAINED, DOWN):
        return IS_DRAINED
    if kind == MOVING:
        return IS_MOVING
    if st.stage_cmd == DECODE and node[TARGET, i] < node[FLOOR, i]:
        return EMERGENCY_FLOOR
    if cap_w >= want_w:
        if want_w < node[FLOOR, i] and cap_w == node[FLOOR, i]:
            return CAP_RANGE
        return BAD_BID if pool[BAD, p] != 0.0 else GRANTED
    if cap_w < node[TARGET, i]:
        if is_small:
            return DEADBAND
        return WAITING_FOR_RELEASE if is_held_back else RAMP
    return DOMAIN_LIMIT


@kernel
def write_plan(fleet, node_static, sn_node, st_node, plan_node, node, weight, pool):
    """Record the commands in the state and write the nodes' rows.

    Returns:
        Interventions, the summed squared relative distance between caps asked and granted, and whether a node
        is parked by shedding.
    """
    interventions, correction, is_shedding = 0, 0.0, False
    for i in range(len(node_static)):
        static, sn, st, row = node_static[i], sn_node[i], st_node[i], plan_node[i]
        kind = node[KIND, i]
        cap_w, target_w = node[ALLOWED, i], node[TARGET, i]
        if kind == PARKING:
            target_w = cap_w
        raise_w = cap_w - st.cap_cmd_w
        is_small = 0 < raise_w < fleet.deadband_w and cap_w != target_w
        if is_small:
            cap_w = st.cap_cmd_w
        fallback_w = min(cap_w, st.fallback_share_w)
        is_changed = st.stage_cmd != node[STAGE_BEFORE, i]
        is_fresh = sn.is_silent == 0 and sn.age_s <= fleet.stale_s
        if is_fresh and sn.ack_seq >= st.seq and sn.cap_w != UNKNOWN_W and sn.cap_w != st.cap_cmd_w:
            is_changed = True  # acknowledged and not in force: say it again under a new sequence
        # a ramped raise is one that the tick's step, not the watts, cut short
        is_held_back = node[ALLOWED, i] < min(target_w, st.cap_cmd_w + np.int64(fleet.raise_w_per_s * fleet.tick_s))
        command_cap(st, cap_w, fallback_w, is_changed)
        p = STAGES * static.service + (st.stage_cmd if st.stage_cmd < STAGES else PREFILL)
        want_w = min(np.int64(weight[BID_WEIGHT, i]), static.cap_max_w)
        reason = reason_of(i, want_w, cap_w, is_held_back, is_small, static, st, node, pool, p)
        row.cap_w = cap_w
        row.seq = st.seq
        row.fallback_w = fallback_w
        row.want_w = want_w
        row.clock_frac = pool[CLOCK_BID, p]
        row.stage = st.stage_cmd
        row.is_drained = st.is_drained
        row.is_cordoned = 1 if st.is_drained != 0 and xid_drains(sn.xid) else 0
        row.reason = reason
        row.bound_domain = node[BOUND, i]
        is_shedding = is_shedding or st.shed_from > 0
        if reason != GRANTED:
            interventions += 1
        distance = (want_w - cap_w) / static.cap_max_w
        correction += distance * distance
    return interventions, correction, is_shedding


@kernel
def settle_one(
    node_static,
    domain_static,
    service_static,
    fleet,
    time_s,
    sn_node,
    sn_domain,
    sn_service,
    st_node,
    st_domain,
    st_pool,
    st_service,
    st_fleet,
    bid_pool,
    bid_node,
    spend_bid,
    plan_node,
    plan_fleet,
    scratch,
):
    """Settle one environment in place."""
    node, weight, domain, level = scratch.node, scratch.weight, scratch.domain, scratch.level
    pool, top = scratch.pool, scratch.top
    lapse_s = time_s - st_fleet.time_s
    if not np.isfinite(time_s) or not lapse_s > 0.0:
        lapse_s = 0.0
    lapse_s = min(lapse_s, MAX_LAPSE_S)
    dt_s = min(lapse_s, MAX_STEP_S)
    if np.isfinite(time_s):
        st_fleet.time_s = time_s
    now_s = st_fleet.time_s
    st_fleet.ticks += 1

    read_bids(bid_pool, pool)
    update_limits(
        now_s,
        dt_s,
        lapse_s,
        clean(spend_bid),
        node_static,
        domain_static,
        fleet,
        sn_domain,
        st_node,
        st_domain,
        domain,
    )
    needs_health = read_nodes(dt_s, fleet, node_static, sn_node, st_node, bid_node, node, weight, pool)
    update_filters(dt_s, sn_service, st_pool, pool)
    if needs_health:
        update_drains(node_static, service_static, fleet, sn_node, st_node, bid_node, node, pool, scratch.count)
    moves = update_stages(dt_s, node_static, service_static, fleet, sn_node, st_node, st_service, node, pool)
    classify(node_static, fleet, sn_node, st_node, node)
    set_reserves(domain_static, node, domain)
    bound_targets(node_static, domain, domain_static, st_node, node)
    drop_wishes(node_static, domain_static, st_node, node, domain, top)
    shed_level = set_targets(node_static, domain_static, service_static, st_node, st_domain, scratch)
    hold_targets(fleet.deadband_w, domain_static, st_node, node, domain, top)
    set_allowed(dt_s, node_static, domain_static, fleet, st_node, node, weight, level)
    if grant(node_static, domain_static, st_node, scratch) > 0:
        for i in range(len(node_static)):
            if node[WISH, i] >= 0:
                if st_node[i].shed_from == 0:
                    st_service[node_static[i].service].move_credit -= 1.0
                command_stage(i, node[WISH, i], st_node)
                moves += 1
    set_fallbacks(node_static, domain_static, st_node, st_domain, scratch)
    interventions, correction, is_shedding = write_plan(
        fleet, node_static, sn_node, st_node, plan_node, node, weight, pool
    )
    plan_fleet.time_s = now_s
    plan_fleet.interventions = interventions
    plan_fleet.correction = correction / max(len(node_static), 1)
    plan_fleet.shed_level = max(shed_level, 3) if is_shedding else shed_level
    plan_fleet.moves = moves


@kernel
def settle_kernel(
    node_static,
    domain_static,
    service_static,
    fleet_static,
    time_s,
    sn_node,
    sn_domain,
    sn_service,
    st_node,
    st_domain,
    st_pool,
    st_service,
    st_fleet,
    bid_pool,
    bid_node,
    bid_fleet,
    plan_node,
    plan_fleet,
    scratch,
):
    """Settle every environment in place: `st_*` become the next state, `plan_*` are written.

    Args:
        node_static: `Fleet.node_static`, (N,); and likewise `domain_static`, `service_static`, `fleet_static`.
        time_s: Snapshot time, shape (B,).
        sn_node: Snapshot tables, (B, N), (B, D) and (B, S).
        st_node: State tables, (B, N), (B, D), (B, P), (B, S) and (B,).
        bid_pool: Bids, float32, (B, P, 3), (B, N, 2) and (B, 1); any values.
        plan_node: Plan tables, (B, N) and (B,).
        scratch: From `make_scratch`.
    """
    for b in range(len(time_s)):
        settle_one(
            node_static,
            domain_static,
            service_static,
            fleet_static[0],
            time_s[b],
            sn_node[b],
            sn_domain[b],
            sn_service[b],
            st_node[b],
            st_domain[b],
            st_pool[b],
            st_service[b],
            st_fleet[b],
            bid_pool[b],
            bid_node[b],
            bid_fleet[b, 0],
            plan_node[b],
            plan_fleet[b],
            scratch,
        )


def uniform_caps(fleet: Fleet) -> np.ndarray:
    """Equal shares of every limit, shape (N,), watts: caps that fit with nothing known about demand."""
    static, domains, scratch = fleet.node_static, fleet.domain_static, make_scratch(fleet)
    node = scratch.node
    node[LO], node[HI], node[CAP_MAX] = static["cap_min_w"], static["cap_max_w"], static["cap_max_w"]
    weight = static["cap_max_w"].astype(np.float64)
    for d in reversed(range(len(domains))):
        row = domains[d]
        limit_w = int(row["peak_w"])
        if row["mean_w"]:
            limit_w = min(limit_w, int((1.0 - BANK_FRAC) * row["mean_w"]))
        available_w = limit_w - int(row["unmanaged_w"]) - int(row["non_gpu_max_w"])
        start, end = int(row["node_start"]), int(row["node_end"])
        level = fill_domain(
            d,
            available_w,
            0.0,
            weight[start:end],
            node[LO, start:end],
            node[HI, start:end],
            node[CAP_MAX, start:end],
            node[SPARE, start:end],
            min(int(row["unknown_reserve"]), end - start),
            scratch,
        )
        if level < 0.0:
            node[HI, start:end] = node[LO, start:end]
    return node[HI].copy()


def settle(fleet: Fleet, state: ArbiterState, snapshot: Snapshot, bids: Bids) -> tuple[ArbiterState, Plan]:
    """Settle a batch: the next state and a plan that satisfies every limit, whatever the bids.

    Args:
        fleet: The site; tables of the other arguments have its shapes.
        state: State after the previous settlement; not changed.
        snapshot: What is known now.
        bids: What the policy asks for; NaN and infinities are neutral.

    Returns:
        The next state and the plan.

    Raises:
        ValueError: if a table has another shape than the fleet and the batch ask for.
    """
    batch, nodes = state.node.shape
    _check_shapes(fleet, batch, snapshot, bids)
    following = state.copy()
    plan = Plan.empty(batch, nodes)
    settle_kernel(
        fleet.node_static,
        fleet.domain_static,
        fleet.service_static,
        fleet.static,
        _plain(snapshot.time_s, np.float64),
        _plain(snapshot.node),
        _plain(snapshot.domain),
        _plain(snapshot.service),
        following.node,
        following.domain,
        following.pool,
        following.service,
        following.fleet,
        _plain(bids.pool, np.float32),
        _plain(bids.node, np.float32),
        _plain(bids.fleet, np.float32),
        plan.node,
        plan.fleet,
        make_scratch(fleet),
    )
    return following, plan


def _plain(array: np.ndarray, dtype=None) -> np.ndarray:
    """The array as the kernel was compiled for it: contiguous, writeable, of one type."""
    if array.flags.c_contiguous and array.flags.writeable and (dtype is None or array.dtype == dtype):
        return array
    return np.array(array, dtype=dtype, order="C")


def _check_shapes(fleet: Fleet, batch: int, snapshot: Snapshot, bids: Bids) -> None:
    nodes, domains, services = len(fleet.nodes), len(fleet.domains), len(fleet.services)
    for name, array, shape in (
        ("snapshot.time_s", snapshot.time_s, (batch,)),
        ("snapshot.node", snapshot.node, (batch, nodes)),
        ("snapshot.domain", snapshot.domain, (batch, domains)),
        ("snapshot.service", snapshot.service, (batch, services)),
        ("bids.pool", bids.pool, (batch, fleet.pools, 3)),
        ("bids.node", bids.node, (batch, nodes, 2)),
        ("bids.fleet", bids.fleet, (batch, 1)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; this fleet and batch need {shape}")
