"""The results page as Markdown: a pure function of one evaluation's result."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...cli import clean
from ...envs.page_text import markdown_table
from ..charts import save_figure
from ..contenders import CLAIRVOYANT
from ..rows import ATTAINMENT, HEADLINE, MIN_GAP_FRAC, SUPERIOR
from .forest import forest, height_in, place_of, shown

Row = dict[str, Any]

NONE = "–"


def write_page(result: dict[str, Any], path: Path) -> Path:
    """Write a page, and beside it a folder of its name with the rows it was made from and its figure.

    Args:
        result: Of `evaluate`, or the rows kept beside an earlier page.
        path: The page, FILE.md.
    """
    result = {k: v for k, v in clean(result).items() if k != "page"}
    path = Path(path)
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "rows.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    if shown(result["rows"]):
        whole = [r for r in result["rows"] if not r["ablation"]]
        save_figure(forest(whole), height_in(whole), folder / "forest.png")
    _write(path, page(result, folder.name))
    return path


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def page(result: dict[str, Any], folder: str) -> str:
    """The page's text.

    Args:
        result: As kept in rows.json: numbers, and null for what is not one.
        folder: Where rows and figure stand, relative to the page.
    """
    rows: list[Row] = result["rows"]
    windows = sorted({r["seeds"] for r in rows})
    parts = [
        "# Results",
        f"Every policy ran the same {' or '.join(map(str, windows))} windows of each scenario, through the same "
        "arbiter, on seeds that neither tuning nor training used. All of it was measured in the plant, not on GPUs.",
        f"Made by\n\n```\n{result['command']} --page {folder}.md\n```",
        f"with {_made_with(result)}. The rows stand in [{folder}/rows.json]({folder}/rows.json); this page is made of "
        "them: `python -m flyball.experiments.results`.",
        _overview(rows),
    ]
    if shown(rows):
        parts.append(f"![Paired differences in goodput to the best baseline]({folder}/forest.png)")
    parts += [
        "## By scenario",
        *(_table(group) for group in _by_place([r for r in rows if not r["ablation"]])),
        _notes(rows),
    ]
    for title, text in (
        ("Across families", _matrix(rows)),
        ("Without one bid channel", _ablations(rows)),
        ("Worst windows", _worst(rows)),
        ("Where it does not win, and why", _not_won(rows)),
        ("Budgets", _budgets(result["budgets"])),
    ):
        if text:
            parts += [f"## {title}", text]
    return "\n\n".join(parts) + "\n"


def _made_with(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{versions}; code `{result['code']}`"


def _subjects(rows: Sequence[Row]) -> list[Row]:
    """Rows of what is on trial: policy files where there are any, else everything but the clairvoyant."""
    learned = [r for r in rows if r["is_learned"] and not r["ablation"]]
    others = [r for r in rows if r["verdict"] and r["policy"] != CLAIRVOYANT]
    return learned or others


def _overview(rows: Sequence[Row]) -> str:
    """One line per policy on trial: verdicts counted."""
    lines = []
    for name in dict.fromkeys(r["policy"] for r in _subjects(rows)):
        mine = [r for r in _subjects(rows) if r["policy"] == name]
        judged = [r for r in mine if r["verdict"]]
        counts = {v: sum(r["verdict"] == v for r in judged) for v in dict.fromkeys(r["verdict"] for r in judged)}
        if not judged:
            continue
        behind = sum((r["vs_strongest_baseline"]["diff"] or 0.0) < 0 for r in judged)
        words = ", ".join(f"{verdict} in {count}" for verdict, count in sorted(counts.items(), key=lambda c: -c[1]))
        members = f" ({len(mine[0]['members'])} training seeds)" if len(mine[0]["members"]) > 1 else ""
        lines.append(
            f"- **{name}**{members}, of {len(judged)} comparisons with the best baseline: {words}; the strongest "
            f"baseline of the very windows reached more in {behind}."
        )
    return "\n".join(lines)


def _by_place(rows: Sequence[Row]) -> list[list[Row]]:
    places = dict.fromkeys((r["scenario"], r["nodes"]) for r in rows)
    return [[r for r in rows if (r["scenario"], r["nodes"]) == place] for place in places]


def _table(rows: Sequence[Row]) -> str:
    """One scenario."""
    first = rows[0]
    body = []
    for r in rows:
        k, vs, points = r["kpis"], r["vs_best_baseline"], r["attainment_vs_best_baseline"]
        is_base = vs["baseline"] == r["policy"]
        body.append(
            [
                f"**{r['policy']}**" if r["is_learned"] else r["policy"],
                _number(k[HEADLINE]["mean"]),
                "best baseline" if is_base else _with_interval(vs["diff"], vs["ci95"], _percent),
                NONE if is_base else _with_interval(points["diff"], points["ci95"], _points),
                NONE if is_base or not r["verdict"] else f"{r['verdict']}, p {_p(r['tests']['goodput']['p_holm'])}",
                _headroom(r),
                f"{k['ttft_p99_s']['mean']:.2f}" if k["ttft_p99_s"]["mean"] is not None else NONE,
                f"{1e3 * k['itl_p99_s']['mean']:.0f}" if k["itl_p99_s"]["mean"] is not None else NONE,
                f"{k['budget_violation_ws']['worst']:g}",
            ]
        )
    head = [
        "policy", "goodput, tok/s per MW", "difference", "SLO attainment, points", "verdict", "headroom",
        "TTFT p99, s", "ITL p99, ms", "violation, W s",
    ]  # fmt: skip
    return f"### {first['scenario']}, {first['nodes']} nodes\n\n{markdown_table(head, body)}"


def _headroom(row: Row) -> str:
    if not row["headroom"]:
        return NONE
    if row["recovered_headroom"] is None:
        return f"gap {_percent(row['headroom']['gap_frac'], '')} only"
    return _with_interval(row["recovered_headroom"], row["headroom"]["ci95"], _whole_percent)


def _notes(rows: Sequence[Row]) -> str:
    """How to read the tables."""
    lines = ["Means over windows; brackets are 95 % bootstrap intervals of paired differences."]
    methods = sorted({r["tests"]["method"] for r in rows if r["tests"]})
    lines += [
        f"Verdicts: {m}. Superior: more goodput at 5 %. Superior and non-inferior policies lose no more than 0.5 point "
        "of attainment, non-inferior ones no more than 0.5 % of goodput."
        for m in methods
    ]
    if any(r["headroom"] for r in rows):
        lines.append(
            "Headroom: share of the way from the best baseline to the best that the clairvoyant or any policy of the "
            f"table reached in each window, where that is at least {_whole_percent(MIN_GAP_FRAC)} away. Nothing "
            "proves that it cannot be surpassed."
        )
    lines += _overtaken(rows)
    if any(r["load"] != "generated" for r in rows):
        lines.append("Windows of a load file are cut at seeded places and may share some of its requests.")
    return " ".join(lines)


def _overtaken(rows: Sequence[Row]) -> list[str]:
    """Where another baseline did better on these windows than the one that validation windows had chosen."""
    found = []
    has_sizes = len({r["nodes"] for r in rows}) > 1
    for group in _by_place(rows):
        name = group[0]["vs_strongest_baseline"]["baseline"]
        row = next(r for r in group if r["policy"] == name)
        if name != row["vs_best_baseline"]["baseline"]:
            found.append(f"{name} in {place_of(row, has_sizes)} ({_percent(row['vs_best_baseline']['diff'])})")
    if not found:
        return []
    return [
        "The best baseline is the one that validation windows chose; on these windows another reached more: "
        f"{', '.join(found)}."
    ]


def _matrix(rows: Sequence[Row]) -> str:
    """Policy files by scenario; families they were not trained on are marked."""
    mine = [r for r in rows if r["is_learned"] and not r["ablation"] and r["trained_on"] is not None]
    groups = _by_place(rows)
    if not mine or len(groups) < 2:
        return ""
    has_sizes = len({r["nodes"] for r in rows}) > 1
    body = []
    for name in dict.fromkeys(r["policy"] for r in mine):
        cells = [name]
        for group in groups:
            row = next((r for r in group if r["policy"] == name), None)
            if row is None or row["vs_best_baseline"]["diff"] is None:
                cells.append(NONE)
                continue
            unseen = "" if row["family"] in row["trained_on"] else " ◇"
            cells.append(_percent(row["vs_best_baseline"]["diff"]) + unseen)
        body.append(cells)
    table = markdown_table(["policy", *(place_of(group[0], has_sizes) for group in groups)], body)
    return f"{table}\n\nGoodput against the best baseline; ◇ marks families that the policy was not trained on."


def _ablations(rows: Sequence[Row]) -> str:
    """What each bid channel is worth."""
    body = []
    for r in rows:
        if not r["ablation"]:
            continue
        whole = r["policy"].removesuffix(f" without {r['ablation']}")
        full = next(o for o in rows if (o["policy"], o["scenario"], o["nodes"]) == (whole, r["scenario"], r["nodes"]))
        mine, theirs = r["kpis"][HEADLINE]["mean"], full["kpis"][HEADLINE]["mean"]
        change = _percent(mine / theirs - 1.0) if theirs else NONE
        vs = r["vs_best_baseline"]
        body.append(
            [r["scenario"], str(r["nodes"]), whole, r["ablation"], change,
             _with_interval(vs["diff"], vs["ci95"], _percent)]
        )  # fmt: skip
    head = ["scenario", "nodes", "policy", "channel given back", "change", "left over the best baseline"]
    return markdown_table(head, body) if body else ""


def _worst(rows: Sequence[Row]) -> str:
    """Tails of what is on trial, beside the best baseline's."""
    body = []
    for r in _subjects(rows):
        base = _baseline_of(r, rows)
        tail, theirs, worst = r["tail"], base["tail"], r["worst_window"]
        where = NONE if worst["seed"] is None else f"{_percent(worst['diff'])} (seed {worst['seed']})"
        body.append(
            [
                r["scenario"],
                str(r["nodes"]),
                r["policy"],
                where,
                f"{_number(tail[HEADLINE])} ({_number(theirs[HEADLINE])})",
                f"{_share(tail[ATTAINMENT])} ({_share(theirs[ATTAINMENT])})",
                f"{_seconds(tail['ttft_p99_s'])} ({_seconds(theirs['ttft_p99_s'])})",
            ]
        )
    head = [
        "scenario", "nodes", "policy", "worst window against the baseline", "goodput in the worst tenth",
        "attainment in the worst tenth", "TTFT p99 in the worst tenth, s",
    ]  # fmt: skip
    return markdown_table(head, body) + "\n\nIn brackets: the best baseline's." if body else ""


