"""Faults by class: how often, with which XID, what they take down, for how long, and what could be seen coming.

Rates per GPU-hour (MODEL.md section 9): the Llama 3 paper's table of interruptions over 54 days on 16,384 H100 (GPU
hardware 6.97e-6, HBM 3.39e-6, SRAM 8.9e-7, GSP 8.0e-7, network 1.65e-6, host 9.9e-7), and one uncorrectable HBM error
per 88,768 GPU-hours (1.13e-5; arXiv 2503.11901, Delta), of which those that do not kill the job are contained.

Two exponential clocks run per node, in units of expected faults: one for what grows with temperature (GPU hardware and
HBM), one for the rest. The class of the next hot fault is drawn when its clock is wound, so that it can cast a shadow:
counts of corrected errors, or a GPU that runs hotter, rise before some of them. The snapshot has no field for counts,
so they are truth that no policy is told; the temperature is told.
"""

import math

import numpy as np

from ..fleet.tables import DECODE, PARKED
from ..fleet.topology import Fleet
from .compiled import kernel
from .physics import hash_uniform
from .serving_dynamics import lose_node

STREAM_FAULT, STREAM_CLASS, STREAM_OUTCOME, STREAM_REPAIR, STREAM_SHADOW = 3, 4, 7, 8, 9
"""Streams of the counter-based generator."""

GPU, HBM, HBM_CONTAINED, SRAM, GSP, NETWORK, HOST = 0, 1, 2, 3, 4, 5, 6
CLASSES = ("gpu", "hbm", "hbm-contained", "sram", "gsp", "network", "host")
RATE_PER_GPU_HOUR = (6.97e-6, 3.39e-6, 1.13e-5 - 3.39e-6, 8.9e-7, 8.0e-7, 1.65e-6, 9.9e-7)
"""Rates by class (module docstring)."""

HOT_RATE = sum(RATE_PER_GPU_HOUR[:SRAM])
COLD_RATE = sum(RATE_PER_GPU_HOUR[SRAM:])
CLASS_UP_TO = np.concatenate(
    (np.cumsum(RATE_PER_GPU_HOUR[:SRAM]) / HOT_RATE, np.cumsum(RATE_PER_GPU_HOUR[SRAM:]) / COLD_RATE)
)
"""Cumulative shares of the classes among hot and among cold faults."""

CLOCKS = ("fault_margin", "fault_rate", "fault_cold_margin", "fault_cold_rate", "fault_next", "has_shadow")
"""Fields of `PLANT_NODE` that `start_faults` draws: what nobody knows of the faults to come."""

LEMON_FRAC, LEMON_FACTOR = 0.012, 20.0
"""Share of nodes that fail twenty times as often (MODEL.md section 9)."""

FAULT_Q10_LOG = math.log(1.6) / 10.0
"""Hot rates grow by 1.6 per 10 C above 65 C (MODEL.md section 9)."""

RESTART, RESET, REBOOT, RMA = 0, 1, 2, 3
RESET_S = 360.0
REBOOT_S = 7920.0
RMA_LOW_S, RMA_HIGH_S = 72 * 3600.0, 120 * 3600.0
"""GPU reset 6 min, node reboot 2.2 h, replacement 72-120 h (MODEL.md section 9); an application restarts in the time
that loading its model takes."""

OUTCOME_UP_TO = np.array(
    [
        # up to RESTART, RESET, REBOOT; the rest is RMA
        [0.0, 0.15, 0.35],  # GPU: 4 % of GPUs fail for good in a year, which is 0.65 of this class (gpu_failures, A)
        [0.0, 0.90, 0.90],  # HBM: mitigated in 92 % of uncorrectable errors (arXiv 2503.11901), remap or reset
        [1.0, 1.00, 1.00],  # contained: the application restarts (FIELD.md section 2)
        [0.0, 0.95, 0.95],  # SRAM (A)
        [0.0, 0.80, 1.00],  # GSP: what a reset does not bring back, a reboot does (A)
        [0.0, 1.00, 1.00],  # NVLink: reset (FIELD.md section 2)
        [0.0, 0.00, 1.00],  # host: reboot
    ]
)
"""Cumulative outcomes by class."""

