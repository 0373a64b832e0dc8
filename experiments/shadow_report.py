"""`flyball shadow report`: what was done, what would have been done, and what that would have changed.

One HTML file that needs nothing else, and a JSON file beside it with the same numbers.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, registry
from ..envs.kpis import BIN_EDGES_S, KPI_UNITS
from ..envs.scenario import load_scenario
from ..fleet.errors import BadInput, FlyballError
from . import shadow_charts
from .charts import svg
from .incumbent import CapTable, run_beside, shortened
from .report import TEMPLATES, number, percent, signed
from .shadow_compare import Comparison, clock, kilowatts
from .shadow_log import Shadow, data_quality, read_shadow
from .shadow_replay import RELATIVE, Replayed, changes, replay, sensitivity, why_not
from .story import write_whole

FORMAT = "flyball-shadow-1"

MIN_ROWS = 6
"""Fewer settled control intervals than this are not compared."""

WINDOWS = 24

POWER_CLOSE_FRAC, POWER_FAIR_FRAC = 0.06, 0.12
"""Published power coefficients transfer with 12 % mean error (MODEL.md section 4); half of that is close."""

LATENCY_CLOSE_FRAC, LATENCY_FAIR_FRAC = 0.25, 0.5
"""Latency near saturation moves by more than power does; beyond a half the replay runs at another operating point."""

HEADLINE = "goodput_tok_s_per_mw"

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

UNITS = {"mean_power_w": "W", "ttft_p50_s": "s", "ttft_p99_s": "s", "itl_p99_s": "s"}
"""Units of figures whose label does not say them."""

DEMO_SCENARIO, DEMO_POLICY, DEMO_SEED = "demo", "best-baseline", 3_000_000

Progress = Callable[[str, float], None]


def shadow_report(
    db_url: str,
    out: Path,
    from_s: float | None,
    to_s: float | None,
    windows: int = WINDOWS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Report on a shadow log.

    Args:
        db_url: Database that `flyball serve --mode shadow` wrote.
        out: The HTML file; the JSON file stands beside it with the suffix .json.
        from_s: Unix seconds, included; None from the start.
        to_s: Unix seconds, excluded; None to the end.
        windows: Draws of the plant's uncertain parameters and of the load's noise.
        progress: Called with a label and the share done.

    Returns:
        The content of the JSON file, and "report" and "json", the paths of both files.

    Raises:
        BadInput: no such database, no rows in the range, fewer than two windows, or an `out` that is no .html file.
    """
    out, tell = Path(out), progress or (lambda label, share: None)
    if windows < 2:
        raise BadInput(f"{windows} windows give no interval; use at least 2")
    if out.suffix != ".html":
        raise BadInput(f"{out}: the report is an HTML file; give a name that ends in .html")
    tell("reading the log", 0.0)
    shadow = read_shadow(db_url, from_s, to_s)
    quality = data_quality(shadow, from_s, to_s)
    comparison = Comparison(shadow)
    is_enough = int(comparison.known.any(1).sum()) >= MIN_ROWS
    result: dict[str, Any] = {
        "format": FORMAT,
        "flyball": __version__,
        "database": db_url,
        "made_s": time.time(),
        "site": _site(shadow),
        "range": _range(shadow),
        "policy": shadow.policy,
        "quality": quality,
        "disagreement": comparison.tables() if is_enough else None,
        "not_compared": "" if is_enough else _too_little(comparison),
        "series": comparison.series(),
        "heat": comparison.heat() if is_enough else None,
        "coverage": _coverage(shadow),
        **_predict(shadow, windows, tell),
    }
    result["verdict"] = headline(result)
    result = clean(result)
    tell("writing the report", 0.97)
    paths = {"report": str(out), "json": str(out.with_suffix(".json"))}
    write_whole(out.with_suffix(".json"), json.dumps(result, allow_nan=False))
    write_whole(out, render(result))
    tell("done", 1.0)
    return {**result, **paths}


