"""The report of a demo: one HTML file that needs nothing else, drawn from a `Story`.

python -m flyball.experiments.report out/demo                          # draws the report of out/demo anew
python -m flyball.experiments.report out/demo --picture docs/demo.png  # and the figure of the README
"""

import argparse
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..fleet.errors import BadInput
from . import charts
from .evaluate import HEADLINE
from .story import LEARNED, Story, load_story, write_whole

REPORT, PICTURE = "report.html", "picture.png"
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        title: What it shows.
        text: What to see in it.
        svg: The chart, as an <svg> element; empty for none.
        name: Of the template block that follows the chart; empty for none.
    """

    title: str
    text: str
    svg: str = ""
    name: str = ""


def write_report(path: Path, story: Story) -> None:
    """Write the report; readers see the old file or the whole new one.

    Args:
        path: Where to, ends in .html.
        story: What is told.
    """
    write_whole(Path(path), render(story))


def write_picture(path: Path, story: Story) -> None:
    """Write the figure of the README: power against the limit, and the tokens that it bought.

    Args:
        path: Where to; the suffix (.png or .svg) says how.
        story: What is told.
    """
    charts.save_figure(charts.picture(story), 5.6, Path(path))


def render(story: Story) -> str:
    """The report as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, percent=percent, signed=signed, tied=tied)
    return environment.get_template("report.html.j2").render(
        story=story,
        headline=headline(story),
        tiles=tiles(story),
        sections=[s for make in SECTIONS if (s := make(story)) is not None],
        rows=table_rows(story),
        warnings=warnings(story),
        load=load_words(story),
    )


# ── words ───────────────────────────────────────────────────────────────────────────────────────────────
def number(value: float | None, digits: int = 3) -> str:
    """A number for people: thousands grouped, `digits` significant ones, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{decimals}f}"


def percent(value: float | None, decimals: int = 1) -> str:
    """A share as a percentage."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{decimals}f} %"


def signed(value: float | None) -> str:
    """A relative difference with its sign."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:+.1f} %".replace("-", "−")


UNIT_AHEAD = re.compile(r"(?<=\d) (?=(?:%|(?:s|ms|min|W|kW|MW|pp)\b))")


def tied(text: str) -> str:
    """A text in which no line ends between a number and its unit."""
    return UNIT_AHEAD.sub("\u00a0", text)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"


def verdict(row: dict[str, Any]) -> str:
    """What a paired difference shows: "baseline", "better", "worse" or "no clear difference"."""
    vs = row["vs_best_baseline"]
    if vs["baseline"] == row["policy"]:
        return "baseline"
    low, high = vs["ci95"]
    return "better" if low > 0 else "worse" if high < 0 else "no clear difference"


VERDICTS = {"better": "wins in", "no clear difference": "shows no clear difference in", "worse": "loses in"}
"""What the table shows of the policy on show, with the words for it."""


def _mine(story: Story) -> list[dict[str, Any]]:
    return [r for r in story.evaluation["rows"] if r["policy"] == story.policy]


def _row(story: Story, policy: str) -> dict[str, Any]:
    """The row of one policy in the replayed scenario, or in the first scenario that there is."""
    rows = [r for r in story.evaluation["rows"] if r["policy"] == policy]
    return next((r for r in rows if r["scenario"] == story.scenario), rows[0])


def shown_name(story: Story, policy: str) -> str:
    """A policy's name in tables: files are known by what they are."""
    return story.label if story.is_learned and policy == story.policy else policy


def _worst(rows: list[dict[str, Any]], kpi: str) -> float:
    values = [r["kpis"][kpi]["worst"] for r in rows]
    return max((v for v in values if v is not None and math.isfinite(v)), default=math.nan)


