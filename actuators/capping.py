"""One node's cap as caps of its GPUs, and what its GPUs would draw without one."""

import math
from collections.abc import Sequence

from .nvml import Gpu, GpuReading

NEAR_CAP_FRAC = 0.97
"""A GPU that draws more than this share of its cap is taken to be held by it: the draw of a capped GPU
swings by a few percent around the cap."""

MARGIN_FRAC = 0.03
"""Added to the draw of a GPU that its cap does not hold, so that the estimate itself leaves it room."""

LOWEST_CLOCK_FRAC = 0.3


def split_w(cap_w: int, gpus: Sequence[Gpu], lost: frozenset[str] | set[str] = frozenset()) -> dict[str, int]:
    """Divide a node's cap among the GPUs that can be reached.

    A lost GPU may draw its product's maximum, so that much is set aside for it. The others get equal shares
    in whole watts, the first ones the remainder, so that the parts sum to the node's cap and its read-back
    equals the command. Shares stay within the product's range: where even the lowest legal caps exceed the
    node's cap they get those, and the read-back says how much higher the node stands.

    Args:
        cap_w: Cap of the node.
        gpus: All GPUs of the node.
        lost: UUIDs of those that cannot be reached.

    Returns:
        Watts by UUID of every reachable GPU.
    """
    reachable = [g for g in gpus if g.uuid not in lost]
    if not reachable:
        return {}
    left_w = cap_w - sum(g.cap_max_w for g in gpus if g.uuid in lost)
    share_w, rest = divmod(max(left_w, 0), len(reachable))
    return {g.uuid: min(max(share_w + (i < rest), g.cap_min_w), g.cap_max_w) for i, g in enumerate(reachable)}


def node_cap_w(gpus: Sequence[Gpu], caps_w: dict[str, int]) -> int:
    """The cap in force of a whole node: what was read back, and the maximum of each GPU that was not."""
    return sum(caps_w.get(g.uuid, g.cap_max_w) for g in gpus)


def estimate_demand_w(now: GpuReading, before: GpuReading | None = None, dt_s: float = 0.0) -> float:
    """What one GPU would draw without a cap.

    The rule: below 97 % of its cap and not throttled by it, a GPU draws what it wants, and the estimate is
    that draw and 3 %. Otherwise the cap holds it, and

        demand = min(cap_max, power * (1 + s * (1 / f**2 - 1)))

    with s the share of the interval in which the driver says that the power cap held the clocks (all of it
    where the driver says so now) and f the SM clock over its maximum. Dynamic power grows with f * v(f)**2,
    that is linearly where the voltage stands at its floor and with the cube above: the square lies between.

    Args:
        now: This reading.
        before: The previous reading of the same GPU, None for none.
        dt_s: Seconds between the two.

    Returns:
        Watts, between the draw and the product's highest cap.
    """
    held_by_w = min(now.cap_w, now.enforced_cap_w)
    if now.power_w < NEAR_CAP_FRAC * held_by_w and not now.is_capped:
        return min(now.power_w * (1 + MARGIN_FRAC), float(now.cap_max_w))
    share = 1.0 if now.is_capped else 0.0
    if before is not None and dt_s > 0:
        counted = (now.power_violation_s - before.power_violation_s) / dt_s
        if math.isfinite(counted):
            share = max(share, min(max(counted, 0.0), 1.0))
    clock_frac = now.clock_frac if math.isfinite(now.clock_frac) else 1.0
    clock_frac = min(max(clock_frac, LOWEST_CLOCK_FRAC), 1.0)
    growth = max(1 + share * (1 / clock_frac**2 - 1), 1 + MARGIN_FRAC)
    return max(min(now.power_w * growth, float(now.cap_max_w)), min(now.power_w, float(now.cap_max_w)))
