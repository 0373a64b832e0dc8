"""What the audit keeps about a start of the service: the site, and the policy."""

from dataclasses import asdict, fields, is_dataclass
from typing import Any

from ..fleet.topology import Fleet
from ..policies.base import Policy


def site_record(fleet: Fleet) -> dict[str, Any]:
    """What a reader of the audit needs to know about the site, as JSON."""
    static = fleet.node_static
    return {
        "name": fleet.name,
        "tick_s": fleet.timing.tick_s,
        "lease_ttl_s": fleet.timing.lease_ttl_s,
        "grace_s": fleet.timing.grace_s,
        "nodes": [
            {
                "name": n.name,
                "domain": int(row["domain"]),
                "sku": n.sku,
                "gpus": n.gpus,
                "cap_min_w": int(row["cap_min_w"]),
                "cap_max_w": int(row["cap_max_w"]),
            }
            for n, row in zip(fleet.nodes, static, strict=True)
        ],
        "domains": [
            {"name": d.name, "parent": int(row["parent"]), "peak_w": d.peak_w}
            for d, row in zip(fleet.domains, fleet.domain_static, strict=True)
        ],
        "services": [s.name for s in fleet.services],
        # whole, so that a report made weeks later needs no site file
        "fleet": {k: v for k, v in asdict(fleet).items() if k != "source"},
    }


def policy_record(policy: Policy) -> dict[str, Any]:
    """What it takes to make the same policy again: its name, and a baseline's constants."""
    constants = fields(policy) if is_dataclass(policy) else ()
    values = {f.name: getattr(policy, f.name) for f in constants}
    return {"name": policy.name, "params": {k: v for k, v in values.items() if isinstance(v, int | float)}}
