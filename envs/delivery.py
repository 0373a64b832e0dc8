"""Power delivery: what every domain draws, its limit in force, and its breaker."""

from .compiled import kernel
from .physics import breaker_heat
from .serving_dynamics import lose_node

BREAKER_RESET_S = 900.0
"""Out for 10-30 minutes after a trip (MODEL.md section 8)."""


@kernel
def deliver_step(b, dt_s, measured, limits, node_static, domain_static, params, node, domain, service, totals):
    """Add up the draw of environment `b`, score it against `limits`, heat and trip breakers.

    Args:
        limits: (D, 2) int64: the limit demanded now and the limit in force, watts.
    """
    tot = totals[b]
    count = domain.shape[1]
    for d in range(count):
        domain[b, d].power_w = float(domain_static[d].unmanaged_w)
    for n in range(node.shape[1]):
        domain[b, node_static[n].domain].power_w += node[b, n].gpu_w + node[b, n].non_gpu_w
    for d in range(count - 1, 0, -1):  # parents stand before their children
        domain[b, domain_static[d].parent].power_w += domain[b, d].power_w
    for d in range(count):
        dm = domain[b, d]
        dm.meter_ws += dm.power_w * dt_s
        if measured:
            over_force_w = dm.power_w - float(limits[d, 1])
            over_demand_w = dm.power_w - float(limits[d, 0])
            if over_force_w > 0.0:
                tot.violation_ws += over_force_w * dt_s
            elif over_demand_w > 0.0:
                tot.overshoot_ws += over_demand_w * dt_s
        if dm.rating_w > 0.0 and dm.is_tripped == 0:
            dm.heat = breaker_heat(dm.heat, dm.power_w / dm.rating_w, dt_s, dm.constant_s)
            if dm.heat >= 1.0:
                dm.is_tripped = 1
                if measured:
                    tot.breaker_trips += 1.0
                for n in range(domain_static[d].node_start, domain_static[d].node_end):
                    lose_node(b, n, measured, node_static, node, service, totals)
                    node[b, n].down_s = BREAKER_RESET_S
                    node[b, n].agent_down = 1
    if measured:
        tot.energy_j += domain[b, 0].power_w * dt_s
        tot.seconds += dt_s
        tot.peak_frac = max(tot.peak_frac, domain[b, 0].power_w / max(float(limits[0, 1]), 1.0))
