"""What meters change: watts taken back when a meter reads above a limit that the caps fit, and bounds charged higher.

Caps govern GPUs; everything else is covered by declared bounds (`non_gpu_max_w`, `unmanaged_w`). Where they are too
low a domain draws more than its limit although every cap fits. Two things answer:

* The **excursion loop** (FIELD.md section 5). A fresh meter above the limit in force, although what is commanded and
  possible fits it, takes back twice the deficit at once, from its least important service first (`taking`). It waits
  10 s, verifies, and takes again. It never takes more than leaves every node its floor: where that is not enough,
  `is_exhausted` is the alert. Once the meter has stayed well below the limit for a minute the watts are given back
  slowly.
* The **charged bound**. Meter less GPUs, averaged over some seconds, is what a domain draws beside its GPUs. Its
  upper quantile is tracked (up at once, down within an hour), and where it is above the declared bound the difference
  is charged, to the domain and to those that feed it, to caps, fallbacks and windows. Less than the declared bound is
  charged only where the site allows it (`meters_loosen`), to caps alone, and after a full day of readings below it.

What is withheld is the larger of the two, since both say the same. A meter that is missing, stale, implausible, or
that reads the same for long changes nothing: nothing is taken, given back, or forgotten on its word.
"""

import numpy as np

from .breach import WAIT_S, update_breach
from .compiled import kernel
from .limits import domain_charge
from .scratch import AVAILABLE, CAP_MAX, FALLBACK_AVAILABLE, FALLBACK_LIMIT, LO, RESERVE, TAKEN
from .water_filling import charge_of

MISSING, FROZEN, READ, CHANGED = range(4)
"""What a reading is worth."""

TAKE_FACTOR = 2.0
"""FIELD.md section 5: take back twice the deficit."""

FROZEN_S = 15.0
"""A reading that has not changed by the last bit for this long is not believed: meters of racks of servers flicker."""

PLAUSIBLE_FACTOR = 4.0
"""A reading above this many times the domain's largest limit is a fault of the meter, not power."""

CLEAR_FRAC, CLEAR_S = 0.005, 60.0
"""Watts are given back once the meter stayed this share of the limit below it for this long."""

GIVE_FRAC_PER_S = 0.0005
"""... at this share of the limit per second: 1 % in 20 s, twice as slow as one take-back waits to be judged."""

AVERAGE_S = 10.0
"""Meter and GPU telemetry are not of the same instant: their difference is averaged before it is believed."""

FORGET_S = 3600.0
"""Time constant with which the upper quantile forgets a peak."""

DAY_S = 86400.0
"""Readings of a full day, its hottest hours and its cron jobs included, before less than declared is charged."""

MAX_SPARE_FRAC = 0.5
"""At most this share of the declared bounds is ever left uncharged."""

MAX_EXCESS_FRAC = 0.5
"""At most this share of the declared bounds is charged on top of them: a meter alone must not shut a site down."""

STEP_FRAC = 0.01
"""The charge moves in steps of this share of the declared bounds: fallbacks follow it and are writes."""


@kernel
def has_to_look(sn_domain, st_domain):
    """True if a meter reads, or what one once read still stands."""
    for d in range(len(sn_domain)):
        record = st_domain[d]
        if np.isfinite(sn_domain[d].meter_w) or record.own_excess_w > 0 or record.excursion_w > 0:
            return True
    return False


@kernel
def judge_reading(dt_s, stale_s, peak_w, heard, record):
    """What a domain's reading is worth; remembers it."""
    meter_w = heard.meter_w
    if not np.isfinite(meter_w) or not heard.meter_age_s <= stale_s:
        return MISSING
    if not 0.0 <= meter_w <= PLAUSIBLE_FACTOR * peak_w:
        return MISSING
    if meter_w == record.meter_w:
        record.same_s = min(record.same_s + dt_s, 1e9)
        return FROZEN if record.same_s >= FROZEN_S else READ
    record.meter_w = meter_w
    record.same_s = 0.0
    return CHANGED