def make_shadow_demo(
    out: Path, seconds: int, progress: Progress | None = None, policy: str = DEMO_POLICY
) -> dict[str, Any]:
    """Run a service in shadow mode beside a static cap table, with the plant as the fleet, and report on it.

    The table is the strongest that never exceeds a limit: it fits the lowest one that the scenario brings.

    Args:
        out: Folder for the database and the report.
        seconds: Length of the run.
        progress: Called with a label and the share done.
        policy: What Flyball proposes with.

    Returns:
        As `shadow_report`, and "incumbent", the table.
    """
    tell = progress or (lambda label, share: None)
    scenario = shortened(load_scenario(DEMO_SCENARIO), float(seconds))
    fleet = scenario.fleet
    lowest_frac = min((e.limit_frac for e in scenario.budget_events), default=1.0)
    table = CapTable.provision(fleet, lowest_frac)
    db = Path(out) / "shadow.db"
    for part in ("", "-wal", "-shm"):
        db.with_name(db.name + part).unlink(missing_ok=True)
    db.parent.mkdir(parents=True, exist_ok=True)
    run_beside(
        scenario,
        registry.policy(policy, scenario),
        lambda plant, view: table.caps_w(fleet, plant.node["stage"][0]),
        f"sqlite:///{db}",
        DEMO_SEED,
        start_s=float(int(time.time()) - seconds),
        progress=lambda label, share: tell(label, 0.4 * share),
    )
    report = shadow_report(
        f"sqlite:///{db}",
        Path(out) / "shadow.html",
        None,
        None,
        progress=lambda label, share: tell(label, 0.4 + 0.6 * share),
    )
    return {**report, "incumbent": {"prefill_w": table.prefill_w, "decode_w": table.decode_w, "fits_frac": lowest_frac}}


# ── parts of the result ─────────────────────────────────────────────────────────────────────────────────
def _site(shadow: Shadow) -> dict[str, Any]:
    fleet = shadow.fleet
    return {
        "name": fleet.name,
        "hash": fleet.hash,
        "nodes": len(fleet.nodes),
        "gpus": sum(n.gpus for n in fleet.nodes),
        "nominal_w": fleet.domains[0].peak_w,
        "root": fleet.domains[0].name,
        "control_s": fleet.timing.control_s,
        "grace_s": fleet.timing.grace_s,
        "services": [{"name": s.name, "ttft_s": s.slo.ttft_s, "itl_s": s.slo.itl_s} for s in fleet.services],
    }


def _range(shadow: Shadow) -> dict[str, Any]:
    first_s, last_s = float(shadow.log.time_s[0]), float(shadow.log.time_s[-1])
    return {
        "from_s": first_s,
        "to_s": last_s,
        "from": clock(first_s),
        "to": clock(last_s),
        "seconds": last_s - first_s,
        "log_from_s": shadow.first_s,
        "log_to_s": shadow.last_s,
    }


def _too_little(comparison: Comparison) -> str:
    rows = int(comparison.known.any(1).sum())
    return (
        f"{rows} control intervals have a node whose cap was read back after the service had settled; a comparison "
        f"needs {MIN_ROWS}"
    )


