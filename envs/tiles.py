"""Nodes in tiles: how the physics' inner loops see an environment.

The record tables are what everybody outside a step reads and writes. At its start the fields that physics needs are
gathered from them into columns of 16 nodes of one service, one GPU product and one node size; the loops over a tile
have a constant length and no branches, so that they compile to vector instructions. What every tick moves lives in the
columns until they are written back at the end of the step, or before a fault, an event or a training gang looks at the
records (`world.world_tick`). What few ticks change stands in both: stage, drain, clock ceiling and the cap on its way
(`node_dynamics.receive_plan`).
"""

from typing import NamedTuple

import numpy as np

from ..fleet.tables import DECODE, PARKED, PREFILL
from ..fleet.topology import Fleet
from .compiled import kernel
from .waiting import WAIT_WORK

TILE = 16
"""Nodes per tile: two vectors of eight singles."""

# Columns of a tile, each TILE singles; the numbers are offsets into a row of `Tiles.column`.
(
    PHI, TEMP, CAP, PENDING, PENDING_CAP, CEILING, MOVING, OFF, DRAINED, DARK, PREFILLS, DECODES, REPLICAS, GPUS,
    RESETTING, NON_GPU, ADMISSIBLE, BATCH, UTIL, GPU_W, NODE_W, PEAK_W, LANDS,
    DEMAND, ENERGY, HBM_RATE, MIX, HBM_C, SPOT_C, HEAT_C_PER_W, COOL_FRAC,
) = range(0, 31 * TILE, TILE)  # fmt: skip
COLUMNS = 31

# Columns of `Tiles.sums`: per lane, over the tiles of a service.
PREFILL_RATE, PREFILL_REPLICAS, SLOTS, KV_ROOM, TOKENS = range(0, 5 * TILE, TILE)
SUMS = 5

LANDING_SLOTS = 32
"""Where a step's draw crosses a limit, the caps that come into force in it are resolved to this part of the step."""

TILE_STATIC = np.dtype([("service", "i8"), ("sku", "i8"), ("gpus", "i8"), ("count", "i8")], align=True)


class Tiles(NamedTuple):
    """A fleet's nodes in tiles, and working memory whose content means nothing between steps."""

    static: np.ndarray  # (T,) TILE_STATIC, ordered by service
    start: np.ndarray  # (S + 1,) int64: tiles start[s] .. start[s + 1] - 1 are service s
    node: np.ndarray  # (T, TILE) int64: node of each lane, -1 behind the last
    lane: np.ndarray  # (N,) int64: lane of each node, as an offset into `flat` before a column's
    domain_start: np.ndarray  # (D + 1,) int64
    domain_lane: np.ndarray  # (N,) int64: nodes that hang on domain d itself, as offsets into `flat` before a column's
    column: np.ndarray  # (T, COLUMNS * TILE) float32
    flat: np.ndarray  # the same memory as one row
    sums: np.ndarray  # (SUMS * TILE,) float32
    chance: np.ndarray  # (N,) float64
    change_w: np.ndarray  # (LANDING_SLOTS,) float64
    wait: np.ndarray  # (WAIT_WORK,) float64
    broken: np.ndarray  # (1,) int64: not 0 when a node is down, or a part of one is


def make_tiles(fleet: Fleet) -> Tiles:
    """Tiles of a fleet; not to be shared between threads."""
    static = fleet.node_static
    groups: dict[tuple[int, int, int], list[int]] = {}
    for n, row in enumerate(static):
        groups.setdefault((int(row["service"]), int(row["sku"]), int(row["gpus"])), []).append(n)
    rows, lanes = [], []
    for key in sorted(groups):
        members = groups[key]
        for at in range(0, len(members), TILE):
            part = members[at : at + TILE]
            rows.append((*key, len(part)))
            lanes.append(part + [-1] * (TILE - len(part)))
    tile = np.array(rows, TILE_STATIC)
    node = np.array(lanes, np.int64)
    lane = np.zeros(len(static), np.int64)
    row, at = np.nonzero(node >= 0)
    lane[node[row, at]] = row * COLUMNS * TILE + at
    of_domain = [np.flatnonzero(static["domain"] == d) for d in range(len(fleet.domains))]
    column = np.zeros((len(tile), COLUMNS * TILE), np.float32)
    for offset, value in ((PHI, 1.0), (CEILING, 1.0), (PENDING, -1.0), (OFF, 1.0), (TEMP, 25.0)):
        column[:, offset : offset + TILE] = value  # lanes without a node: off
    return Tiles(
        tile,
        np.searchsorted(tile["service"], np.arange(len(fleet.services) + 1)),
        node,
        lane,
        np.cumsum([0, *(len(members) for members in of_domain)]),
        lane[np.concatenate(of_domain)],
        column,
        column.reshape(-1),
        np.zeros(SUMS * TILE, np.float32),
        np.zeros(len(static)),
        np.zeros(LANDING_SLOTS),
        np.zeros(WAIT_WORK),
        np.zeros(1, np.int64),
    )


