"""What of the arbiter's state outlives the service: drains, the cordon breaker, and what meters have shown.

Caps, acknowledgements and stages do not: a service that starts counts every node at its maximum until it is heard.
What is kept here is restrictive (a breaker that tripped, drains that count for their window, watts that were taken back
or are charged above declared bounds, a window that was overdrawn), or took a day to learn (`meters.spare_of`).
"""

import json
import math
from typing import Any

from ..tables import NEVER_S
from ..topology import Fleet
from .state import ArbiterState

DOMAIN_FIELDS = (
    "good_s",
    "high_w",
    "high_before_w",
    "other_w",
    "other_top_w",
    "own_excess_w",
    "excess_w",
    "excursion_w",
    "wait_s",
    "clear_s",
    "is_exhausted",
    "breach",
    "is_critical",
    "breach_s",
    "below_s",
)
"""Kept of every domain, as they are."""

NODE_FIELDS = ("drained_at_s", "cordoned_at_s")


def memory_of(fleet: Fleet, state: ArbiterState) -> dict[str, Any]:
    """What a restart must not forget, by name, as JSON can hold it; only what differs from a fresh start."""
    node, domain = state.node[0], state.domain[0]
    nodes, domains = {}, {}
    for i in (node["drained_at_s"] > -NEVER_S).nonzero()[0]:
        nodes[fleet.nodes[i].name] = {name: float(node[name][i]) for name in NODE_FIELDS if node[name][i] > -NEVER_S}
    for d, entry in enumerate(fleet.domains):
        row = {name: domain[name][d].item() for name in DOMAIN_FIELDS if domain[name][d]}
        if domain["bank_ws"][d] < 0.0:
            row["bank_ws"] = float(domain["bank_ws"][d])
        if row:
            domains[entry.name] = row
    return {"is_tripped": int(state.fleet["is_tripped"][0]), "nodes": nodes, "domains": domains}


def is_urgent(now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a memory must be kept at once: of drains, the breaker, and of what was taken back."""
    keys = ("excursion_w", "own_excess_w", "breach")
    taken = [{d: [row.get(k, 0) for k in keys] for d, row in m.get("domains", {}).items()} for m in (now, before)]
    return (now["is_tripped"], now["nodes"]) != (before.get("is_tripped"), before.get("nodes")) or taken[0] != taken[1]


def with_memory(fleet: Fleet, state: ArbiterState, memory: dict[str, Any]) -> ArbiterState:
    """A fresh state that remembers; nodes and domains that the site no longer has are forgotten."""
    state = state.copy()
    state.fleet["is_tripped"] = 1 if memory.get("is_tripped") else 0
    for name, row in memory.get("nodes", {}).items():
        i = fleet.node_index.get(name)
        for key in NODE_FIELDS:
            if i is not None and key in row:
                state.node[key][:, i] = row[key]
    for name, row in memory.get("domains", {}).items():
        d = fleet.domain_index.get(name)
        for key in (*DOMAIN_FIELDS, "bank_ws"):
            if d is not None and key in row and math.isfinite(row[key]):
                state.domain[key][:, d] = row[key]
    return state


def packed(memory: dict[str, Any]) -> str:
    """A memory as text."""
    return json.dumps(memory, sort_keys=True)