def headline(story: Story) -> str:
    """The whole story in one sentence or two."""
    rows = _mine(story)
    seen = [verdict(r) for r in rows]
    count = len(rows)
    all_of = f"all {count} scenarios" if count > 1 else f"the scenario {rows[0]['scenario']}"
    kept = _worst(rows, "budget_violation_ws") == 0
    limits = "No power limit in force was ever exceeded." if kept else "Power limits in force were exceeded."
    if not story.is_learned:
        return (
            f"On load that it was not tuned on, {story.policy}, {best_words(story)}, governs {story.site.gpus} GPUs. "
            f"{limits}"
        )
    better, worse = seen.count("better"), seen.count("worse")
    gains = [100 * r["vs_best_baseline"]["diff"] for r in rows if verdict(r) == "better"]
    span = f"{min(gains):.1f} to {max(gains):.1f} %" if len(gains) > 1 else "".join(f"{g:.1f} %" for g in gains)
    served = f"the learned policy served {span} more tokens per megawatt than {best_words(story)}"
    if better == count:
        said = f"{served}, in {all_of}"
    elif better:
        rest = [f"fewer in {worse}"] if worse else []
        rest += [f"no clear difference in {count - better - worse}"] if count - better - worse else []
        said = f"{served} in {better} of {count} scenarios, {', '.join(rest)}"
    elif worse == count:
        said = f"the learned policy did worse than {best_words(story)} in {all_of}: keep the baseline"
    else:
        said = f"the learned policy did not clearly beat {best_words(story)} in any scenario: keep the baseline"
    return f"On load that it had never seen, {said}. {limits}"


def best_words(story: Story) -> str:
    """What the best baseline is: only a tuned one is called so."""
    return "the best tuned baseline" if story.made["is_tuned"] else "the best baseline (not tuned)"


def warnings(story: Story) -> list[str]:
    """What must be said before anything else."""
    out = [story.note] if story.note else []
    run = (story.card or {}).get("run") or {}
    if run.get("passed") is False:
        gain = run.get("validation_gain")
        out.append(
            f"This policy failed its gate: on validation windows it scored {signed(gain)} against the baseline that it "
            "corrects, so it would not be shipped. It is shown as it is."
        )
    stronger = [
        f"{r['policy']} in {r['scenario']} ({signed(r['vs_best_baseline']['diff'])})"
        for r in story.evaluation["rows"]
        if r["policy"] != story.policy and verdict(r) == "better"
    ]
    if stronger:
        out.append(
            "On this load another baseline did better than the one that was chosen on validation windows and that all "
            f"differences refer to: {', '.join(stronger)}."
        )
    if _worst(story.evaluation["rows"], "budget_violation_ws") > 0:
        out.append(
            "A power limit in force was exceeded. That must never happen: please report it, with the hashes below."
        )
    return out


def load_words(story: Story) -> str:
    """Where the load came from."""
    if story.load == "generated":
        return "generated from published statistics"
    factor = "as it is" if story.load_scale == 1 else f"superposed {number(story.load_scale)} times with time shifts"
    return f"{story.load}, {factor}"


def tiles(story: Story) -> list[dict[str, str]]:
    """The four figures at the top."""
    mine, best = _row(story, story.policy), _row(story, story.best_baseline)
    vs, slo = mine["vs_best_baseline"], mine["kpis"]["slo_attainment_frac"]
    rows, site = _mine(story), story.site
    low, high = vs["ci95"]
    compared = f"{signed(vs['diff'])} [{signed(low)}, {signed(high)}] against {story.best_baseline}, "
    compared += best_words(story)
    ticks = site.nodes * (story.seconds - story.warmup_s) / site.tick_s
    refused = mine["kpis"]["interventions"]["mean"] / ticks
    found = charts.refusals(story.replay(LEARNED))
    main = f"most often because {charts.REASON_WORDS[next(iter(found))]}" if found else ""
    goodput = mine["kpis"][HEADLINE]
    overshoot = number(_worst(rows, "overshoot_ws") / 1e3)
    return [
        {
            "value": number(goodput["mean"] / 1e6),
            "unit": "million tokens/s per MW",
            "text": compared if mine is not best else best_words(story),
        },
        {
            "value": percent(slo["mean"]),
            "unit": "of requests met both latency targets",
            "text": f"{story.best_baseline}: {percent(best['kpis']['slo_attainment_frac']['mean'])}; "
            f"worst of {mine['seeds']} windows: {percent(slo['worst'])}",
        },
        {
            "value": number(_worst(rows, "budget_violation_ws")),
            "unit": "watt-seconds above a limit in force",
            "text": f"in the worst of {sum(r['seeds'] for r in rows)} windows. A cut without notice is in force after "
            f"a grace of {site.grace_s:g} s; what that let through: at most {overshoot} kW s, "
            f"breakers tripped: {number(_worst(rows, 'breaker_trips'))}",
        },
        {
            "value": percent(refused, 0),
            "unit": "of node commands were not what the policy bid",
            "text": f"the arbiter held them back or changed them, {main}" if main else "the arbiter granted every bid",
        },
    ]


