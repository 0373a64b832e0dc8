"""The page of a shadow report: its charts and its template."""

import json
from typing import Any

import numpy as np

from ...envs.kpis import BIN_EDGES_S, KPI_UNITS
from ..charts import svg
from ..report import TEMPLATES, number, percent, signed, tied
from . import charts as drawn
from .changes import HEADLINE, RELATIVE
from .compare import clock, kilowatts
from .words import (
    TRUST_WORDS,
    UNITS,
    change_text,
    direction,
    duration,
    listed,
    share,
    spread_text,
    tiles,
    value_text,
    warnings,
)

LABELS = {
    "goodput_tok_s_per_mw": "tokens/s per MW within targets",
    "tokens_per_joule": "tokens within targets per joule",
    "mean_power_w": "mean power",
    "ttft_p50_s": "TTFT, median",
    "ttft_p99_s": "TTFT, 99th percentile",
    "itl_p99_s": "ITL, 99th percentile",
    "slo_attainment_frac": "requests within targets",
    "budget_violation_ws": "violations, W s above limits in force",
    "overshoot_ws": "overshoot within the grace, W s",
    "cap_changes_per_node_hour": "cap changes per node and hour",
}


def charts(result: dict[str, Any]) -> dict[str, str]:
    """Every chart as an <svg> element, by name."""
    series, out = result["series"], {}
    out["power"] = svg(drawn.power_chart(series), 3.6, "Power that either side allows, metered power and the limit")
    if result["disagreement"] is not None:
        out["caps"] = svg(drawn.caps_chart(series), 2.9, "Mean cap per GPU by stage under either side")
        nodes = len(result["heat"]["nodes"])
        out["heat"] = svg(drawn.heat_chart(result["heat"]), 1.4 + 0.17 * nodes, "Difference of caps by node and time")
        out["reasons"] = svg(
            drawn.reasons_chart(series, result["site"]["nodes"]), 3.2, "Nodes that differ, by reason, over time"
        )
    if result["prediction"] is not None:
        rows = [r for r in result["prediction"]["changes"] if r["kpi"] in RELATIVE and r["change"]["mean"] is not None]
        out["changes"] = svg(drawn.change_chart(rows, LABELS), 0.9 + 0.36 * len(rows), "Predicted changes")
        head = next(r for r in result["prediction"]["changes"] if r["kpi"] == HEADLINE)
        out["draws"] = svg(drawn.draws_chart(head), 2.2, "Change of tokens per second and MW in every draw")
        names = [s["name"] for s in result["site"]["services"]]
        out["check"] = svg(
            drawn.check_chart(result["check_series"], names),
            2.3 * (1 + len(names)),
            "The log against its replay",
        )
    coverage = result["coverage"]
    out["coverage"] = svg(
        drawn.coverage_chart(np.array(coverage["time_s"]), np.array(coverage["known_frac"])), 1.8, "Nodes known"
    )
    return out


def render(result: dict[str, Any]) -> str:
    """The report as HTML; every number in it comes from `result`, which it also carries whole."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        percent=percent,
        signed=signed,
        tied=tied,
        share=share,
        watts=kilowatts,
        duration=duration,
        clock=clock,
        change=change_text,
        spread=spread_text,
        listed=listed,
        value=value_text,
        direction=lambda row: direction(row["change"]),
    )
    # a script element ends at "</": escaped, the JSON stays JSON
    data = json.dumps(result, allow_nan=False).replace("<", "\\u003c")
    return environment.get_template("shadow.html.j2").render(
        r=result,
        warnings=warnings(result),
        tiles=tiles(result),
        charts=charts(result),
        labels=LABELS,
        kpi_unit=UNITS,
        bin_frac=float(BIN_EDGES_S[1] / BIN_EDGES_S[0] - 1.0),
        units=KPI_UNITS,
        trust_words=TRUST_WORDS,
        data=data,
    )
