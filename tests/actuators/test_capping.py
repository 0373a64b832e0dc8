"""One node's cap over its GPUs, and the demand estimate."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball.actuators.capping import estimate_demand_w, node_cap_w, split_w
from flyball.actuators.nvml import SW_POWER_CAP, Gpu, GpuReading

NODE = [Gpu(f"GPU-{i}", "H100", "", 200, 700, 700, 1980) for i in range(8)]
READING = GpuReading(
    "GPU-0", 300.0, 300.0, 500, 500, 200, 700, 700, 50.0, 1980.0, 1980, 0.5, 0.5, 0.0, 0.0, 0.0, 0, 0, 0, 0
)


@given(st.integers(0, 7000), st.sets(st.sampled_from([g.uuid for g in NODE]), max_size=8))
def test_a_split_never_exceeds_the_nodes_cap(cap_w, lost):
    """With lost GPUs at their maximum the parts sum to at most the cap, unless the lowest caps do not fit."""
    parts_w = split_w(cap_w, NODE, lost)
    assert set(parts_w) == {g.uuid for g in NODE} - lost
    assert all(isinstance(w, int) and 200 <= w <= 700 for w in parts_w.values())
    if 200 * len(parts_w) <= cap_w - 700 * len(lost) <= 700 * len(parts_w) and parts_w:
        assert node_cap_w(NODE, parts_w) == cap_w
    least_w = 700 * len(lost) + 200 * len(parts_w)
    assert node_cap_w(NODE, parts_w) <= max(cap_w, least_w)


def test_a_split_uses_every_watt():
    """4007 W over eight GPUs is 501 W for seven and 500 W for the last: the read-back equals the command."""
    assert list(split_w(4007, NODE).values()) == [501] * 7 + [500]


def test_a_lost_gpu_is_counted_at_its_maximum():
    """One of eight lost at 700 W leaves 3300 W of a 4000-W node for the others."""
    parts_w = split_w(4000, NODE, {"GPU-3"})
    assert sorted(parts_w.values()) == [471] * 4 + [472] * 3 and node_cap_w(NODE, parts_w) == 4000


@given(
    st.floats(0.0, 900.0),
    st.integers(200, 700),
    st.floats(0.0, 2000.0) | st.just(math.nan),
    st.sampled_from([0, SW_POWER_CAP]),
    st.floats(-1.0, 3.0) | st.just(math.nan),
)
def test_demand_lies_between_the_draw_and_the_highest_cap(power_w, cap_w, clock_mhz, reasons, violation_s):
    """Whatever the driver reports, the estimate is at least the draw and at most the product's cap."""
    now = replace(
        READING,
        power_w=power_w,
        cap_w=cap_w,
        sm_clock_mhz=clock_mhz,
        event_reasons=reasons,
        power_violation_s=violation_s,
    )
    demand_w = estimate_demand_w(now, READING, 1.0)
    assert min(power_w, 700.0) <= demand_w <= 700.0


def test_an_uncapped_gpu_wants_what_it_draws():
    """Below 97 % of its cap the estimate is the draw and 3 %."""
    assert estimate_demand_w(READING) == pytest.approx(309.0)


def test_a_capped_gpu_wants_more_the_lower_its_clock():
    """At its cap with three quarters of the clock a GPU wants its draw over 0.75 squared."""
    capped = replace(READING, power_w=300.0, cap_w=300, sm_clock_mhz=1485.0, event_reasons=SW_POWER_CAP)
    assert estimate_demand_w(capped) == pytest.approx(300 / 0.75**2)
    half = replace(capped, event_reasons=0, power_violation_s=0.5)
    assert estimate_demand_w(half, READING, 1.0) == pytest.approx(300 * (1 + 0.5 * (1 / 0.75**2 - 1)))