def table_rows(story: Story) -> list[dict[str, Any]]:
    """The honest table, scenario by scenario."""
    out: list[dict[str, Any]] = []
    for r in story.evaluation["rows"]:
        k = r["kpis"]
        out.append(
            {
                "scenario": r["scenario"],
                "policy": shown_name(story, r["policy"]),
                "is_shown": r["policy"] == story.policy,
                "verdict": verdict(r),
                "goodput": k[HEADLINE],
                "vs": r["vs_best_baseline"],
                "slo": k["slo_attainment_frac"],
                "violation": k["budget_violation_ws"]["worst"],
                "overshoot": k["overshoot_ws"]["worst"],
                "is_first": not out or out[-1]["scenario"] != r["scenario"],
                "rows": sum(o["scenario"] == r["scenario"] for o in story.evaluation["rows"]),
            }
        )
    return out


# ── sections ────────────────────────────────────────────────────────────────────────────────────────────
def _power(story: Story) -> Section:
    mine = story.replay(LEARNED)
    cuts = [
        f"−{100 * (1 - c.limit_frac):.0f} % at {clock(c.start_s)} "
        + (f"announced {c.notice_s:.0f} s ahead" if c.notice_s else "without notice")
        for c in story.cuts
    ]
    margin_w = float(np.min(mine.columns["in_force_w"] - mine.columns["possible_w"]))
    kept = (
        f"it stayed at least {margin_w / 1e3:.1f} kW below the limit in force"
        if margin_w >= 0
        else (f"it EXCEEDED the limit in force by up to {-margin_w / 1e3:.1f} kW")
    )
    text = (
        f"One episode of {story.scenario} under the {story.label}. The orange line is the most that the commands in "
        f"force allow the site to draw, whatever the load does: {kept}. A cut with notice is met before it starts "
        f"(orange shade: the notice); one without is in force {story.site.grace_s:g} s later."
    )
    text += f" Power is cut where grey: {'; '.join(cuts)}." if cuts else ""
    alt = f"Site power, limits and possible draw over time; {kept}."
    return Section("Power against the limit", text, charts.svg(charts.power_chart(story), 3.6, alt))


def _tokens(story: Story) -> Section:
    smooth_s = charts.SMOOTH_STEPS * story.site.control_s
    text = (
        "The same episode under every policy. Good tokens belong to requests that met both latency targets; spoilt "
        "ones were rejected, lost or late. Rates are per megawatt of the site's nominal limit, "
        f"{smooth_s:g}-s means."
    )
    totals = ", ".join(f"{charts._name(r)} {number(r.kpis[HEADLINE] / 1e6)}" for r in story.replays)
    alt = f"Good and spoilt tokens per second and MW over time; means of the episode in Mtok/s per MW: {totals}."
    text += f" In this episode (Mtok/s per MW): {totals}."
    return Section("What the watts bought", text, charts.svg(charts.tokens_chart(story), 4.6, alt))


def _latency(story: Story) -> Section:
    text = (
        "Time to first token and time between tokens, mean of the requests of each interval, against the targets. "
        "Above the line requests are late; their tokens count as spoilt."
    )
    height = 2.2 + 1.6 * len(story.site.services)
    drawn = charts.svg(charts.latency_chart(story), height, "TTFT and ITL over time, against their targets.")
    return Section("Latency against the targets", text, drawn)


def _stages(story: Story) -> Section:
    text = (
        "Where the watts and the servers went: prefill reads prompts and decides the time to first token, decode "
        "writes answers and decides the time between tokens."
    )
    height = 2.2 + 1.6 * len(story.site.services)
    alt = "Mean cap per GPU and serving nodes per stage over time."
    return Section("Caps and servers by stage", text, charts.svg(charts.stages_chart(story), height, alt))


def _refusals(story: Story) -> Section:
    found = charts.refusals(story.replay(LEARNED))
    total = sum(v.sum() for v in found.values())
    words = [f"{charts.REASON_WORDS[r]} ({100 * v.sum() / total:.0f} %)" for r, v in found.items()]
    text = (
        "The policy bids, the arbiter settles. Whatever was bid, a command is sent only if every limit holds with it. "
    )
    why = f"Why bids were not granted in this episode: {'; '.join(words)}."
    text += why if words else "In this episode every bid was granted."
    alt = "Nodes whose bid was not granted, by reason, over time."
    return Section("What the arbiter refused", text, charts.svg(charts.refusals_chart(story), 3.2, alt))