@kernel
def add_up_gpus(recent_s, node_static, sn_node, total):
    """Running sums over nodes: GPU watts into total[0], nodes whose draw is not known into total[1]."""
    watts, unknown = 0, 0
    total[0, 0] = 0
    total[1, 0] = 0
    for i in range(len(sn_node)):
        power_w = sn_node[i].power_w
        if sn_node[i].is_silent == 0 and sn_node[i].age_s <= recent_s and 0.0 <= power_w < np.inf:
            watts += np.int64(min(power_w, 2.0 * node_static[i].cap_max_w))
        else:
            unknown += 1
        total[0, i + 1] = watts
        total[1, i + 1] = unknown


@kernel
def estimate_other(meter_w, gpu_w, declared_w, average, forget, record):
    """Advance the estimate of what is drawn beside GPUs, and what is charged above the declared bound.

    Args:
        average: Share by which the average moves within this settlement, worked out once for all domains.
        forget: The same of the upper quantile on its way down.
    """
    top_w = (1.0 + MAX_EXCESS_FRAC) * declared_w
    other_w = max(0.0, min(top_w, meter_w - gpu_w))
    if not record.other_top_w > 0.0:
        record.other_w = min(other_w, declared_w)
        record.other_top_w = declared_w
    record.other_w += average * (other_w - record.other_w)
    faded_w = record.other_top_w + forget * (record.other_w - record.other_top_w)
    record.other_top_w = max(record.other_w, faded_w)
    step_w = max(1.0, STEP_FRAC * declared_w)
    above_w = max(0.0, record.other_top_w - declared_w)
    if record.own_excess_w == 0 and above_w <= step_w:
        return  # within a meter's error
    if above_w > record.own_excess_w or above_w < record.own_excess_w - 2.0 * step_w:
        record.own_excess_w = np.int64(np.ceil(np.ceil(above_w / step_w) * step_w))


@kernel
def spare_of(dt_s, is_estimated, is_believed, declared_w, record):
    """What a domain need not be charged of its declared bounds: all that a full day of readings stayed below them.

    Two days are kept, the full one and the one that runs: the highest of both is what is charged, with a step on top.
    A meter that is not believed now vouches for nothing, nor does one whose readings ask for more than declared.
    """
    if is_estimated:
        record.high_w = max(record.high_w, record.other_w)
        record.good_s += dt_s
        if record.good_s >= DAY_S:
            record.high_before_w, record.high_w = record.high_w, record.other_w
            record.good_s = 0.0
    if not is_believed or not record.high_before_w > 0.0 or record.own_excess_w > 0:
        return 0
    seen_w = max(record.high_w, record.high_before_w) + max(1.0, STEP_FRAC * declared_w)
    return max(0, np.int64(np.floor(declared_w - max(seen_w, (1.0 - MAX_SPARE_FRAC) * declared_w))))


@kernel
def charge_excess(domain_static, st_domain):
    """What is charged above the declared bounds: of each domain the larger of what its own and lower meters say."""
    for d in range(len(domain_static)):
        st_domain[d].excess_w = 0
    for d in range(len(domain_static) - 1, -1, -1):
        record = st_domain[d]
        record.excess_w = max(record.excess_w, record.own_excess_w)
        if domain_static[d].parent >= 0:
            st_domain[domain_static[d].parent].excess_w += record.excess_w


@kernel
def take_back(over_w, slack_w, room_w, dt_s, record):
    """One domain's excursion, by a reading that can be believed.

    Args:
        over_w: Metered watts above the limit in force.
        slack_w: What that limit leaves above all that caps make possible; negative where they do not fit yet.
        room_w: What can be withheld before floors no longer fit.
    """
    if over_w > 0.0:
        record.clear_s = 0.0
        if slack_w < 0 or record.wait_s > 0.0:
            return
        # what nobody uses is no take-back: it is counted from what caps make possible now
        want_w = max(max(record.excursion_w, record.excess_w), slack_w) + np.int64(np.ceil(TAKE_FACTOR * over_w))
        record.is_exhausted = 1 if want_w > room_w else 0
        record.excursion_w = max(record.excursion_w, min(want_w, room_w))
        record.wait_s = WAIT_S
        return
    record.is_exhausted = 0
    if record.excursion_w == 0:
        return
    if -over_w < CLEAR_FRAC * record.in_force_w:
        record.clear_s = 0.0
        return
    record.clear_s = min(record.clear_s + dt_s, 1e9)
    if record.clear_s >= CLEAR_S:
        give_w = np.int64(np.ceil(GIVE_FRAC_PER_S * record.in_force_w * dt_s))
        record.excursion_w = max(0, record.excursion_w - give_w)