def _not_won(rows: Sequence[Row]) -> str:
    """Every comparison that is not superior, or in which a baseline reached more, with the numbers that tell why."""
    lines = []
    for r in _subjects(rows):
        hard = r["vs_strongest_baseline"]
        is_beaten = hard["baseline"] != r["policy"] and (hard["diff"] or 0.0) < 0
        if r["verdict"] is None or (r["verdict"] == SUPERIOR and not is_beaten):
            continue
        vs, points, k = r["vs_best_baseline"], r["attainment_vs_best_baseline"], r["kpis"]
        base = _baseline_of(r, rows)["kpis"]
        facts = [f"goodput {_with_interval(vs['diff'], vs['ci95'], _percent)} against {vs['baseline']}"]
        facts.append(f"attainment {_with_interval(points['diff'], points['ci95'], _points)} points")
        for kpi, words, form in (
            ("ttft_p99_s", "TTFT p99", _seconds),
            ("itl_p99_s", "ITL p99", _seconds),
            ("lost_requests", "requests lost per window", _number),
            ("energy_j", "energy per window in J", _number),
        ):
            facts.append(f"{words} {form(k[kpi]['mean'])} (baseline {form(base[kpi]['mean'])})")
        if is_beaten and hard["baseline"] != vs["baseline"]:
            ahead = _with_interval(hard["diff"], hard["ci95"], _percent)
            facts.append(f"goodput {ahead} against {hard['baseline']}, the strongest baseline of these windows")
        if r["headroom"]:
            facts.append(f"the reference is {_percent(r['headroom']['gap_frac'], '')} away")
        if k["budget_violation_ws"]["worst"] > 0:
            facts.append(f"a limit was exceeded by {k['budget_violation_ws']['worst']:g} W s")
        lines.append(f"- {r['policy']} in {r['scenario']} at {r['nodes']} nodes, {r['verdict']}: {'; '.join(facts)}.")
    return "\n".join(lines)


