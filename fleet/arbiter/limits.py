"""The limit that each power domain must fit now: demanded, announced, in force, and the bank of its window.

Windows. A domain with `mean_w` keeps a bank of unspent watt-seconds. It is credited with
`sustained_w - charged_w` per second, where `sustained_w = (1 - BANK_FRAC) * mean_w` and `charged_w` bounds the
draw, and holds at most `bank_max = BANK_FRAC * mean_w * window_s`. Over any interval of one window, wherever it
starts, the charged energy is at most

    sustained_w * window_s + bank(start) - bank(end) <= (1 - BANK_FRAC) * mean_w * window_s + bank_max
                                                      = mean_w * window_s,

as long as the bank is not overdrawn. A fixed reduction is the price of a promise about *every* window: with the
whole window as the bank, two bursts could fall into one window. The bank is spent at
`bank / SPEND_HORIZON`, so that it lasts two control intervals, or four times the time that lowered caps need to
take effect if that is longer (a delayed decay does not undershoot when rate times delay stays below 1/e).
"""

import numpy as np

from ..tables import NEVER_S
from .compiled import kernel
from .scratch import AVAILABLE, FALLBACK_AVAILABLE, FALLBACK_LIMIT
from .state import BANK_FRAC, NO_LIMIT_W

SAVE_FRAC = 0.1
"""The deepest saving bid stays this far below the sustained watts."""


@kernel
def domain_charge(node_static, st_node, start, end):
    """Largest draw of the GPUs of nodes start..end-1 by the state's own record."""
    total = 0
    for i in range(start, end):
        if st_node[i].is_parked != 0:
            total += node_static[i].parked_max_w
        else:
            total += max(st_node[i].cap_possible_w, st_node[i].cap_cmd_w)
    return total


@kernel
def track_limit_in_force(record, now_w, next_w, next_in_s, time_s, grace_s):
    """Advance the limit in force: announced cuts at their start, others after the grace, raises at once.

    A deeper cut while another waits runs its own grace from its own start, and does not prolong the first one's. A
    third within one grace waits until the first is in force.
    """
    while time_s >= record.cut_at_s:
        record.in_force_w = min(record.in_force_w, record.pending_w)
        record.pending_w, record.cut_at_s = record.deeper_w, record.deeper_at_s
        record.deeper_at_s = NEVER_S
    if now_w >= record.in_force_w or record.announced_w <= now_w:
        record.in_force_w = now_w
        record.cut_at_s = NEVER_S
        record.deeper_at_s = NEVER_S
    elif record.cut_at_s >= NEVER_S:
        record.pending_w = now_w
        record.cut_at_s = time_s + grace_s
    else:
        record.cut_at_s = min(record.cut_at_s, time_s + grace_s)  # the clock may have stepped back
        if now_w >= record.pending_w:
            record.pending_w = now_w
            record.deeper_at_s = NEVER_S
        elif record.deeper_at_s >= NEVER_S:
            record.deeper_w = now_w
            record.deeper_at_s = time_s + grace_s
        else:
            record.deeper_w = max(record.deeper_w, now_w)
            record.deeper_at_s = min(record.deeper_at_s, time_s + grace_s)
    if grace_s <= next_in_s < NEVER_S:
        record.announced_w = next_w
    elif not next_in_s < NEVER_S:
        record.announced_w = NO_LIMIT_W


@kernel
def update_limits(
    time_s, dt_s, lapse_s, spend, node_static, domain_static, fleet, sn_domain, st_node, st_domain, domain
):
    """Write the watts available to caps (now, and to fallbacks) per domain into the scratch rows.

    Args:
        dt_s: Time since the last settlement, guarded: what may be credited.
        lapse_s: The same, less guarded: what is debited.
        spend: The fleet bid in [-1, 1].
    """
    horizon_s = fleet.grace_s + 2.0 * fleet.tick_s
    spend_horizon_s = max(2.0 * fleet.control_s, 4.0 * fleet.grace_s)
    for d in range(len(domain_static)):
        static, record = domain_static[d], st_domain[d]
        now_w = max(0, min(sn_domain[d].limit_w, static.peak_w))
        next_w = max(0, min(sn_domain[d].next_limit_w, static.peak_w))
        next_in_s = sn_domain[d].next_in_s
        track_limit_in_force(record, now_w, next_w, next_in_s, time_s, fleet.grace_s)
        budget_w = now_w
        if next_in_s <= horizon_s:  # met before it starts
            budget_w = min(now_w, next_w)
        lowest_w = now_w
        if next_in_s < NEVER_S:
            lowest_w = min(now_w, next_w)
        bounds_w = static.unmanaged_w + static.non_gpu_max_w
        if static.mean_w > 0:
            sustained_w = (1.0 - BANK_FRAC) * static.mean_w
            charged_w = bounds_w + domain_charge(node_static, st_node, static.node_start, static.node_end)
            slack_w = sustained_w - charged_w
            bank_ws = record.bank_ws + slack_w * (dt_s if slack_w > 0.0 else lapse_s)
            bank_max_ws = BANK_FRAC * static.mean_w * static.window_s
            record.bank_ws = max(-static.mean_w * static.window_s, min(bank_max_ws, bank_ws))
            if record.bank_ws < 0.0:
                mean_limit_w = sustained_w + record.bank_ws / spend_horizon_s
            elif spend > 0.0:
                mean_limit_w = sustained_w + spend * record.bank_ws / spend_horizon_s
            else:
                mean_limit_w = sustained_w  # less a saving bid, which `targets.save_watts` takes off above the floors
            budget_w = min(budget_w, np.int64(max(mean_limit_w, 0.0)))
            lowest_w = min(lowest_w, np.int64(sustained_w))
        domain[AVAILABLE, d] = budget_w - bounds_w
        domain[FALLBACK_AVAILABLE, d] = np.int64(np.floor((1.0 - fleet.deepest_cut_frac) * lowest_w)) - bounds_w
        domain[FALLBACK_LIMIT, d] = lowest_w - bounds_w
