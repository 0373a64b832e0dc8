"""What a settlement writes: the commands, and the reason for every one that is not what the bid asked for."""

import numpy as np

from ..plan import Reason
from ..tables import DECODE, PREFILL, STAGES
from .compiled import kernel
from .health import xid_drains
from .possible import command_cap
from .scratch import (
    ALLOWED,
    BAD,
    BOUND,
    CLOCK_BID,
    FLOOR,
    FREE,
    HELD,
    KIND,
    MOVING,
    PARKING,
    RESEND,
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
def reason_of_other(kind, is_unacked):
    """What bound the cap of a node that is not free to obey."""
    if kind == SILENT:
        return UNKNOWN
    if kind == HELD:
        return UNKNOWN if is_unacked else STALE
    if kind == PARKING:
        return IS_PARKED
    return IS_MOVING if kind == MOVING else IS_DRAINED


@kernel(inline=True)
def reason_of(want_w, cap_w, target_w, floor_w, is_held_back, is_small, is_decode, is_bad, is_ordered):
    """What bound a free node's cap: selects from the last rule to the first, as which one holds is hard to foresee."""
    reason = WAITING_FOR_RELEASE if is_held_back else RAMP
    reason = DEADBAND if is_small else reason
    reason = reason if cap_w < target_w else DOMAIN_LIMIT
    granted = BAD_BID if is_bad else GRANTED
    granted = CAP_RANGE if (want_w < floor_w) & (cap_w == floor_w) else granted
    reason = granted if cap_w >= want_w else reason
    reason = EMERGENCY_FLOOR if is_decode & (target_w < floor_w) else reason
    return ORDERED if is_ordered & (cap_w != want_w) else reason


@kernel
def write_plan(fleet, node_static, sn_node, st_node, plan_node, node, weight, pool):
    """Record the commands in the state and write the nodes' rows.

    Returns:
        Interventions, the summed squared relative distance between caps asked and granted, and whether a node
        is parked by shedding.
    """
    interventions, correction, shed_from = 0, 0.0, 0
    deadband_w, step_w = fleet.deadband_w, np.int64(fleet.raise_w_per_s * fleet.tick_s)
    for i in range(len(node_static)):
        static, st, row = node_static[i], st_node[i], plan_node[i]
        kind, stage, before_w, cap_max_w = node[KIND, i], st.stage_cmd, st.cap_cmd_w, static.cap_max_w
        allowed_w, is_drained, pin_w = node[ALLOWED, i], st.is_drained, st.pin_w
        target_w = allowed_w if kind == PARKING else node[TARGET, i]
        raise_w = allowed_w - before_w
        is_small = (raise_w > 0) & (raise_w < deadband_w) & (allowed_w != target_w)
        cap_w = before_w if is_small else allowed_w
        fallback_w = min(cap_w, st.fallback_share_w)
        # a ramped raise is one that the tick's step, not the watts, cut short
        is_held_back = allowed_w < min(target_w, before_w + step_w)
        command_cap(st, cap_w, fallback_w, (stage != node[STAGE_BEFORE, i]) | (node[RESEND, i] != 0))
        p = STAGES * static.service + (stage if stage < STAGES else PREFILL)
        want_w = min(np.int64(weight[i]), cap_max_w)
        if kind == FREE:
            reason = reason_of(
                want_w, cap_w, target_w, node[FLOOR, i], is_held_back, is_small, stage == DECODE, pool[BAD, p] != 0.0,
                (pin_w > 0) & (target_w == pin_w),
            )  # fmt: skip
        else:
            reason = reason_of_other(kind, st.unacked_s > 0.0)
        row.cap_w = cap_w
        row.seq = st.seq
        row.fallback_w = fallback_w
        row.want_w = want_w
        row.clock_frac = pool[CLOCK_BID, p]
        row.stage = stage
        row.is_drained = is_drained
        row.is_cordoned = 1 if is_drained != 0 and xid_drains(sn_node[i].xid) else 0
        row.reason = reason
        row.bound_domain = node[BOUND, i]
        shed_from = max(shed_from, st.shed_from)
        interventions += reason != GRANTED
        distance = (want_w - cap_w) / cap_max_w
        correction += distance * distance
    return interventions, correction, shed_from > 0