def _live(story: Story, index: int) -> Section | None:
    """One chart of the live part; the last one is followed by what happened, in words."""
    if "live" not in story.extra:
        return None
    from .live.charts import CHARTS
    from .live.result import LiveResult

    title, text, drawing = CHARTS[index](LiveResult.from_dict(story.extra["live"]))
    return Section(title, text, drawing, "live" if index == len(CHARTS) - 1 else "")


def _table(story: Story) -> Section:
    rows = story.evaluation["rows"]
    names = {kind: [r["scenario"] for r in _mine(story) if verdict(r) == kind] for kind in VERDICTS}
    parts = [f"{words} {', '.join(names[kind])}" for kind, words in VERDICTS.items() if names[kind]]
    text = (
        f"Every policy ran the same {rows[0]['seeds']} windows of every scenario, all through the same arbiter, on "
        "load that nothing was tuned or trained on. Differences are paired, window by window, with "
        f"{best_words(story)} of the family; brackets are 95 % bootstrap intervals over windows."
    )
    if story.is_learned and parts:
        text += f" The learned policy {'; '.join(parts)}."
    if story.load != "generated":
        text += (
            " The windows are cut from the last third of one file and overlap: they are less independent than "
            "their number says."
        )
    draw = charts.comparison_chart(rows, lambda p: shown_name(story, p), story.policy)
    alt = "Paired differences in goodput to the best baseline with intervals, per scenario; the table has the numbers."
    return Section("The honest table", text, charts.svg(draw, 2.6, alt), "table")


def _learning(story: Story) -> Section | None:
    curve = (story.training or {}).get("curve") or []
    if story.training is None or not any("gain" in row for row in curve):
        return None
    t = story.training
    text = (
        f"The policy is a small network that corrects the bids of {t['base']}. It saw {t['steps']:,} decisions in "
        f"{clock(t['seconds'])}, on generated load from other seeds than those that judge it. The best checkpoint "
        "on validation windows was kept, then judged on windows that had not chosen it: "
        f"{signed(t['gain'])} goodput, gate {'passed' if t['passed'] else 'failed'}."
    )
    alt = "Gain on validation windows over training time."
    return Section("How it learned", text, charts.svg(charts.learning_chart(curve), 2.8, alt))


def _made(story: Story) -> Section:
    text = (
        "Measured in the plant, a simulator with published equations, not on hardware. The same arbiter code settles "
        "in simulation and live."
    )
    return Section("How this was made", text, "", "made")


def _shadow(story: Story) -> Section | None:
    """What shadow mode would have changed, and where its own report is."""
    if "shadow" not in story.extra:
        return None
    shadow = story.extra["shadow"]
    table, change = shadow["incumbent"], shadow["goodput_change"]
    low, high = change["range95"]
    return Section(
        "Beside what you have: shadow mode",
        f"For {shadow['seconds'] / 60:.0f} minutes the same loop ran with no write path beside a static cap table "
        f"({table['prefill_w']:.0f} W per prefill GPU, {table['decode_w']:.0f} W per decode GPU: the "
        f"strongest that fits {percent(table['fits_frac'], 0)} of the limit, so that no cut exceeds it). Flyball "
        f"would have set {percent(shadow['differs_frac'], 0)} of node-time differently. Replayed in the plant, that is "
        "a change of "
        f"{signed(change['mean'])} in tokens/s per MW; over what is not known of the site 95 % of draws lie between "
        f"{signed(low)} and {signed(high)}.",
        "",
        "shadow",
    )


SECTIONS: tuple[Callable[[Story], Section | None], ...] = (
    _power,
    _tokens,
    _latency,
    _stages,
    _refusals,
    partial(_live, index=0),
    partial(_live, index=1),
    partial(_live, index=2),
    _shadow,
    _table,
    _learning,
    _made,
)
"""Parts of the report in order; one that has nothing to say returns None."""


def main(arguments: list[str] | None = None) -> int:
    """Draw a finished demo's report anew, and the README's figure where asked for."""
    parser = argparse.ArgumentParser(prog="python -m flyball.experiments.report", description=main.__doc__)
    parser.add_argument("out", type=Path, help="folder of a finished demo")
    parser.add_argument("--picture", type=Path, help="write the README's figure here (.png or .svg)")
    given = parser.parse_args(arguments)
    from .demo import STORY

    try:
        story = load_story(given.out / STORY)
    except BadInput as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    write_report(given.out / REPORT, story)
    print(given.out / REPORT)
    if given.picture:
        write_picture(given.picture, story)
        print(given.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
