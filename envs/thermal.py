"""Temperatures: weather at the inlet, hot spots in the room, GPUs and their memory.

First order per node and tick (MODEL.md section 8); the clock throttle above `THROTTLE_LOW_C` is applied where the
clock is found, in `node_dynamics`, and slower memory above `HBM_HOT_C` where tokens are made, in `serving_dynamics`.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..fleet.tables import DECODE
from ..fleet.topology import Fleet
from .compiled import kernel
from .weather import WEATHER_POINTS, WeatherSpec, inlet_series

THROTTLE_LOW_C, THROTTLE_HIGH_C = 83.0, 90.0
"""The clock is throttled linearly between them, to half (MODEL.md section 8)."""

HBM_HOT_C, HBM_HOT_RATE = 95.0, 0.75
"""Above it memory refreshes more and gives three quarters of its bandwidth (MODEL.md section 8)."""

HBM_RISE_C = 10.0
"""How much hotter than the GPU its memory is at full use (A: both are reported, 5-15 C apart, under load)."""

PREFILL_HBM_USE = 0.3
"""Share of the memory's bandwidth that compute-bound work uses; decode streams the weights in every step (A)."""


@dataclass(frozen=True)
class Cooling:
    """How a product sheds heat.

    Attributes:
        c_per_w: Rise of a GPU over its inlet per watt of its own draw.
        tau_s: Time constant.
        hot_spot_share: Share of the room's hot spots that reaches it: coolant is mixed, air is not.
    """

    c_per_w: float
    tau_s: float
    hot_spot_share: float


AIR = Cooling(0.06, 45.0, 1.0)
LIQUID = Cooling(0.03, 20.0, 0.25)
"""Air- and liquid-cooled GPUs (MODEL.md section 8; the share is an assumption)."""

COOLING = {
    "A100-SXM": AIR,
    "H100-SXM": AIR,
    "H200-SXM": AIR,
    # larger heat sinks for 1,000 and 1,100 W: at full power as far above the inlet as an H100 at 700 W (A)
    "B200-SXM": Cooling(AIR.c_per_w * 700 / 1000, AIR.tau_s, AIR.hot_spot_share),
    "B300-SXM": Cooling(AIR.c_per_w * 700 / 1100, AIR.tau_s, AIR.hot_spot_share),
    "GB200-NVL72": LIQUID,
    "GB300-NVL72": LIQUID,
}
"""Cooling by GPU product."""


def start_temperatures(
    p: np.void,
    node: np.ndarray,
    fleet: Fleet,
    weather: WeatherSpec,
    seconds: float,
    rng: np.random.Generator,
) -> None:
    """Set one environment's cooling, hot spots, weather and temperatures at the start of an episode.

    Args:
        p: Row of `PLANT_PARAMS`, with `inlet_c`, `rise_scale` and `hot_spot_c` drawn.
        node: Rows of `PLANT_NODE`, shape (N,).
        fleet: The site.
        weather: The scenario's.
        seconds: Length of the episode.
        rng: Draws hot spots and the day.
    """
    by_sku = _cooling_table(fleet.sku_names, fleet.timing.tick_s)[:, fleet.node_static["sku"]]
    node["heat_c_per_w"] = p["rise_scale"] * by_sku[0] / fleet.node_static["gpus"]
    node["cool_frac"] = by_sku[1]
    node["hot_spot_c"] = by_sku[2] * p["hot_spot_c"] * np.abs(rng.standard_normal(len(node)))
    p["weather_step_s"] = 0.0
    if not weather.is_constant:
        p["weather_c"] = inlet_series(weather, float(p["inlet_c"]), seconds, rng)
        p["weather_step_s"] = seconds / (WEATHER_POINTS - 1)
        p["inlet_c"] = p["weather_c"][0]
    node["temp_c"] = p["inlet_c"] + 20.0
    node["hbm_c"] = node["temp_c"]


@cache
def _cooling_table(sku_names: tuple[str, ...], tick_s: float) -> np.ndarray:
    """Rise per watt, share of the way to balance in a tick and share of hot spots by product, shape (3, K)."""
    kinds = [COOLING[name] for name in sku_names]
    return np.array([[k.c_per_w, 1.0 - math.exp(-tick_s / k.tau_s), k.hot_spot_share] for k in kinds]).T


@kernel
def thermal_tick(b, time_s, params, node):
    """Move environment `b`'s inlet with the weather and its GPUs towards what they draw."""
    pr = params[b]
    if pr.weather_step_s > 0.0:
        at = min(time_s / pr.weather_step_s, WEATHER_POINTS - 1.000001)
        i = int(at)
        pr.inlet_c = pr.weather_c[i] + (at - i) * (pr.weather_c[i + 1] - pr.weather_c[i])
    for n in range(node.shape[1]):
        nd = node[b, n]
        target_c = pr.inlet_c + nd.hot_spot_c + nd.wear_c + nd.heat_c_per_w * nd.gpu_w
        nd.temp_c += (target_c - nd.temp_c) * nd.cool_frac
        use = PREFILL_HBM_USE * nd.util_frac
        if nd.stage == DECODE and nd.is_training == 0:
            use = nd.batch
        nd.hbm_c = nd.temp_c + HBM_RISE_C * min(use, 1.0)
