"""`flyball shadow report`: what was done, what would have been done, and what that would have changed.

One HTML file that needs nothing else, and a JSON file beside it with the same numbers.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ... import __version__
from ...cli import clean
from ...fleet.errors import BadInput, FlyballError
from ..story import write_whole
from .changes import HEADLINE, changes, sensitivity
from .check import trust
from .compare import Comparison, clock
from .log import Shadow, data_quality, read_shadow
from .page import render
from .replay import replay
from .stretch import why_not
from .words import headline

FORMAT = "flyball-shadow-1"

MIN_ROWS = 6
"""Fewer settled control intervals than this are not compared."""

WINDOWS = 24

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
        "check": {**done.check, "trust": trust(done.check)},
        "check_series": {name: values.tolist() for name, values in done.series.items()},
        "not_predicted": "",
    }
