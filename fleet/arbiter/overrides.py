"""What operators order for single nodes: pinned and frozen caps, nodes left out, drains.

Limits come first: a pin is a wish of the highest rank, not a right. It holds while every domain above the node can
carry it beside the others' floors; where one cannot, pinned nodes are filled like all others, but never above their
pin. `refusal` is asked before an order is taken, so that one which could not hold is refused with the domain's name.

* PIN: the node's cap is `pin_w`. FREEZE: it is the cap it had, and its stage does not move.
* EXCLUDE: the node is left to somebody else: it counts at the most that it can draw, as a silent one does.
* DRAIN: drained within the allowed share even while the cordon breaker is open.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..plan import Order
from ..snapshot import Snapshot
from ..tables import DECODE, PARKED
from ..topology import Fleet
from .compiled import kernel
from .scratch import FLOOR, FREE, HI, KIND, LO, TARGET
from .state import ArbiterState
from .tree_filling import find_misfits


@dataclass(frozen=True)
class NodeOrder:
    """An order about one node; `pin_w` only for PIN and FREEZE."""

    kind: Order
    pin_w: int = 0


@kernel
def hold_pins(node_static, st_node, scratch):
    """Narrow the range of pinned nodes to their pin; where floors no longer fit, only its upper end stays."""
    node = scratch.node
    for i in range(len(node_static)):
        if st_node[i].pin_w > 0 and node[KIND, i] == FREE:
            pin_w = max(node_static[i].cap_min_w, min(st_node[i].pin_w, node_static[i].cap_max_w))
            node[LO, i] = pin_w
            node[HI, i] = pin_w
    is_misfit = find_misfits(node[LO], scratch) > 0
    for i in range(len(node_static)):
        if st_node[i].pin_w > 0 and node[KIND, i] == FREE:
            if is_misfit:
                node[LO, i] = min(node[FLOOR, i], node[HI, i])
            node[FLOOR, i] = node[LO, i]


@kernel
def clamp_to_pins(node_static, st_node, node):
    """Lower the target of a pinned node to its pin: shedding starts over from full ranges."""
    for i in range(len(node_static)):
        if st_node[i].pin_w > 0 and node[KIND, i] == FREE:
            node[TARGET, i] = min(node[TARGET, i], max(node_static[i].cap_min_w, st_node[i].pin_w))


def with_orders(state: ArbiterState, orders: dict[int, NodeOrder]) -> ArbiterState:
    """The state with these orders, by node index, and no others."""
    if not orders and not state.fleet["orders"].any():
        return state
    state = state.copy()
    state.node["order"], state.node["pin_w"], state.fleet["orders"] = 0, 0, len(orders)
    for i, order in orders.items():
        state.node["order"][:, i] = order.kind
        if order.kind in (Order.PIN, Order.FREEZE):
            state.node["pin_w"][:, i] = order.pin_w
        if order.kind == Order.FREEZE:
            # no stage move without dwell; one that shedding parked may return
            state.node["dwell_s"][:, i] = np.where(state.node["shed_from"][:, i] == 0, 0.0, state.node["dwell_s"][:, i])
    return state


def without_excluded(snapshot: Snapshot, orders: dict[int, NodeOrder]) -> Snapshot:
    """The snapshot in which excluded nodes say nothing: they count at their maximum, and nothing is asked of them."""
    out = [i for i, order in orders.items() if order.kind == Order.EXCLUDE]
    if not out:
        return snapshot
    node = snapshot.node.copy()
    node["is_silent"][:, out], node["is_up"][:, out] = 1, 0
    return Snapshot(snapshot.time_s, node, snapshot.domain, snapshot.service)


def refusal(fleet: Fleet, state: ArbiterState, orders: dict[int, NodeOrder], i: int, order: NodeOrder) -> str:
    """Why an order about node `i` cannot be taken beside those that stand; empty when it can.

    Every domain above the node must carry the pins, the excluded nodes' maxima, the silent nodes' as they count
    now, and the floors of all others, within the lowest of the limit in force and those that are to come.
    """
    if order.kind not in (Order.PIN, Order.FREEZE, Order.EXCLUDE):
        return ""
    static = fleet.node_static
    name, row = fleet.nodes[i].name, static[i]
    if order.kind != Order.EXCLUDE and not row["cap_min_w"] <= order.pin_w <= row["cap_max_w"]:
        return f"{name} takes caps of {row['cap_min_w']} to {row['cap_max_w']} W, not {order.pin_w} W"
    least_w = _least_w(fleet, state, {**orders, i: order})
    d = int(row["domain"])
    while d >= 0:
        feed, record = fleet.domain_static[d], state.domain[0, d]
        start, end = int(feed["node_start"]), int(feed["node_end"])
        limit_w = min(int(record[k]) for k in ("in_force_w", "announced_w"))
        if record["cut_at_s"] > state.fleet["time_s"][0] and record["pending_w"] > 0:
            limit_w = min(limit_w, int(record["pending_w"]))
        bounds_w = int(feed["unmanaged_w"]) + int(feed["non_gpu_max_w"]) + int(record["excess_w"])
        reserve_w = _reserve_w(static[start:end], least_w[start:end], int(feed["unknown_reserve"]))
        short_w = int(least_w[start:end].sum()) + reserve_w + bounds_w - limit_w
        if short_w > 0:
            return (
                f"{fleet.domains[d].name} cannot carry it: with every other node at its floor it would exceed its "
                f"{limit_w} W by {short_w} W; release another order or ask for less"
            )
        d = int(feed["parent"])
    return ""


def _least_w(fleet: Fleet, state: ArbiterState, orders: dict[int, NodeOrder]) -> np.ndarray:
    """The least that each node can be given, shape (N,), watts."""
    static, node = fleet.node_static, state.node[0]
    floor_w = np.where(node["stage_cmd"] == DECODE, static["decode_floor_w"], static["cap_min_w"])
    least_w = np.maximum(static["cap_min_w"], np.minimum(floor_w, static["cap_max_w"]))
    is_parked = (node["stage_cmd"] == PARKED) & (node["is_parked"] != 0)
    least_w = np.where(is_parked, static["parked_max_w"], least_w)
    least_w = np.where(node["unacked_s"] > fleet.timing.lease_ttl_s, node["cap_possible_w"], least_w)
    for i, order in orders.items():
        if order.kind == Order.EXCLUDE:
            least_w[i] = static["cap_max_w"][i]
        elif order.kind in (Order.PIN, Order.FREEZE):
            least_w[i] = order.pin_w
    return least_w


def _reserve_w(static: Any, least_w: np.ndarray, reserve: int) -> int:
    """What the largest jumps to the maximum would add."""
    if reserve <= 0:
        return 0
    return int(np.sort(static["cap_max_w"] - least_w)[::-1][:reserve].sum())
