"""What the service knows and commands at one tick: an immutable picture that HTTP reads without locks."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..fleet.arbiter import ArbiterState
from ..fleet.plan import Plan
from ..fleet.snapshot import Snapshot
from ..fleet.tables import NEVER_S
from ..fleet.topology import Fleet
from .audit import AUDIT_DOMAIN, AUDIT_NODE
from .budget import DomainLimit


@dataclass(frozen=True)
class View:
    """One tick's picture.

    Attributes:
        heard: The snapshot as telemetry gave it.
        plan: What is commanded (enforce) or would have been (advise, shadow).
        limits: What budget events mean for each domain.
        ordered: Standing order per node: "", "cordon" or "drain", shape (N,).
        source: Policy whose bids are in use.
        is_trusted: Whether that is the chosen policy and not its fallback.
    """

    tick: int
    time_s: float
    epoch: int
    heard: Snapshot
    state: ArbiterState
    plan: Plan
    limits: tuple[DomainLimit, ...]
    ordered: tuple[str, ...]
    source: str
    is_trusted: bool
    node_possible_w: np.ndarray
    domain_possible_w: np.ndarray
    domain_measured_w: np.ndarray
    is_metered: np.ndarray

    @property
    def in_force_w(self) -> np.ndarray:
        """Limits in force, shape (D,), watts."""
        return self.state.domain["in_force_w"][0]

    @cached_property
    def cordoned(self) -> np.ndarray:
        """Nodes that get no new work, shape (N,): by the arbiter or by order."""
        return (self.plan.node["is_cordoned"][0] != 0) | np.array([bool(o) for o in self.ordered])

    @cached_property
    def drained(self) -> np.ndarray:
        return self.plan.node["is_drained"][0] != 0


def node_possible_w(fleet: Fleet, state: ArbiterState) -> np.ndarray:
    """Upper bound of each node's draw now, shape (N,), watts: DESIGN.md section 4, guarantee 1."""
    static, row = fleet.node_static, state.node[0]
    gpu_w = np.where(row["is_parked"] != 0, static["parked_max_w"], np.maximum(row["cap_possible_w"], row["cap_cmd_w"]))
    return gpu_w + static["non_gpu_max_w"]


def domain_sums(fleet: Fleet, node_values: np.ndarray) -> np.ndarray:
    """Sums over each domain's nodes, shape (D,)."""
    running = np.concatenate([[0], np.cumsum(node_values)])
    static = fleet.domain_static
    return running[static["node_end"]] - running[static["node_start"]]


def measured_w(fleet: Fleet, heard: Snapshot) -> tuple[np.ndarray, np.ndarray]:
    """Draw of each domain and whether a meter says so, both shape (D,).

    Without a fresh meter it is the GPUs' draw plus the declared bound of everything else, so it errs upwards;
    nodes that are not heard count with their bound of everything but GPUs.
    """
    static = fleet.domain_static
    node = heard.node[0]
    fresh = node["age_s"] < fleet.timing.stale_s
    gpu_w = np.where(fresh & np.isfinite(node["power_w"]), node["power_w"], 0.0)
    estimate_w = domain_sums(fleet, gpu_w + fleet.node_static["non_gpu_max_w"]) + static["unmanaged_w"]
    meter = heard.domain[0]
    is_metered = np.isfinite(meter["meter_w"]) & (meter["meter_age_s"] < fleet.timing.stale_s)
    return np.where(is_metered, meter["meter_w"], estimate_w), is_metered


def audit_prices(view: View) -> list[tuple[int, float, int]]:
    """Index, price of a watt and next node of every domain that binds, for the audit."""
    rows = view.plan.domain[0]
    return [
        (int(d), float(rows["price"][d]), int(rows["next_node"][d])) for d in np.flatnonzero(rows["next_node"] >= 0)
    ]


def audit_rows(fleet: Fleet, view: View) -> tuple[np.ndarray, np.ndarray]:
    """The tick as AUDIT_NODE and AUDIT_DOMAIN rows; `since_s` is left to the trail."""
    plan, state = view.plan.node[0], view.state.node[0]
    node = np.zeros(len(fleet.nodes), AUDIT_NODE)
    for name in ("cap_w", "want_w", "fallback_w", "seq", "stage", "reason", "bound_domain"):
        node[name] = plan[name]
    node["is_cordoned"], node["is_drained"] = view.cordoned, view.drained | (state["is_drained"] != 0)
    node["is_silent"] = view.heard.node[0]["is_silent"]
    node["possible_w"] = view.node_possible_w
    domain = np.zeros(len(fleet.domains), AUDIT_DOMAIN)
    domain["in_force_w"] = view.in_force_w
    domain["possible_w"] = view.domain_possible_w
    domain["measured_w"] = view.domain_measured_w
    for row, limit in zip(domain, view.limits, strict=True):
        row["limit_w"], row["next_limit_w"] = limit.limit_w, limit.next_limit_w
        row["next_at_s"] = view.time_s + limit.next_in_s if limit.next_in_s < NEVER_S else NEVER_S
        row["until_s"] = limit.until_s
    return node, domain
