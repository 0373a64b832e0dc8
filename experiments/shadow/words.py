"""A shadow report in words: its verdict, its warnings, its four figures, and numbers as people read them."""

import math
from collections.abc import Callable
from typing import Any

from ..report import number, percent, signed
from .changes import HEADLINE

UNITS = {"mean_power_w": "W", "ttft_p50_s": "s", "ttft_p99_s": "s", "itl_p99_s": "s"}
"""Units of figures whose label does not say them."""

TRUST_WORDS = {
    "close": "close to the log",
    "fair": "roughly right",
    "poor": "off: read the changes as directions, not as sizes",
    "unknown": "not checked: the log has no such telemetry",
}


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


def direction(change: dict[str, Any]) -> str:
    """ "more", "less" or "no clear change": what the draws of a change allow to say of one site."""
    low, high = change["range95"]
    if low is None or not math.isfinite(low):
        return "unknown"
    return "more" if low > 0 else "less" if high < 0 else "no clear change"


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