def _budgets(budgets: dict[str, Any]) -> str:
    """What tuning and training had."""
    parts = []
    if budgets["tuning"]:
        body = [[t["policy"], t["family"], _number(t["cpu_s"]), _number(t["candidates"])] for t in budgets["tuning"]]
        parts.append(markdown_table(["baseline", "family", "CPU s of tuning", "candidates"], body))
    if budgets["training"]:
        body = [
            [t["policy"], f"`{t['sha256']}`", str(t["algo"] or NONE), _number(t["cpu_s"]), _number(t["steps"])]
            for t in budgets["training"]
        ]
        parts.append(markdown_table(["policy", "file", "by", "CPU s of training", "environment steps"], body))
        if any(t["cpu_s"] is None for t in budgets["training"]):
            parts.append(f"{NONE}: the policy's card does not record it.")
    return "\n\n".join(parts)


def _baseline_of(row: Row, rows: Sequence[Row]) -> Row:
    wanted = (row["scenario"], row["nodes"], row["vs_best_baseline"]["baseline"])
    return next(r for r in rows if (r["scenario"], r["nodes"], r["policy"]) == wanted)


# ── numbers in words ─────────────────────────────────────────────────────────────────────────────────────
def _percent(value: float | None, sign: str = "+") -> str:
    return NONE if value is None else f"{value:{sign}.1%}".replace("%", " %")


def _whole_percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g} s"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else "< 0.001"


def _with_interval(value: float | None, ci: Sequence[float | None] | None, form: Callable[[float], str]) -> str:
    if value is None or ci is None or ci[0] is None or ci[1] is None:
        return NONE
    return f"{form(value)} [{form(ci[0])}, {form(ci[1])}]"
