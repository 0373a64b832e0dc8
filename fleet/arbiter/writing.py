"""What a settlement writes: the commands, and the reason for every one that is not what the bid asked for."""

import numpy as np

from ..plan import Reason
from ..tables import DECODE, PREFILL, STAGES, UNKNOWN_W
from .compiled import kernel
from .health import xid_drains
from .possible import command_cap
from .scratch import (
    ALLOWED,
    BAD,
    BID_WEIGHT,
    BOUND,
    CLOCK_BID,
    DOWN,
    DRAINED,
    FLOOR,
    HELD,
    KIND,
    MOVING,
    PARKING,
    SILENT,
    STAGE_BEFORE,
    TARGET,
)

# numba reads enum members as plain numbers only when they are plain numbers
GRANTED, DOMAIN_LIMIT, CAP_RANGE, WAITING_FOR_RELEASE = (
    int(Reason.GRANTED),
    int(Reason.DOMAIN_LIMIT),
    int(Reason.CAP_RANGE),
    int(Reason.WAITING_FOR_RELEASE),
)
RAMP, STALE, UNKNOWN, IS_PARKED, IS_MOVING, IS_DRAINED, BAD_BID, EMERGENCY_FLOOR, DEADBAND, ORDERED = (
    int(Reason.RAMP),
    int(Reason.STALE),
    int(Reason.UNKNOWN),
    int(Reason.PARKED),
    int(Reason.MOVING),
    int(Reason.DRAINED),
    int(Reason.BAD_BID),
    int(Reason.EMERGENCY_FLOOR),
    int(Reason.DEADBAND),
    int(Reason.ORDERED),
)


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
    if st.pin_w > 0 and node[TARGET, i] == st.pin_w and cap_w != want_w:
        return ORDERED
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