CLASS_XID = (79, 95, 94, 48, 119, 74, 0)
"""FIELD.md section 2: fell off the bus; uncontained and contained ECC; double-bit; GSP; NVLink (145 on a rack-scale
fabric); a dead host reports nothing."""

XID_FABRIC = 145
FABRIC_SHARE = 0.25
"""Share of a rack-scale fabric's faults that sit in a switch tray and take every node of the fabric (A)."""

SHADOW_MARGIN = 0.05
"""Expected faults left when precursors begin: about two weeks at the measured rate of 8 GPUs, and seconds at the
rates of scenarios (A)."""

SHADOW_FRAC = 0.5
"""Share of hot faults that cast a shadow at all (A)."""

SHADOW_ECC_PER_H = 20.0
SHADOW_WEAR_C = 6.0
"""At its end: corrected errors per hour before an HBM fault, extra degrees before a GPU's (A)."""


def start_faults(node: np.ndarray, fleet: Fleet, rng: np.random.Generator) -> None:
    """Wind one environment's fault clocks and pick its lemons.

    Args:
        node: Rows of `PLANT_NODE`, shape (N,).
        fleet: The site.
        rng: The generator of the fault seed.
    """
    static, count = fleet.node_static, len(node)
    lemons = rng.random(count) < LEMON_FRAC
    per_s = static["gpus"] * np.where(lemons, LEMON_FACTOR, 1.0) / 3600.0
    node["fault_rate"], node["fault_cold_rate"] = HOT_RATE * per_s, COLD_RATE * per_s
    node["fault_margin"], node["fault_cold_margin"] = rng.exponential(size=(2, count))
    node["fault_next"] = np.searchsorted(CLASS_UP_TO[:SRAM], rng.random(count), side="right")
    node["has_shadow"] = rng.random(count) < SHADOW_FRAC
    # a rack-scale NVLink domain spans the nodes of one power domain; elsewhere the fabric ends at the node
    is_rack_scale = ["NVL72" in name for name in fleet.sku_names]
    node["fabric"] = np.array(is_rack_scale)[static["sku"]] * (static["domain"] + 1)


@kernel
def fault_tick(b, tick, dt_s, measured, node_static, profiles, params, node, service, totals):
    """Break and repair nodes of environment `b` once per tick."""
    pr = params[b]
    step = dt_s * pr.fault_scale
    for n in range(node.shape[1]):
        nd = node[b, n]
        if nd.down_s > 0.0:
            _repair(b, dt_s, measured, pr, nd, totals)
            continue
        if nd.part_down_s > 0.0:
            _repair_part(b, dt_s, measured, node_static[n].gpus, nd, totals)
        if step <= 0.0 or nd.stage == PARKED:
            continue
        nd.fault_margin -= step * nd.fault_rate * math.exp(FAULT_Q10_LOG * (nd.temp_c - 65.0))
        nd.fault_cold_margin -= step * nd.fault_cold_rate
        if nd.has_shadow == 1 and nd.fault_margin < SHADOW_MARGIN:
            _shadow(step, nd)
        if nd.fault_margin <= 0.0:
            kind = nd.fault_next
            nd.fault_margin = -math.log(1.0 - hash_uniform(pr.fault_seed, tick, n, STREAM_FAULT))
            u = hash_uniform(pr.fault_seed, tick, n, STREAM_CLASS)
            nd.fault_next = GPU if u < CLASS_UP_TO[GPU] else HBM if u < CLASS_UP_TO[HBM] else HBM_CONTAINED
            nd.has_shadow = 1 if hash_uniform(pr.fault_seed, tick, n, STREAM_SHADOW) < SHADOW_FRAC else 0
            nd.wear_c = 0.0
            _strike(b, tick, n, kind, measured, node_static, profiles, pr, node, service, totals)
        elif nd.fault_cold_margin <= 0.0:
            nd.fault_cold_margin = -math.log(1.0 - hash_uniform(pr.fault_seed, tick, n, STREAM_FAULT))
            u = hash_uniform(pr.fault_seed, tick, n, STREAM_CLASS)
            kind = SRAM
            while kind < HOST and u >= CLASS_UP_TO[kind]:
                kind += 1
            _strike(b, tick, n, kind, measured, node_static, profiles, pr, node, service, totals)