@kernel(inline=True)
def lane_sum(column, offset):
    """Sum of a column's lanes, in their order."""
    total = 0.0
    for i in range(TILE):
        total += column[offset + i]
    return total


@kernel(inline=True)
def whole_w(node_w, per_gpu):
    """A node's cap as whole watts per GPU; the margin is far above rounding and far below a GPU's share of a watt."""
    return int(node_w * per_gpu + 1e-6)


@kernel(inline=True)
def set_stage(at, nd, flat):
    """Write what the stage of node `nd` decides into its lane, `at` of `flat`."""
    flat[at + OFF] = 1.0 if nd.down_s > 0.0 or nd.stage == PARKED else 0.0
    if nd.is_training == 1:  # draws as prefill does, for its share of the tick
        flat[at + PREFILLS] = nd.util_frac
        flat[at + DECODES] = 0.0
    else:
        flat[at + PREFILLS] = 1.0 if nd.stage == PREFILL else 0.0
        flat[at + DECODES] = 1.0 if nd.stage == DECODE else 0.0


@kernel
def gather(b, node_static, profiles, params, node, tiles):
    """Fill the columns with the nodes of environment `b`, hosts that have just rebooted included."""
    pr = params[b]
    flat, broken = tiles.flat, 0
    for t in range(tiles.static.shape[0]):
        ts = tiles.static[t]
        column = tiles.column[t]
        per_gpu = 1.0 / ts.gpus
        tp = int(profiles[ts.service, ts.sku].tp)
        replicas = ts.gpus // tp
        for i in range(ts.count):
            n = tiles.node[t, i]
            nd = node[b, n]
            if nd.agent_down == 1 and nd.down_s <= 0.0:
                # a rebooted host comes back with the driver's default cap (SERVERS.md)
                nd.agent_down = 0
                nd.cap_w = node_static[n].cap_max_w
                nd.pending_s = -1.0
            if nd.down_s > 0.0 or nd.part_down_s > 0.0:
                broken = 1
            set_stage(tiles.lane[n], nd, flat)
            column[PHI + i] = nd.phi
            column[TEMP + i] = nd.temp_c
            column[HBM_C + i] = nd.hbm_c
            column[SPOT_C + i] = nd.hot_spot_c + nd.wear_c
            column[HEAT_C_PER_W + i] = nd.heat_c_per_w
            column[COOL_FRAC + i] = nd.cool_frac
            column[CAP + i] = whole_w(nd.cap_w, per_gpu)
            column[PENDING_CAP + i] = whole_w(nd.pending_w, per_gpu)
            column[PENDING + i] = nd.pending_s
            column[GPU_W + i] = nd.gpu_w
            column[DEMAND + i] = nd.demand_w
            column[BATCH + i] = nd.batch
            column[UTIL + i] = nd.util_frac
            column[CEILING + i] = nd.ceiling
            column[MOVING + i] = nd.moving_s
            column[DRAINED + i] = nd.is_drained
            column[DARK + i] = nd.agent_down
            # a GPU in reset takes its tensor-parallel group with it; what is left of the node serves on
            left = replicas if nd.gpus_down == 0 else max(ts.gpus - nd.gpus_down, 0) // tp
            busy = ts.gpus if nd.gpus_down == 0 else left * tp
            column[REPLICAS + i] = left
            column[GPUS + i] = busy
            column[RESETTING + i] = ts.gpus - busy
            column[NON_GPU + i] = node_static[n].non_gpu_max_w * pr.non_gpu_frac
            column[ENERGY + i] = 0.0
    tiles.broken[0] = broken


@kernel
def land(b, node, tiles):
    """Write what ticks move back to the nodes of environment `b`."""
    for t in range(tiles.static.shape[0]):
        column = tiles.column[t]
        for i in range(tiles.static[t].count):
            nd = node[b, tiles.node[t, i]]
            nd.phi = column[PHI + i]
            nd.moving_s = column[MOVING + i]
            nd.batch = column[BATCH + i]
            nd.util_frac = column[UTIL + i]
            nd.gpu_w = column[GPU_W + i]
            nd.demand_w = column[DEMAND + i]
            nd.non_gpu_w = column[NON_GPU + i]
            nd.temp_c = column[TEMP + i]
            nd.hbm_c = column[HBM_C + i]