@kernel
def room_above_floors(d, start, end, scratch):
    """Watts of a domain that no floor below it needs; negative where floors do not fit."""
    lo, cap_max = scratch.node[LO, start:end], scratch.node[CAP_MAX, start:end]
    return scratch.domain[AVAILABLE, d] - charge_of(lo, cap_max, scratch.domain[RESERVE, d], scratch.top)


@kernel
def apply_meters(dt_s, lapse_s, node_static, domain_static, fleet, sn_node, sn_domain, st_node, st_domain, scratch):
    """Withhold from every domain what its meter says, and advance the breach of its limit.

    Args:
        dt_s: Time since the last settlement, guarded: what may be credited.
        lapse_s: The same, less guarded: what is debited.
        scratch: AVAILABLE and FALLBACK_AVAILABLE are lowered; LO and RESERVE are read. TAKEN becomes what of it was
            taken back, for `taking`, where the result is True.

    Returns:
        Whether anything is taken back.
    """
    if not has_to_look(sn_domain, st_domain):
        return False
    domain, total = scratch.domain, scratch.total
    recent_s = 2.0 * fleet.tick_s
    average, forget = 1.0 - np.exp(-dt_s / AVERAGE_S), 1.0 - np.exp(-dt_s / FORGET_S)
    add_up_gpus(recent_s, node_static, sn_node, total)
    for d in range(len(domain_static)):
        static, record, heard = domain_static[d], st_domain[d], sn_domain[d]
        worth = judge_reading(dt_s, fleet.stale_s, static.peak_w, heard, record)
        # the wait runs on whatever is heard: it only says when the next look may act
        record.wait_s = max(0.0, record.wait_s - dt_s)
        start, end = static.node_start, static.node_end
        declared_w = static.unmanaged_w + static.non_gpu_max_w
        is_estimated = worth == CHANGED and heard.meter_age_s <= recent_s and total[1, end] == total[1, start]
        if is_estimated:
            estimate_other(heard.meter_w, float(total[0, end] - total[0, start]), declared_w, average, forget, record)
        if fleet.meters_loosen != 0:
            record.spare_w = spare_of(dt_s, is_estimated, worth >= READ, declared_w, record)
            domain[AVAILABLE, d] += record.spare_w
        if worth < READ:
            continue
        over_w = heard.meter_w - record.in_force_w
        update_breach(over_w, record.in_force_w, dt_s, record)
        if over_w <= 0.0 and record.excursion_w == 0 and record.is_exhausted == 0:
            continue
        room_w = room_above_floors(d, start, end, scratch)
        slack_w = record.in_force_w - declared_w + record.spare_w - domain_charge(node_static, st_node, start, end)
        take_back(over_w, slack_w, max(0, room_w), dt_s, record)
    charge_excess(domain_static, st_domain)
    is_taking = False
    for d in range(len(domain_static)):
        static, record = domain_static[d], st_domain[d]
        withheld_w = record.excess_w
        domain[TAKEN, d] = 0
        if record.excursion_w > withheld_w:
            room_w = room_above_floors(d, static.node_start, static.node_end, scratch)
            withheld_w = max(withheld_w, min(record.excursion_w, room_w))
            domain[TAKEN, d] = withheld_w - record.excess_w
            is_taking |= withheld_w > record.excess_w
        domain[AVAILABLE, d] -= withheld_w
        domain[FALLBACK_AVAILABLE, d] -= record.excess_w
        domain[FALLBACK_LIMIT, d] -= record.excess_w
        if static.mean_w > 0 and record.excess_w > 0:
            least_ws = -static.mean_w * static.window_s
            record.bank_ws = max(least_ws, record.bank_ws - record.excess_w * lapse_s)
    return is_taking
