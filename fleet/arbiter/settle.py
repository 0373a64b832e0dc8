"""One settlement: snapshot and bids in, commands out, for every environment of a batch.

`settle` is the pure function; `settle_kernel` is the same in place, for callers that are compiled themselves
(the simulator's fused loop). Environments are settled one after the other by scalar code, so that a batch of B
equals B single settlements bit for bit.

Order within a tick: time and filters, acknowledgements, limits, health, stages, targets (lowered at once),
grants (raises out of released watts), fallbacks, plan.
"""

import numpy as np

from ..bids import Bids
from ..plan import Plan
from ..snapshot import Snapshot
from ..topology import Fleet
from .compiled import kernel
from .fallbacks import set_fallbacks
from .grants import grant, set_allowed
from .health import update_drains
from .kinds import judge_again, set_reserves
from .limits import update_limits
from .meters import apply_meters
from .overrides import clamp_to_pins, hold_pins
from .reading import clean, read_bids, read_nodes, update_filters
from .scratch import BID_WEIGHT, CAP_MAX, HI, LO, SPARE, WISH, Scratch, make_scratch, scratch_of
from .stages import command_stage, update_stages
from .state import BANK_FRAC, ArbiterState
from .taking import lend_taken, take_from_least
from .targets import drop_wishes, hold_targets, save_watts, set_targets
from .tree_filling import read_tree
from .water_filling import fill_domain
from .writing import write_plan

__all__ = ["make_scratch", "settle", "settle_kernel", "uniform_caps"]

MAX_STEP_S = 10.0
"""A settlement credits at most this much time: a clock that jumps must not refill filters, ramps or banks."""

MAX_LAPSE_S = 1e6

_IDLE_SCRATCH: dict[tuple[int, int, int], list[Scratch]] = {}
"""Working memory that no call of `settle` uses now, by size: to allocate it took a tenth of a small settlement."""


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

    spend = clean(spend_bid)
    read_bids(bid_pool, pool)
    update_limits(
        now_s,
        dt_s,
        lapse_s,
        spend,
        node_static,
        domain_static,
        fleet,
        sn_domain,
        st_node,
        st_domain,
        domain,
    )
    needs_health = read_nodes(dt_s, fleet, node_static, service_static, sn_node, st_node, bid_node, node, weight, pool)
    update_filters(dt_s, sn_service, st_pool, pool)
    if needs_health:
        update_drains(
            now_s, node_static, service_static, fleet, sn_node, st_node, st_fleet, bid_node, node, pool, scratch.count
        )
    moves, wishes = update_stages(dt_s, node_static, service_static, fleet, sn_node, st_node, st_service, node, pool)
    if needs_health or moves + wishes > 0:
        judge_again(node_static, service_static, sn_node, st_node, node)
    set_reserves(domain_static, node, domain, top)
    is_taking = apply_meters(
        dt_s, lapse_s, node_static, domain_static, fleet, sn_node, sn_domain, st_node, st_domain, scratch
    )
    if st_fleet.orders > 0:
        hold_pins(node_static, st_node, scratch)
    if wishes > 0:
        drop_wishes(node_static, domain_static, service_static, st_node, node, domain, top)
    if spend < 0.0:
        save_watts(spend, domain_static, st_domain, node, domain, top)
    if is_taking:
        lend_taken(domain)
    shed_level = set_targets(node_static, domain_static, service_static, st_node, st_domain, scratch)
    if is_taking:
        take_from_least(node_static, domain_static, service_static, scratch)
    hold_targets(fleet.deadband_w, scratch)
    if st_fleet.orders > 0:
        clamp_to_pins(node_static, st_node, node)
    set_allowed(dt_s, node_static, domain_static, fleet, node, weight, level)
    if grant(wishes, node_static, domain_static, st_node, scratch) > 0:
        for i in range(len(node_static)):
            if node[WISH, i] >= 0:
                if st_node[i].shed_from == 0:
                    st_service[node_static[i].service].move_credit -= 1.0
                command_stage(i, node[WISH, i], st_node)
                moves += 1
    set_fallbacks(
        fleet.lease_ttl_s,
        fleet.grace_s - fleet.tick_s,
        node_static,
        domain_static,
        service_static,
        st_node,
        st_domain,
        scratch,
    )
    interventions, correction, is_shedding = write_plan(
        fleet, node_static, sn_node, st_node, plan_node, node, weight[BID_WEIGHT], pool
    )
    plan_fleet.time_s = now_s
    plan_fleet.interventions = interventions
    plan_fleet.correction = correction / max(len(node_static), 1)
    plan_fleet.shed_level = max(shed_level, 3) if is_shedding else shed_level
    plan_fleet.moves = moves
    plan_fleet.is_tripped = st_fleet.is_tripped


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
    read_tree(domain_static, scratch.tree)
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
    size = (nodes, len(fleet.domains), fleet.pools)
    _check_shapes(fleet, batch, snapshot, bids)
    idle = _IDLE_SCRATCH.setdefault(size, [])
    try:  # one call pops what no other can pop then: threads never share it
        scratch = idle.pop()
    except IndexError:
        scratch = scratch_of(*size)
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
        scratch,
    )
    idle.append(scratch)
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
