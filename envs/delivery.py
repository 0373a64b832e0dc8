"""Power delivery: what every domain draws, its limit in force, and its breaker."""

from .compiled import kernel
from .event_dynamics import BOOT_S
from .physics import breaker_heat
from .serving_dynamics import lose_node
from .tiles import BATCH, DARK, GPU_W, LANDING_SLOTS, LANDS, NODE_W, NON_GPU, OFF, PEAK_W

BREAKER_RESET_S = 900.0
"""Until a person resets a tripped breaker, 10-30 minutes (MODEL.md section 8); nothing below it draws before."""


@kernel
def deliver_step(b, dt_s, measured, limits, node_static, domain_static, node, domain, service, totals, tiles):
    """Add up the draw of environment `b`, score it against `limits`, heat and trip breakers.

    A node whose cap comes into force within the step draws what it drew until then; energy and breakers take the mean
    of the step, limits the draw of every instant.

    Args:
        limits: (D, 2) int64: the limit demanded now and the limit in force, watts.
        tiles: Columns NODE_W, the mean draw of the step, and PEAK_W, the larger of before and after.
    """
    tot = totals[b]
    count = domain.shape[1]
    for d in range(count):
        dm = domain[b, d]
        if dm.dark_s > 0.0:
            dm.dark_s -= dt_s
            if dm.dark_s <= 0.0:  # a person has reset the breaker
                dm.dark_s, dm.is_tripped, dm.heat = 0.0, 0, 0.0
            else:
                dm.power_w = dm.peak_w = 0.0
                continue
        power_w = float(domain_static[d].unmanaged_w)
        peak_w = power_w
        for k in range(tiles.domain_start[d], tiles.domain_start[d + 1]):
            at = tiles.domain_lane[k]
            power_w += tiles.flat[at + NODE_W]
            peak_w += tiles.flat[at + PEAK_W]
        domain[b, d].power_w = power_w
        domain[b, d].peak_w = peak_w
    for d in range(count - 1, 0, -1):  # parents stand before their children
        parent = domain[b, domain_static[d].parent]
        parent.power_w += domain[b, d].power_w
        parent.peak_w += domain[b, d].peak_w
    for d in range(count):
        dm = domain[b, d]
        dm.meter_ws += dm.power_w * dt_s
        if measured and dm.peak_w > min(limits[d, 0], limits[d, 1]):
            _score_limits(d, dt_s, limits[d, 0], limits[d, 1], domain_static, dm, tot, tiles)
        # a cold breaker below its rating stays cold
        if dm.rating_w > 0.0 and dm.is_tripped == 0 and (dm.heat > 0.0 or dm.power_w > dm.rating_w):
            dm.heat = breaker_heat(dm.heat, dm.power_w / dm.rating_w, dt_s, dm.constant_s)
            if dm.heat >= 1.0:
                dm.is_tripped = 1
                if measured:
                    tot.breaker_trips += 1.0
                _trip(b, d, measured, node_static, domain_static, node, domain, service, totals, tiles)
    if measured:
        tot.energy_j += domain[b, 0].power_w * dt_s
        tot.seconds += dt_s
        tot.peak_frac = max(tot.peak_frac, domain[b, 0].power_w / max(float(limits[0, 1]), 1.0))


@kernel
def _score_limits(d, dt_s, demanded_w, in_force_w, domain_static, dm, tot, tiles):
    """Count what domain `d` drew above its limits in a step in which caps may have come into force."""
    change_w = tiles.change_w
    change_w[:] = 0.0
    # the draw at the end of the step, and what was drawn more before each landing
    draw_w = dm.power_w
    start, end = domain_static[d].node_start, domain_static[d].node_end
    for t in range(tiles.static.shape[0]):
        column = tiles.column[t]
        for i in range(tiles.static[t].count):
            lands = column[LANDS + i]
            if lands > 0.0 and start <= tiles.node[t, i] < end:
                after_w = column[GPU_W + i] + column[NON_GPU + i]
                more_w = (column[NODE_W + i] - after_w) / lands
                draw_w += after_w - column[NODE_W + i]
                change_w[min(int(lands * LANDING_SLOTS), LANDING_SLOTS - 1)] += more_w
    part_s = dt_s / LANDING_SLOTS
    for slot in range(LANDING_SLOTS - 1, -1, -1):
        draw_w += change_w[slot]
        if draw_w > in_force_w:
            tot.violation_ws += (draw_w - in_force_w) * part_s
        elif draw_w > demanded_w:
            tot.overshoot_ws += (draw_w - demanded_w) * part_s


@kernel
def _trip(b, d, measured, node_static, domain_static, node, domain, service, totals, tiles):
    """Take down everything below domain `d` until a person has reset its breaker; then the nodes boot."""
    for e in range(d, domain.shape[1]):  # parents stand before their children
        above = e
        while above > d:
            above = domain_static[above].parent
        if above == d:
            domain[b, e].dark_s = BREAKER_RESET_S
    tiles.broken[0] = 1
    start, end = domain_static[d].node_start, domain_static[d].node_end
    for t in range(tiles.static.shape[0]):
        column = tiles.column[t]
        for i in range(tiles.static[t].count):
            n = tiles.node[t, i]
            if not start <= n < end:
                continue
            node[b, n].batch = column[BATCH + i]
            lose_node(b, n, measured, node_static, node, service, totals)
            node[b, n].down_s = max(node[b, n].down_s, BREAKER_RESET_S + BOOT_S)
            node[b, n].agent_down = 1
            column[BATCH + i] = 0.0
            column[OFF + i] = 1.0
            column[DARK + i] = 1.0