def _coverage(shadow: Shadow, points: int = 480) -> dict[str, list]:
    """Share of nodes known over time."""
    step = max(len(shadow.log) // points, 1)
    return {"time_s": shadow.log.time_s[::step].tolist(), "known_frac": shadow.known.mean(1)[::step].tolist()}


def _predict(shadow: Shadow, windows: int, tell: Progress) -> dict[str, Any]:
    """The replay's part of the result, or why there is none."""
    nothing = {"prediction": None, "check": None, "check_series": None, "not_predicted": why_not(shadow)}
    if nothing["not_predicted"]:
        return nothing
    try:
        done = replay(shadow, windows, lambda label, share: tell(label, 0.05 + 0.9 * share))
    except FlyballError as error:
        return {**nothing, "not_predicted": f"the policy of the log cannot be run here: {error}"}
    return {
        "prediction": {
            "windows": windows,
            "replayed_s": done.replayed_s,
            "stretches": done.stretches,
            "changes": changes(done),
            "sensitivity": sensitivity(done, HEADLINE),
        },
        "check": {**done.check, "trust": trust(done)},
        "check_series": {name: values.tolist() for name, values in done.series.items()},
        "not_predicted": "",
    }


def trust(done: Replayed) -> dict[str, str]:
    """How far the plant is to be believed here: "close", "fair", "poor" or "unknown", by quantity."""
    power = _grade(done.check["power_w"], POWER_CLOSE_FRAC, POWER_FAIR_FRAC)
    out = {"power_w": power}
    for name in ("ttft_s", "itl_s"):
        grades = [_grade(s[name], LATENCY_CLOSE_FRAC, LATENCY_FAIR_FRAC) for s in done.check["services"]]
        out[name] = max(grades, key=GRADES.index)
    return out


GRADES = ("close", "fair", "unknown", "poor")
"""From good to bad."""


def _grade(check: dict[str, float] | None, close: float, fair: float) -> str:
    if check is None or not math.isfinite(check["error_frac"]):
        return "unknown"
    error = abs(check["error_frac"])
    return "close" if error <= close else "fair" if error <= fair else "poor"


def clean(value: Any) -> Any:
    """The same as plain JSON values: NaN and infinities become None, NumPy numbers Python's."""
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ── words ───────────────────────────────────────────────────────────────────────────────────────────────
def direction(change: dict[str, Any]) -> str:
    """ "more", "less" or "no clear change": what the draws of a change allow to say of one site."""
    low, high = change["range95"]
    if low is None or not math.isfinite(low):
        return "unknown"
    return "more" if low > 0 else "less" if high < 0 else "no clear change"


def headline(result: dict[str, Any]) -> str:
    """The whole report in a sentence or two."""
    seen = result["disagreement"]
    span = duration(result["range"]["seconds"])
    if seen is None:
        return f"The log of {span} holds too little to compare: {result['not_compared']}."
    said = (
        f"In {span} beside the incumbent, Flyball would have set {share(seen['differs_frac'])} of node-time differently"
    )
    if result["prediction"] is None:
        return f"{said}. What that would have changed cannot be predicted: {result['not_predicted']}."
    rows = {r["kpi"]: r for r in result["prediction"]["changes"]}
    change = rows[HEADLINE]["change"]
    words = {
        "more": f"replayed in the plant, that is worth {signed(change['mean'])} tokens per second and megawatt",
        "less": f"replayed in the plant, that costs {signed(change['mean'])} tokens per second and megawatt",
        "no clear change": "replayed in the plant, tokens per second and megawatt do not clearly change",
        "unknown": "replayed in the plant, tokens per second and megawatt cannot be told",
    }[direction(change)]
    interval = ""
    if direction(change) != "unknown":
        interval = (
            f" (95 % of the mean: {signed(change['ci95'][0])} to {signed(change['ci95'][1])}; over what is not known "
            f"of the site: {signed(change['range95'][0])} to {signed(change['range95'][1])})"
        )
    over = rows["budget_violation_ws"]
    a, b = over["incumbent"]["mean"], over["flyball"]["mean"]
    kept = (
        "no limit in force is exceeded by either"
        if a == b == 0
        else (f"limits in force are exceeded by {number(a)} W s under the incumbent and {number(b)} W s under Flyball")
    )
    return f"{said}; {words}{interval}, and {kept}."


def share(value: float | None) -> str:
    """A share in words."""
    if value is None:
        return "an unknown share"
    return "none" if value == 0 else "less than 1 %" if value < 0.01 else f"{100 * value:.0f} %"


def duration(seconds: float) -> str:
    """A length of time for people."""
    for unit_s, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.1f} {name}".replace(".0 ", " ")
    return f"{seconds:.0f} seconds"


TRUST_WORDS = {
    "close": "close to the log",
    "fair": "roughly right",
    "poor": "off: read the changes as directions, not as sizes",
    "unknown": "not checked: the log has no such telemetry",
}


def warnings(result: dict[str, Any]) -> list[str]:
    """What must be said before anything else."""
    quality, out = result["quality"], []
    if result["not_compared"]:
        out.append(f"Too little to compare: {result['not_compared']}.")
    if result["not_predicted"]:
        out.append(f"Nothing is predicted: {result['not_predicted']}.")
    if quality["coverage_frac"] < 0.95:
        out.append(
            f"The log covers {percent(quality['coverage_frac'], 0)} of its time: {quality['gap_count']} gaps, "
            f"{duration(quality['gap_s'])} in all. Nothing is said of them."
        )
    if quality["known_when_settled_frac"] < 0.9:
        out.append(f"{percent(quality['known_when_settled_frac'], 0)} of node-time is known; the rest is left out.")
    if quality["never_heard"]:
        out.append(f"Never heard: {listed(quality['never_heard'])}. They are left out and budgeted at their maximum.")
    if quality["fallback_frac"] > 0.01:
        out.append(
            f"In {percent(quality['fallback_frac'], 0)} of the time the fallback stood in for the policy; what is "
            "shown there is the fallback's."
        )
    poor = [k for k, v in ((result["check"] or {}).get("trust") or {}).items() if v == "poor"]
    if poor:
        names = {"power_w": "power", "ttft_s": "time to first token", "itl_s": "time between tokens"}
        out.append(
            f"The plant does not reproduce this site's {listed([names[p] for p in poor])}: read predicted changes as "
            "directions, not as sizes, and calibrate the plant to the site first."
        )
    if quality["backwards"] or quality["duplicates"]:
        out.append(
            f"The clock was irregular: {quality['backwards']} rows went back in time, "
            f"{quality['duplicates']} repeated one."
        )
    return out


