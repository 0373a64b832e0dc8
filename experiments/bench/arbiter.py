"""Time of one settlement by fleet size, and of the same allocation by linear programs.

A settlement is `settle`: the pure function that the service calls, with everything that it does beside allocating
(acknowledgements, limits, health, stages, leases, reasons). Fleets have five levels of limits. Every call sees
other demands and bids, and read-backs of what the call before it commanded.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from ...fleet.arbiter import initial_state
from ...fleet.arbiter.settle import make_scratch, settle, settle_kernel
from ...fleet.bids import WATTS_EXPONENT, Bids
from ...fleet.plan import Plan
from ...fleet.snapshot import Snapshot
from ...fleet.tables import DECODE, STAGES
from ...fleet.topology import Fleet
from .fleets import five_levels
from .three_phase import Request, ThreePhase
from .timing import REPEATS, Sample

WARM_UP_CALLS = 20
"""Settlements before the clock runs: caps ramp to where the limits bind."""

SETTLE_TICKS = 40
"""Settlements in which caps reach what standing requests get: ramps and waits for released watts are over."""

RATIO_SIZES = (256, 12_500)


def figures(
    progress: Callable[[str, float], None],
    sizes: tuple[int, ...] = (16, 256, 12_500),
    ratio_sizes: tuple[int, ...] = RATIO_SIZES,
    batch: int = 64,
    repeat_s: float = 0.5,
) -> dict[str, float | None]:
    """Measure.

    Args:
        progress: Called with a label and the share done.
        sizes: Nodes of the fleets settled one at a time.
        ratio_sizes: Those of them that are also allocated by linear programs.
        batch: Environments, and nodes of each, of the figure that training pays every tick.
        repeat_s: Least length of a repeat.

    Returns:
        `settle_{n}_us` below 1,000 nodes and `settle_{n}_ms` from there on; `settle_in_place_{n}_us` or `_ms` and
        `settle_{b}x{b}_ms`, in place as the plant calls it; `qp_ratio_{n}`, the time of the three-phase allocation over
        `settle`'s, `qp_{n}_ms`, and `qp_satisfaction_{n}` and `settle_satisfaction_{n}`, the shares of the requested
        watts that each grants where requests stand still. They are None without scipy.
    """
    out: dict[str, float | None] = {}
    for i, nodes in enumerate(sizes):
        progress(f"{nodes:,} nodes", 0.6 * i / len(sizes))
        fleet = five_levels(nodes)
        sample = _settle_sample(fleet, repeat_s)
        unit, factor = ("us", 1e6) if nodes < 1000 else ("ms", 1e3)
        out.update(sample.figures(f"settle_{nodes}_{unit}", factor))
        out.update(_in_place_sample(fleet, 1, repeat_s).figures(f"settle_in_place_{nodes}_{unit}", factor))
        if nodes in ratio_sizes:
            progress(f"{nodes:,} nodes by linear programs", 0.6 * (i + 0.5) / len(sizes))
            out.update(_ratio(fleet, nodes, sample))
    progress(f"{batch} x {batch}", 0.9)
    out.update(_in_place_sample(five_levels(batch), batch, repeat_s).figures(f"settle_{batch}x{batch}_ms", 1e3))
    progress("done", 1.0)
    return out


class Inputs:
    """Snapshots and bids in motion: demands wander, bids jump, commands are read back at once.

    Args:
        fleet: The site.
        batch: Environments.
        seed: Of demands and bids.
    """

    RING = 32

    def __init__(self, fleet: Fleet, batch: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.fleet = fleet
        shape = (self.RING, batch, len(fleet.nodes))
        cap_max_w = fleet.node_static["cap_max_w"]
        self.demand_w = cap_max_w * np.clip(rng.normal(0.8, 0.25, shape), 0.15, 1.1)
        self.util_frac = rng.uniform(0.2, 1.0, shape)
        self.pool = rng.uniform(-0.6, 0.6, (self.RING, batch, fleet.pools, 3)).astype(np.float32)
        self.pool[..., 1:] = 0.0  # watts only: moves of stages would end the steady state
        sn = Snapshot.unknown(fleet, batch, 0.0)
        sn.node["is_silent"], sn.node["is_up"], sn.node["age_s"] = 0, 1, 0.5
        sn.node["power_w"], sn.node["temp_c"], sn.node["clock_frac"] = 3000.0, 60.0, 0.9
        for field in sn.service.dtype.names or ():
            sn.service[field] = 0.4
        self.snapshot = sn
        self.bids = Bids.neutral(batch, fleet.pools, len(fleet.nodes))

    def advance(self, step: int, cap_w: np.ndarray, seq: np.ndarray, stage: np.ndarray) -> None:
        """The inputs of the next tick, after these commands."""
        sn, k = self.snapshot, step % self.RING
        sn.time_s[:] += self.fleet.timing.tick_s
        sn.node["cap_w"], sn.node["ack_seq"], sn.node["stage"] = cap_w, seq, stage
        sn.node["demand_w"], sn.node["util_frac"] = self.demand_w[k], self.util_frac[k]
        self.bids.pool[:] = self.pool[k]

    def want_w(self) -> np.ndarray:
        """The caps that bids and demands of now ask for, shape (B, N)."""
        static = self.fleet.node_static
        pool = STAGES * static["service"] + static["stage"]
        factor = np.exp(WATTS_EXPONENT * self.bids.pool[:, pool, 0].astype(float))
        return np.minimum(factor * self.snapshot.node["demand_w"], static["cap_max_w"])


def _settle_sample(fleet: Fleet, repeat_s: float) -> Sample:
    """Median time of `settle` in each repeat."""
    inputs = Inputs(fleet, 1)
    state = initial_state(fleet, 1, assume_acked=True)
    last = state.node["cap_cmd_w"], state.node["seq"], state.node["stage_cmd"]
    medians, step = [], 0
    for repeat in range(REPEATS + 1):
        times: list[float] = []
        spent_s = 0.0
        while spent_s < repeat_s or len(times) < WARM_UP_CALLS:
            inputs.advance(step, *last)
            started = time.perf_counter()
            state, plan = settle(fleet, state, inputs.snapshot, inputs.bids)
            times.append(time.perf_counter() - started)
            spent_s += times[-1]
            last = plan.node["cap_w"], plan.node["seq"], plan.node["stage"]
            step += 1
        if repeat:  # the first one warms up
            medians.append(float(np.median(times)))
    return Sample(tuple(medians))


def _settled(fleet: Fleet) -> tuple[np.ndarray, np.ndarray]:
    """Requests that stand still, and the caps that repeated settlements reach for them, shape (N,) each, watts."""
    inputs = Inputs(fleet, 1)
    inputs.pool[:] = 0.0  # neutral bids ask for the demands, whose sum is above what the limits leave
    state = initial_state(fleet, 1, assume_acked=True)
    last = state.node["cap_cmd_w"], state.node["seq"], state.node["stage_cmd"]
    for _ in range(SETTLE_TICKS):
        inputs.advance(0, *last)
        state, plan = settle(fleet, state, inputs.snapshot, inputs.bids)
        last = plan.node["cap_w"], plan.node["seq"], plan.node["stage"]
    return inputs.want_w()[0], last[0][0]


def _in_place_sample(fleet: Fleet, batch: int, repeat_s: float) -> Sample:
    """Median time of a whole batch settled in place, as the plant does every tick, in each repeat."""
    inputs = Inputs(fleet, batch)
    st, plan = initial_state(fleet, batch, assume_acked=True), Plan.empty(batch, len(fleet.nodes))
    scratch = make_scratch(fleet)
    last = st.node["cap_cmd_w"], st.node["seq"], st.node["stage_cmd"]
    medians, step = [], 0
    for repeat in range(REPEATS + 1):
        times: list[float] = []
        spent_s = 0.0
        while spent_s < repeat_s or len(times) < WARM_UP_CALLS:
            inputs.advance(step, *last)
            sn, bids = inputs.snapshot, inputs.bids
            started = time.perf_counter()
            settle_kernel(
                fleet.node_static, fleet.domain_static, fleet.service_static, fleet.static, sn.time_s, sn.node,
                sn.domain, sn.service, st.node, st.domain, st.pool, st.service, st.fleet, bids.pool, bids.node,
                bids.fleet, plan.node, plan.fleet, scratch,
            )  # fmt: skip
            times.append(time.perf_counter() - started)
            spent_s += times[-1]
            last = plan.node["cap_w"], plan.node["seq"], plan.node["stage"]
            step += 1
        if repeat:
            medians.append(float(np.median(times)))
    return Sample(tuple(medians))


def _ratio(fleet: Fleet, nodes: int, ours: Sample) -> dict[str, float | None]:
    """The same requests, allocated by linear programs."""
    names = (f"qp_ratio_{nodes}", f"qp_{nodes}_ms", f"qp_satisfaction_{nodes}", f"settle_satisfaction_{nodes}")
    try:
        allocator = ThreePhase(fleet)
    except ImportError:
        print(f"scipy is missing, so {', '.join(names)} are null; pip install 'flyball[dev]'", file=sys.stderr)
        return dict.fromkeys(names)
    want_w, cap_w = _settled(fleet)
    static = fleet.node_static
    low_w = static["cap_min_w"].copy()
    is_decode = static["stage"] == DECODE
    low_w[is_decode] = static["decode_floor_w"][is_decode]
    priority = fleet.service_static["priority"][static["service"]]
    request = Request(want_w, low_w, static["cap_max_w"], priority, np.ones(nodes, bool))
    allocator.allocate(request)  # warm-up
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        theirs_w = allocator.allocate(request)
        times.append(time.perf_counter() - started)
    theirs = Sample(tuple(times))

    def satisfied(cap: np.ndarray) -> float:
        return float(np.minimum(cap, want_w).sum() / want_w.sum())

    values = (theirs.median / ours.median, theirs.median * 1e3, satisfied(theirs_w), satisfied(cap_w))
    return dict(zip(names, values, strict=True))
