"""The live picture as JSON: what the dashboard polls."""

from typing import Any

import numpy as np

from ..fleet.plan import Breach, Reason, Shed
from ..fleet.tables import NEVER_S, UNKNOWN_W
from .engine import Engine
from .view import View
from .wire import table_columns

NOTES_SHOWN = 80


def _finite(values: np.ndarray, digits: int = 1) -> list[float | None]:
    return [
        round(v, digits) if np.isfinite(v) and abs(v) < NEVER_S else None for v in np.asarray(values, float).tolist()
    ]


def _known(caps_w: np.ndarray) -> list[int | None]:
    return [None if w == UNKNOWN_W else w for w in caps_w.tolist()]


def _never(time_s: float) -> float | None:
    return None if time_s >= NEVER_S else round(time_s, 1)


def fleet_json(engine: Engine, view: View) -> dict[str, Any]:
    """Totals, the power tree, the nodes in columns, and the latest notes."""
    plan = view.plan.fleet
    return {
        "site": engine.fleet.name,
        "time_s": view.time_s,
        "age_s": round(max(engine.clock.now_s() - view.time_s, 0.0), 3),
        "tick": view.tick,
        "tick_s": engine.fleet.timing.tick_s,
        "epoch": view.epoch,
        "mode": str(engine.mode),
        "started_s": engine.started_s,
        "policy": {"chosen": engine.policy.name, "in_use": view.source, "trusted": view.is_trusted},
        "shed": Shed(int(plan["shed_level"][0])).name,
        "totals": _totals(engine, view),
        "domains": _domains(engine, view),
        "nodes": _nodes(engine, view),
        "services": _services(engine, view),
        "notes": [note._asdict() for note in list(engine.notes)[-NOTES_SHOWN:]],
        "problems": engine.problems(),
    }


def _totals(engine: Engine, view: View) -> dict[str, Any]:
    service = view.heard.service[0]
    fresh = service["age_s"] < 3 * engine.fleet.timing.control_s
    served = service["arrival_rps"] * (1.0 - np.nan_to_num(service["reject_frac"]))
    tokens = served * (service["prompt_tokens"] + service["output_tokens"])
    tokens = tokens[fresh & np.isfinite(tokens)]
    heard, counters = view.heard.node[0], engine.counters
    return {
        "measured_w": float(view.domain_measured_w[0]),
        "metered": bool(view.is_metered[0]),
        "possible_w": int(view.domain_possible_w[0]),
        "limit_w": view.limits[0].limit_w,
        "in_force_w": int(view.in_force_w[0]),
        "tok_s": float(tokens.sum()) if len(tokens) else None,
        "violation_ws": round(counters.violation_ws, 1),
        "overshoot_ws": round(counters.overshoot_ws, 1),
        "nodes": len(heard),
        "silent": int((heard["is_silent"] != 0).sum()),
        "cordoned": int(view.cordoned.sum()),
        "drained": int(view.drained.sum()),
        "interventions": int(view.plan.fleet["interventions"][0]),
        "tick_ms": round(1e3 * counters.last_tick_s, 2),
        "commit_ms": round(1e3 * counters.last_commit_s, 2),
        "policy_failures": engine.assured.failures,
    }


def _domains(engine: Engine, view: View) -> list[dict[str, Any]]:
    out = []
    rows = view.plan.domain[0]
    for d, (domain, static) in enumerate(zip(engine.fleet.domains, engine.fleet.domain_static, strict=True)):
        limit = view.limits[d]
        out.append(
            {
                "name": domain.name,
                "parent": int(static["parent"]),
                "depth": int(static["depth"]),
                "first": int(static["node_start"]),
                "end": int(static["node_end"]),
                "peak_w": domain.peak_w,
                "measured_w": round(float(view.domain_measured_w[d])),
                "metered": bool(view.is_metered[d]),
                "possible_w": int(view.domain_possible_w[d]),
                "limit_w": limit.limit_w,
                "in_force_w": int(view.in_force_w[d]),
                "next_limit_w": limit.next_limit_w if limit.next_in_s < NEVER_S else None,
                "next_in_s": _never(limit.next_in_s),
                "until_s": _never(limit.until_s),
                "event": limit.event_id or None,
                "breach": Breach(int(rows["breach"][d])).name.lower(),
                "breach_critical": bool(rows["is_critical"][d]),
                "excursion_w": int(rows["excursion_w"][d]),
                "excess_w": int(rows["excess_w"][d]),
                "exhausted": bool(rows["is_exhausted"][d]),
                "watt_price": float(rows["price"][d]),
            }
        )
    return out


def _nodes(engine: Engine, view: View) -> dict[str, list]:
    heard, plan, static = view.heard.node[0], view.plan.node[0], engine.fleet.node_static
    domain_names = [d.name for d in engine.fleet.domains]
    return {
        "name": [n.name for n in engine.fleet.nodes],
        "domain": static["domain"].tolist(),
        "sku": [n.sku for n in engine.fleet.nodes],
        "gpus": static["gpus"].tolist(),
        "service": [n.service for n in engine.fleet.nodes],
        "stage": heard["stage"].tolist(),
        "stage_planned": plan["stage"].tolist(),
        "moving_s": _finite(heard["moving_s"]),
        "power_w": _finite(heard["power_w"]),
        "temp_c": _finite(heard["temp_c"]),
        "age_s": _finite(heard["age_s"]),
        "cap_w": _known(heard["cap_w"]),
        "cap_planned_w": plan["cap_w"].tolist(),
        "cap_max_w": static["cap_max_w"].tolist(),
        "want_w": plan["want_w"].tolist(),
        "fallback_w": plan["fallback_w"].tolist(),
        "reason": [Reason(r).name for r in plan["reason"].tolist()],
        "bound_by": [domain_names[d] if d >= 0 else None for d in plan["bound_domain"].tolist()],
        "silent": heard["is_silent"].tolist(),
        "stale": (heard["age_s"] >= engine.fleet.timing.stale_s).astype(int).tolist(),
        "cordoned": view.cordoned.astype(int).tolist(),
        "drained": view.drained.astype(int).tolist(),
        "xid": heard["xid"].tolist(),
    }


def _services(engine: Engine, view: View) -> list[dict[str, Any]]:
    rows = table_columns(view.heard.service[0])
    shown = (
        "arrival_rps",
        "ttft_s",
        "itl_s",
        "ttft_ok_frac",
        "itl_ok_frac",
        "reject_frac",
        "kv_frac",
        "backlog_s",
    )
    return [
        {
            "name": s.name,
            "model": s.model,
            "ttft_target_s": s.slo.ttft_s,
            "itl_target_s": s.slo.itl_s,
            "age_s": _never(rows["age_s"][k]),
            **{name: rows[name][k] for name in shown},
        }
        for k, s in enumerate(engine.fleet.services)
    ]
