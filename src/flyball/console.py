"""What people see on a terminal: progress bars and tables, on stderr and stdout."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Bar = Callable[[str, float], None]
"""Called with a label (empty keeps the last one) and the share done."""


PIPE_WIDTH = 160
"""Columns of a table that no terminal shows: a file or a pipe need not fold it."""


@contextmanager
def progress_bar(title: str, is_quiet: bool) -> Iterator[Bar]:
    """A bar on stderr; plain lines where stderr is no terminal, and nothing with --json."""
    if is_quiet:
        yield lambda label, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        last = [""]

        def line(label: str, share: float) -> None:
            if label and label != last[0]:
                last[0] = label
                print(f"[{share:4.0%}] {label}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=1.0)

        def update(label: str, share: float) -> None:
            progress.update(task, completed=share, **({"description": label} if label else {}))

        yield update


def table(title: str, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    from rich.console import Console
    from rich.table import Table

    out = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in columns:
        numeric = rows and isinstance(rows[0].get(name), int | float)
        out.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        out.add_row(*(_cell(row.get(name)) for name in columns))
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    console.print(out)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def show_kpis(result: dict[str, Any]) -> None:
    """One episode."""
    scale = result["load_scale"]
    load = result["load"] if scale == 1 else f"{result['load']} x {scale:.1f}"
    rows = [{"KPI": k, "value": v} for k, v in result["kpis"].items()]
    table(
        f"{result['scenario']} / {result['policy']} / seed {result['seed']} / load {load}",
        ["KPI", "value"],
        rows,
    )


def show_evaluation(result: dict[str, Any]) -> None:
    """The honest table: means, paired differences with intervals, and verdicts."""
    rows = []
    has_sizes = len({r["nodes"] for r in result["rows"] if "nodes" in r}) > 1
    has_headroom = any(r.get("headroom") for r in result["rows"])
    for r in result["rows"]:
        k, vs = r["kpis"], r["vs_best_baseline"]
        low, high = vs["ci95"]
        is_base = vs["baseline"] == r["policy"]
        rows.append(
            {
                "scenario": r["scenario"],
                **({"nodes": r["nodes"]} if has_sizes else {}),
                "policy": r["policy"],
                "goodput tok/s/MW": k["goodput_tok_s_per_mw"]["mean"],
                "vs best baseline": "baseline" if is_base else f"{vs['diff']:+.1%} [{low:+.1%}, {high:+.1%}]",
                "verdict": None if is_base else r.get("verdict"),
                **({"headroom": _percent(r["recovered_headroom"])} if has_headroom else {}),
                "SLO met": k["slo_attainment_frac"]["mean"],
                "TTFT p99 s": k["ttft_p99_s"]["mean"],
                "over W s": k["budget_violation_ws"]["worst"],
            }
        )
    if not rows:
        print("no rows")
        return
    seeds = result["rows"][0]["seeds"]
    table(f"Means over {seeds} windows; 95 % intervals of paired differences", list(rows[0]), rows)
    methods = {r["tests"]["method"] for r in result["rows"] if r.get("tests")}
    for method in methods:
        print(f"Verdicts at 5 %, margins 0.5 % of goodput and 0.5 point of attainment. {method}.")
    if result.get("page"):
        print(f"Page: {result['page']}")


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0%}"


def show_leaderboard(result: dict[str, Any]) -> None:
    """Scores of submissions, family by family, and overall."""
    rows = []
    for r in result["rows"]:
        low, high = r["ci95"] or (None, None)
        rows.append(
            {
                "name": r["name"],
                "track": r["track"],
                "scenario": r["scenario"],
                "score": r["reason"] if r["score"] is None else f"{r['score']:.1f} [{low:.1f}, {high:.1f}]",
                "goodput tok/s/MW": r["goodput"],
                "static": r["static"],
                "bound": r["bound"],
            }
        )
    table(f"Scores over {result['seeds']} validation windows: static table 0, bound 100", list(rows[0]), rows)
    table("Overall", ["rank", "name", "track", "score", "families"], result["overall"])
    print(f"Bound: {result['reference']}.")


def show_sweep(result: dict[str, Any]) -> None:
    """Trials, the spread over seeds, and the best."""
    rows = [
        {
            "trial": row["trial"],
            "gain": _signed(row["gain"]),
            "passed gate": row["error"] or ("yes" if row["passed"] else "no"),
            "CPU s": row["cpu_s"],
            "restarts": row["restarts"],
        }
        for row in result["trials"]
    ]
    table(f"Goodput over {result['base']} on the gate's validation windows", list(rows[0]), rows)
    spread = [
        {
            "configuration": row["configuration"],
            "passed": f"{row['passed']} of {row['seeds']}",
            "mean gain": _signed(row["mean_gain"]),
            "from": _signed(row["least_gain"]),
            "to": _signed(row["largest_gain"]),
        }
        for row in result["configurations"]
    ]
    table("Over seeds", list(spread[0]), spread)
    if result["best"] is None:
        print("No trial passed its gate: the baseline stays.")
        return
    print(f"Best: {result['best']}, {result['onnx']}")
    print("Chosen on these windows, its gain is biased upwards; judge it on others:")
    print(f"  flyball evaluate --suite standard --policy {result['onnx']}")


def _signed(value: float | None) -> str | None:
    return None if value is None else f"{value:+.2%}"


def show_bench(result: dict[str, Any]) -> None:
    """Figures of a benchmark."""
    table(
        f"bench {result['bench']}",
        ["figure", "value"],
        [{"figure": k, "value": v} for k, v in result["figures"].items()],
    )
    machine = result["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}")


def show_demo(result: dict[str, Any]) -> None:
    """The demo's last words."""
    if "evaluation" in result:
        show_evaluation(result["evaluation"])
    if "events" in result:
        print("\nLive, on emulated GPUs:")
        for event in result["events"]:
            print(f"  {event['t_s']:6.1f} s  {event['text']}")
        k = result["kpis"]
        print(
            f"  above a limit in force: {k['budget_violation_ws']:g} W s; let through by the grace: "
            f"{k['overshoot_ws'] / 1e3:.1f} kW s in {k['overshoot_s']:.1f} s"
        )
    print(f"\nReport: {result['report']}")