@kernel(inline=True)
def _shadow(step, nd):
    """What could be seen of a fault to come."""
    depth = 1.0 - max(nd.fault_margin, 0.0) / SHADOW_MARGIN
    if nd.fault_next == GPU:
        nd.wear_c = SHADOW_WEAR_C * depth
    else:
        nd.ecc_count += step / 3600.0 * SHADOW_ECC_PER_H * depth


@kernel
def _strike(b, tick, n, kind, measured, node_static, profiles, pr, node, service, totals):
    """A fault of class `kind` hits node `n`: a TP group, the node, or its fabric."""
    nd, ns = node[b, n], node_static[n]
    nd.fault_xid = CLASS_XID[kind]
    u = hash_uniform(pr.fault_seed, tick, n, STREAM_OUTCOME)
    if kind == NETWORK:
        if nd.fabric == 0 or u >= FABRIC_SHARE:
            _take_node(b, n, nd.fault_xid if nd.fabric == 0 else XID_FABRIC, RESET_S, 0, measured, node_static, node,
                       service, totals)  # fmt: skip
            return
        for m in range(node.shape[1]):
            if node[b, m].fabric == nd.fabric and node[b, m].down_s <= 0.0:
                _take_node(b, m, XID_FABRIC, RESET_S, 0, measured, node_static, node, service, totals)
        return
    if u < OUTCOME_UP_TO[kind, RESET]:
        seconds = pr.role_move_s if u < OUTCOME_UP_TO[kind, RESTART] else RESET_S
        group = int(profiles[ns.service, ns.sku].tp)
        if nd.gpus_down + group < ns.gpus:
            lose_part(b, n, group / (ns.gpus - nd.gpus_down), measured, node_static, node, service, totals)
            nd.gpus_down += group
            nd.part_down_s = max(nd.part_down_s, seconds)
        else:
            _take_node(b, n, nd.fault_xid, seconds, 0, measured, node_static, node, service, totals)
        return
    seconds = REBOOT_S
    if u >= OUTCOME_UP_TO[kind, REBOOT]:
        seconds = RMA_LOW_S + (RMA_HIGH_S - RMA_LOW_S) * hash_uniform(pr.fault_seed, tick, n, STREAM_REPAIR)
    _take_node(b, n, nd.fault_xid, seconds, 1, measured, node_static, node, service, totals)


@kernel
def _take_node(b, n, xid, seconds, agent_down, measured, node_static, node, service, totals):
    """The whole node is out for `seconds`."""
    nd = node[b, n]
    lose_node(b, n, measured, node_static, node, service, totals)
    nd.fault_xid = nd.xid = xid
    nd.down_s, nd.agent_down = seconds, agent_down
    nd.gpus_down, nd.part_down_s = 0, 0.0


@kernel
def lose_part(b, n, part, measured, node_static, node, service, totals):
    """Drop the requests that decode on a share `part` of node `n`: a TP group dies with a member."""
    nd = node[b, n]
    sv = service[b, node_static[n].service]
    if nd.stage != DECODE or sv.active <= 1e-9 or nd.batch <= 0.0:
        return
    share = min(part * nd.batch / sv.active, 1.0)
    lost_tok = share * (sv.active_tok + sv.active_out_tok)
    if measured:
        totals[b].lost_req += share * sv.active
        totals[b].lost_tok += lost_tok
    sv.lost_tok += lost_tok
    keep = 1.0 - share
    sv.active *= keep
    sv.active_tok *= keep
    sv.active_ok *= keep
    sv.active_out_tok *= keep
    nd.batch *= 1.0 - part


@kernel(inline=True)
def _repair(b, dt_s, measured, pr, nd, totals):
    nd.down_s -= dt_s
    if measured:
        totals[b].down_node_s += dt_s
    if nd.down_s <= 0.0:
        nd.down_s = 0.0
        nd.xid = 0
        nd.moving_s = pr.role_move_s  # the model loads again
        if measured:
            totals[b].repairs += 1.0


@kernel(inline=True)
def _repair_part(b, dt_s, measured, gpus, nd, totals):
    """Groups that wait for a reset come back together, when the last of them does."""
    nd.part_down_s -= dt_s
    if measured:
        totals[b].down_node_s += dt_s * nd.gpus_down / gpus
    if nd.part_down_s <= 0.0:
        nd.part_down_s = 0.0
        nd.gpus_down = 0
        if measured:
            totals[b].repairs += 1.0
