"""Which nodes are drained and cordoned, within the allowed share of every failure domain."""

import numpy as np

from ..plan import Order
from ..tables import PARKED, STAGES
from .compiled import kernel
from .scratch import COMMANDED, FRESH

XID_ACTIONS = {
    # FIELD.md section 2. Application errors: restart the application, the node is fine.
    "app_restart": (8, 11, 13, 25, 31, 32, 39, 40, 41, 69, 94),
    "gpu_reset": (46, 48, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158),
    "reboot": (79, 151),
    "fabric": (144, 145, 146, 147, 148, 149, 150),
    "ignore": (14, 37, 38, 43, 44, 63, 66, 67, 92, 121, 137, 157),
    "human": (45, 54, 74, 78, 159),
    # 154 carries its meaning in its text, which a number does not: treated as the mildest thing it can mean
    "meta": (154,),
}
"""XID codes by outcome; every unlisted code needs a human."""

DRAINING_ACTIONS = ("gpu_reset", "reboot", "fabric", "human", "meta")
XID_TABLE_SIZE = 256


ORDERED_DRAIN = int(Order.DRAIN)

DRAIN_WINDOW_S, BREAKER_FRAC = 300.0, 0.5
"""FIELD.md section 2: half of the nodes within five minutes trip the breaker. A single node never does."""


def _draining_table() -> np.ndarray:
    table = np.ones(XID_TABLE_SIZE, np.int8)
    table[0] = 0
    for action, codes in XID_ACTIONS.items():
        table[list(codes)] = action in DRAINING_ACTIONS
    table.flags.writeable = False
    return table


XID_DRAINS = _draining_table()
"""1 where the code takes the node out of service; codes outside the table do."""


def xid_action(xid: int) -> str:
    """Outcome class of an XID code: a key of `XID_ACTIONS`; unlisted codes need a human."""
    return next((action for action, codes in XID_ACTIONS.items() if xid in codes), "human")


@kernel(inline=True)
def xid_drains(xid):
    """True if this code takes a node out of service."""
    return xid < 0 or xid >= XID_TABLE_SIZE or XID_DRAINS[xid] != 0


@kernel(inline=True)
def counts_as_drained(st, now_s):
    """True for a node that is drained, or was within the window."""
    return st.is_drained != 0 or now_s - st.drained_at_s < DRAIN_WINDOW_S


@kernel
def update_breaker(now_s, st_node, st_fleet):
    """Trip the breaker when faults took too many nodes out within the window; only a person resets it."""
    recent = 0
    for i in range(len(st_node)):
        recent += 1 if now_s - st_node[i].cordoned_at_s < DRAIN_WINDOW_S else 0
    if recent > 1 and recent >= BREAKER_FRAC * len(st_node):
        st_fleet.is_tripped = 1


@kernel
def update_drains(now_s, node_static, service_static, fleet, sn_node, st_node, st_fleet, bid_node, node, pool, count):
    """Return healthy nodes, then drain faulty ones, then those bid for, by id within the allowed shares.

    A failure domain loses at most `max_drain_frac` of its nodes (at least one) at once and within a window, and a
    service keeps its minimum of nodes per stage: a node that cannot serve anyway costs no capacity. Nothing more is
    drained while the breaker is open, but what an operator orders.
    """
    drained, size = count[0], count[1]
    drained[:] = 0
    size[:] = 0
    for i in range(len(node_static)):
        f = node_static[i].failure_domain
        size[f] += 1
        is_wanted = bid_node[i, 0] > 0.5 or xid_drains(sn_node[i].xid)
        if st_node[i].is_drained != 0 and node[FRESH, i] != 0 and sn_node[i].is_up != 0 and not is_wanted:
            st_node[i].is_drained = 0
            if st_node[i].stage_cmd < STAGES:
                pool[COMMANDED, STAGES * node_static[i].service + st_node[i].stage_cmd] += 1
        drained[f] += counts_as_drained(st_node[i], now_s)
    update_breaker(now_s, st_node, st_fleet)
    for cause in range(2):
        for i in range(len(node_static)):
            if st_fleet.is_tripped != 0 and (cause == 0 or st_node[i].order != ORDERED_DRAIN):
                continue
            if st_node[i].is_drained != 0:
                continue
            if not (xid_drains(sn_node[i].xid) if cause == 0 else bid_node[i, 0] > 0.5):
                continue
            f = node_static[i].failure_domain
            is_new = 0 if counts_as_drained(st_node[i], now_s) else 1
            if drained[f] + is_new > max(1, int(fleet.max_drain_frac * size[f])):
                continue
            stage, s = st_node[i].stage_cmd, node_static[i].service
            if node[FRESH, i] != 0 and sn_node[i].is_up != 0 and stage != PARKED:
                at_least = service_static[s].min_prefill_nodes if stage == 0 else service_static[s].min_decode_nodes
                if pool[COMMANDED, STAGES * s + stage] - 1 < at_least:
                    continue
                pool[COMMANDED, STAGES * s + stage] -= 1
            st_node[i].is_drained = 1
            st_node[i].drained_at_s = now_s
            drained[f] += is_new
            if cause == 0:
                st_node[i].cordoned_at_s = now_s
                update_breaker(now_s, st_node, st_fleet)
