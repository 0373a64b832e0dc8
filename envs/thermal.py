"""Temperatures: weather at the inlet, hot spots in the room, GPUs and their memory.

First order per node and tick (MODEL.md section 8), in single precision over tiles; the clock throttle above
`THROTTLE_LOW_C` is applied where the clock is found, and slower memory above `HBM_HOT_C` where tokens are made, both in
`node_loops`.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..fleet.topology import Fleet
from .compiled import kernel
from .tiles import (
    BATCH,
    COOL_FRAC,
    DECODES,
    GPU_W,
    HBM_C,
    HBM_RATE,
    HEAT_C_PER_W,
    SPOT_C,
    TEMP,
    TILE,
    UTIL,
)
from .weather import WEATHER_POINTS, WeatherSpec, inlet_series

THROTTLE_LOW_C, THROTTLE_HIGH_C = 83.0, 90.0
"""The clock is throttled linearly between them, to half (MODEL.md section 8)."""

HBM_HOT_C, HBM_HOT_RATE = 95.0, 0.75
"""Above it memory refreshes more and gives three quarters of its bandwidth (MODEL.md section 8)."""

HBM_RISE_C = 10.0
"""How much hotter than the GPU its memory is at full use (A: both are reported, 5-15 C apart, under load)."""

PREFILL_HBM_USE = 0.3
"""Share of the memory's bandwidth that compute-bound work uses; decode streams the weights in every step (A)."""

_f = np.float32
_ZERO, _ONE, _HBM_RISE, _PREFILL_USE = _f(0.0), _f(1.0), _f(HBM_RISE_C), _f(PREFILL_HBM_USE)
_HOT, _HOT_RATE = _f(HBM_HOT_C), _f(HBM_HOT_RATE)


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
def thermal_tick(b, time_s, params, tiles):
    """Move environment `b`'s inlet with the weather and its GPUs towards what they draw."""
    pr = params[b]
    if pr.weather_step_s > 0.0:
        at = min(time_s / pr.weather_step_s, WEATHER_POINTS - 1.000001)
        i = int(at)
        pr.inlet_c = pr.weather_c[i] + (at - i) * (pr.weather_c[i + 1] - pr.weather_c[i])
    inlet_c = _f(pr.inlet_c)
    for t in range(tiles.static.shape[0]):
        column = tiles.column[t]
        for i in range(TILE):
            temp_c = column[TEMP + i]
            target_c = inlet_c + column[SPOT_C + i] + column[HEAT_C_PER_W + i] * column[GPU_W + i]
            temp_c += (target_c - temp_c) * column[COOL_FRAC + i]
            use = column[BATCH + i] if column[DECODES + i] > _ZERO else _PREFILL_USE * column[UTIL + i]
            hbm_c = temp_c + _HBM_RISE * min(use, _ONE)
            column[TEMP + i] = temp_c
            column[HBM_C + i] = hbm_c
            column[HBM_RATE + i] = _HOT_RATE if hbm_c > _HOT else _ONE
