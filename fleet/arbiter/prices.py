"""What one more watt at a domain's limit would be worth, and who would get it: for people, not for settling.

Caps of a domain that binds are `level x weight`, and a node's weight is what its bid asks for: its demand times
`exp(k * bid)`. The next watt goes to the node whose share is the smallest; it serves demand that its pool's bid
weighs with `weight / demand`. So the price of a watt is that factor at the node which is next in line: 1 under
neutral bids, 0 where nobody below the limit wants for watts. Only the service asks for this: neither the simulator's
loop nor a settlement pays for it.
"""

from dataclasses import replace

import numpy as np

from ..bids import WATTS_EXPONENT, Bids
from ..plan import Plan, Reason
from ..tables import DOMAIN_PLAN, STAGES
from ..topology import Fleet
from .state import ArbiterState

COPIED = ("excursion_w", "excess_w", "is_exhausted", "breach", "is_critical", "breach_s")


def node_weights(fleet: Fleet, state: ArbiterState, bids: Bids) -> tuple[np.ndarray, np.ndarray]:
    """What each node's demand is weighed with, and its weight in the filling, shape (B, N) each."""
    static, node = fleet.node_static, state.node
    pool = STAGES * static["service"] + np.where(node["stage_cmd"] < STAGES, node["stage_cmd"], 0)
    bid = np.nan_to_num(bids.pool[:, :, 0].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    factor = np.take_along_axis(np.exp(WATTS_EXPONENT * np.clip(bid, -1.0, 1.0)), pool, 1)
    demand_w = np.where(np.isfinite(node["demand_w"]), node["demand_w"], static["cap_max_w"])
    return factor, np.maximum(1.0, factor * np.maximum(demand_w, 1.0))


def priced(fleet: Fleet, state: ArbiterState, plan: Plan, bids: Bids) -> Plan:
    """The plan with its domains' rows."""
    return replace(plan, domain=domain_plan(fleet, state, plan, bids))


def domain_plan(fleet: Fleet, state: ArbiterState, plan: Plan, bids: Bids) -> np.ndarray:
    """The domains' rows of a plan.

    Args:
        fleet: The site.
        state: State after the settlement.
        plan: What it commanded.
        bids: What was asked.

    Returns:
        `tables.DOMAIN_PLAN`, shape (B, D).
    """
    out = np.zeros(state.domain.shape, DOMAIN_PLAN)
    for name in COPIED:
        out[name] = state.domain[name]
    out["level"], out["next_node"] = np.nan, -1
    rows = plan.node
    is_short = (rows["reason"] == Reason.DOMAIN_LIMIT) & (rows["bound_domain"] >= 0)
    if not is_short.any():
        return out
    factor, weight = node_weights(fleet, state, bids)
    for b in range(state.batch):
        short = np.flatnonzero(is_short[b])
        # the first of each domain in the order of shares, ties by id
        short = short[np.argsort((rows["cap_w"][b, short] + 1) / weight[b, short], kind="stable")]
        domains, first = np.unique(rows["bound_domain"][b, short], return_index=True)
        who = short[first]
        out["next_node"][b, domains] = who
        out["level"][b, domains] = rows["cap_w"][b, who] / weight[b, who]
        out["price"][b, domains] = factor[b, who]
    return out