def listed(names: list[str], most: int = 8) -> str:
    """Names in one line, the first few of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def change_text(row: dict[str, Any]) -> str:
    """A change with its interval, in the KPI's own terms."""
    c = row["change"]
    if c["mean"] is None or not math.isfinite(c["mean"]):
        return "–"
    show = _shower(row)
    return f"{show(c['mean'])} [{show(c['ci95'][0])}, {show(c['ci95'][1])}]"


def spread_text(row: dict[str, Any]) -> str:
    """The range of 95 % of a change's draws."""
    (low, high), show = row["change"]["range95"], _shower(row)
    return f"{show(low)} to {show(high)}" if low is not None and math.isfinite(low) else "–"


def _shower(row: dict[str, Any]) -> Callable[[float | None], str]:
    if row["is_relative"]:
        return signed
    if row["kpi"].endswith("_frac"):
        return lambda v: "–" if v is None else f"{100 * v:+.2f} pp".replace("-", "−")
    return lambda v: "–" if v is None else ("+" if v > 0 else "−" if v < 0 else "") + number(abs(v))


def value_text(row: dict[str, Any], side: str) -> str:
    """A KPI's mean under one side."""
    value = row[side]["mean"]
    return percent(value, 2) if row["kpi"].endswith("_frac") else number(value, 4)


def tiles(result: dict[str, Any]) -> list[dict[str, str]]:
    """The four figures to see first."""
    out = []
    if result["prediction"] is not None:
        rows = {r["kpi"]: r for r in result["prediction"]["changes"]}
        for kpi, unit in (
            (HEADLINE, "tokens/s per MW"),
            ("ttft_p99_s", "TTFT, 99th percentile"),
            ("itl_p99_s", "ITL, 99th percentile"),
        ):
            c, unit_of = rows[kpi]["change"], UNITS.get(kpi, "")
            levels = " → ".join(
                f"{number(rows[kpi][side]['mean'])} {unit_of}".strip() for side in ("incumbent", "flyball")
            )
            text = f"predicted: {levels}; 95 % of draws: {signed(c['range95'][0])} to {signed(c['range95'][1])}"
            out.append({"value": signed(c["mean"]), "unit": unit, "text": text})
        over = rows["budget_violation_ws"]
        theirs, ours = (number(over[side]["mean"]) for side in ("incumbent", "flyball"))
        out.append(
            {
                "value": change_text(over).split(" [")[0],
                "unit": "W s above limits in force",
                "text": f"{theirs} under the incumbent, {ours} under Flyball",
            }
        )
    elif result["disagreement"] is not None:
        seen = result["disagreement"]
        for key, unit in (
            ("differs_frac", "of node-time differs"),
            ("lower_frac", "capped lower"),
            ("higher_frac", "capped higher"),
        ):
            out.append({"value": share(seen[key]), "unit": unit, "text": "of the time of known nodes"})
        out.append({"value": "–", "unit": "predicted change", "text": "not predicted from this log"})
    return out


# ── the page ────────────────────────────────────────────────────────────────────────────────────────────
def charts(result: dict[str, Any]) -> dict[str, str]:
    """Every chart as an <svg> element, by name."""
    series, out = result["series"], {}
    out["power"] = svg(
        shadow_charts.power_chart(series), 3.6, "Power that either side allows, metered power and the limit"
    )
    if result["disagreement"] is not None:
        out["caps"] = svg(shadow_charts.caps_chart(series), 2.9, "Mean cap per GPU by stage under either side")
        nodes = len(result["heat"]["nodes"])
        out["heat"] = svg(
            shadow_charts.heat_chart(result["heat"]), 1.4 + 0.17 * nodes, "Difference of caps by node and time"
        )
        out["reasons"] = svg(
            shadow_charts.reasons_chart(series, result["site"]["nodes"]), 3.2, "Nodes that differ, by reason, over time"
        )
    if result["prediction"] is not None:
        rows = [r for r in result["prediction"]["changes"] if r["kpi"] in RELATIVE and r["change"]["mean"] is not None]
        out["changes"] = svg(shadow_charts.change_chart(rows, LABELS), 0.9 + 0.36 * len(rows), "Predicted changes")
        head = next(r for r in result["prediction"]["changes"] if r["kpi"] == HEADLINE)
        out["draws"] = svg(shadow_charts.draws_chart(head), 2.2, "Change of tokens per second and MW in every draw")
        names = [s["name"] for s in result["site"]["services"]]
        out["check"] = svg(
            shadow_charts.check_chart(result["check_series"], names),
            2.3 * (1 + len(names)),
            "The log against its replay",
        )
    coverage = result["coverage"]
    out["coverage"] = svg(
        shadow_charts.coverage_chart(np.array(coverage["time_s"]), np.array(coverage["known_frac"])), 1.8, "Nodes known"
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
