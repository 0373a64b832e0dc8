"""Charts of a story: matplotlib without pyplot, as inline SVG or as a file.

Colours are Okabe and Ito's, which people of every colour vision tell apart; lines differ in style too.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..fleet.plan import Reason
from .story import BEST, LEARNED, STATIC, Replay, Story

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#1a1a1a", "#8a8a8a"

ROLE_STYLE: dict[str, dict[str, Any]] = {
    LEARNED: {"color": BLUE, "lw": 2.0, "ls": "-", "zorder": 4},
    BEST: {"color": VERMILION, "lw": 1.4, "ls": "-", "zorder": 3},
    STATIC: {"color": GREY, "lw": 1.4, "ls": "--", "zorder": 2},
}
STAGE_COLOUR = {"prefill": PURPLE, "decode": GREEN}

REASON_WORDS = {
    Reason.DOMAIN_LIMIT: "a power limit binds",
    Reason.CAP_RANGE: "outside what the GPU can be capped to",
    Reason.WAITING_FOR_RELEASE: "waits for watts that others still hold",
    Reason.RAMP: "a raise is spread over time",
    Reason.STALE: "no fresh telemetry: no raise",
    Reason.UNKNOWN: "silent node: budgeted at its maximum",
    Reason.PARKED: "node is parked",
    Reason.MOVING: "node loads another stage",
    Reason.DRAINED: "node is drained",
    Reason.BAD_BID: "the bid was not a number",
    Reason.EMERGENCY_FLOOR: "emergency: decode floor given up",
    Reason.DEADBAND: "too small a raise to be worth a write",
    Reason.ORDERED: "an operator's order holds it",
}
"""Why a bid was not granted, for people."""

REASON_COLOUR = {
    Reason.DOMAIN_LIMIT: BLUE,
    Reason.CAP_RANGE: SKY,
    Reason.WAITING_FOR_RELEASE: ORANGE,
    Reason.RAMP: YELLOW,
    Reason.STALE: PURPLE,
    Reason.UNKNOWN: "#7a3b69",
    Reason.PARKED: GREY,
    Reason.MOVING: GREEN,
    Reason.DRAINED: "#b5b5b5",
    Reason.BAD_BID: BLACK,
    Reason.EMERGENCY_FLOOR: VERMILION,
    Reason.DEADBAND: "#d9d9d9",
    Reason.ORDERED: "#5c4a1f",
}

SMOOTH_STEPS = 6
"""Control intervals in the moving mean of token rates: requests finish in lumps that hide the trend."""

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica", "sans-serif"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9a9a9a",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "flyball",
}

WIDTH_IN = 8.6

Draw = Callable[["Figure"], None]


def svg(draw: Draw, height_in: float, description: str) -> str:
    """Draw one figure as an <svg> element that scales with the page.

    Args:
        draw: Fills the figure.
        height_in: Height; the width is the same for all.
        description: What a reader who cannot see it is told.
    """
    import html

    buffer = io.StringIO()
    _save(draw, height_in, buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # the page sets the size; the viewBox keeps the proportions
    head, rest = text.split(">", 1)
    words = [w for w in head.split(" ") if not w.startswith(("width=", "height="))]
    label = html.escape(description, quote=True)
    return f'{" ".join(words)} role="img" aria-label="{label}">{rest}'


def save_figure(draw: Draw, height_in: float, path: Path) -> None:
    """Write one figure as a file of the suffix's format (.png, .svg), whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    form = path.suffix.removeprefix(".") or "png"
    _save(draw, height_in, partial, format=form, dpi=160, facecolor="white")
    partial.replace(path)


def _save(draw: Draw, height_in: float, target, **options) -> None:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(target, **options)


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────
def _minutes(replay: Replay) -> np.ndarray:
    return replay.columns["t_s"] / 60.0


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving mean; shorter at the ends."""
    kernel = np.ones(SMOOTH_STEPS)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _shade(axes: "Axes", story: Story, is_labelled: bool = False) -> None:
    """Cuts in grey with their notice in a lighter shade before them; the warm-up up to its end."""
    for cut in story.cuts:
        axes.axvspan(cut.start_s / 60, cut.end_s / 60, color="#000000", alpha=0.07, lw=0, zorder=0)
        if cut.notice_s:
            axes.axvspan((cut.start_s - cut.notice_s) / 60, cut.start_s / 60, color=ORANGE, alpha=0.16, lw=0, zorder=0)
        if is_labelled:
            notice = f"announced {cut.notice_s:.0f} s ahead" if cut.notice_s else "no notice"
            axes.annotate(
                f"−{100 * (1 - cut.limit_frac):.0f} %\n{notice}",
                (cut.start_s / 60, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, -3),
                textcoords="offset points",
                va="top",
                fontsize=8,
                color="#444444",
            )
    axes.set_xlim(0, story.seconds / 60)


def legend_above(axes: "Axes", columns: int) -> None:
    """A legend over the plot, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.1, handlelength=1.8)


def _roles(story: Story) -> list[Replay]:
    """Replays, the one on show first."""
    order = {LEARNED: 0, BEST: 1, STATIC: 2}
    return sorted(story.replays, key=lambda r: order[r.role])


def _name(replay: Replay) -> str:
    if replay.role == BEST and replay.policy != "static":
        return f"best baseline ({replay.policy})"
    return "static table" if replay.policy == "static" else replay.policy


# ── charts ──────────────────────────────────────────────────────────────────────────────────────────────
def draw_power(axes: "Axes", story: Story) -> None:
    """Limits, possible and drawn power of the policy on show."""
    mine = story.replay(LEARNED)
    t, c = _minutes(mine), mine.columns
    # all as steps between the same samples: lines drawn from one sample to the next would cross at a cut
    lines: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("in_force_w", "limit in force", {"color": BLACK, "lw": 2.0}),
        ("demanded_w", "limit demanded", {"color": BLACK, "lw": 1.0, "ls": ":"}),
        ("possible_w", "most that the commands allow", {"color": ORANGE, "lw": 1.5}),
        ("power_w", "power drawn", {"color": BLUE, "lw": 1.6}),
    )
    for name, label, style in lines:
        axes.step(t, c[name] / 1e3, where="post", label=label, **style)
    low = min(float(np.nanmin(c["power_w"])), float(np.nanmin(c["demanded_w"]))) / 1e3
    high = max(float(np.nanmax(c["possible_w"])), float(np.nanmax(c["in_force_w"]))) / 1e3
    # room above for the words on the cuts
    axes.set_ylim(max(low - 0.12 * (high - low), 0), high + 0.28 * max(high - low, 1e-9))
    axes.set_ylabel("site power, kW")
    _shade(axes, story, is_labelled=True)


def draw_tokens(axes: "Axes", story: Story, column: str = "good_tok_s", has_offered: bool = True) -> None:
    """Token rates per nominal MW of every replayed policy."""
    per_mw = story.site.nominal_w / 1e6
    if has_offered:
        first = story.replay(LEARNED)
        offered = _smooth(first.columns["offered_tok_s"]) / per_mw / 1e6
        axes.fill_between(_minutes(first), offered, color="#000000", alpha=0.05, lw=0)
        axes.plot(_minutes(first), offered, color=BLACK, lw=0.9, ls=":", label="offered")
    for replay in _roles(story):
        rate = _smooth(replay.columns[column]) / per_mw / 1e6
        axes.plot(_minutes(replay), rate, label=_name(replay), **ROLE_STYLE[replay.role])
    axes.set_ylim(bottom=0)
    _shade(axes, story)


def power_chart(story: Story) -> Draw:
    """Power against the limits."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        draw_power(axes, story)
        axes.set_xlabel("time, min")
        legend_above(axes, 4)

    return draw


def tokens_chart(story: Story) -> Draw:
    """Good and spoilt tokens per second and MW."""

    def draw(figure: "Figure") -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        draw_tokens(top, story)
        top.set_ylabel("good, Mtok/s per MW")
        legend_above(top, 4)
        draw_tokens(bottom, story, "spoilt_tok_s", has_offered=False)
        bottom.set_ylabel("spoilt")
        bottom.set_xlabel("time, min")

    return draw


def latency_chart(story: Story) -> Draw:
    """Mean TTFT and ITL per interval against their targets, a row per service."""

    def draw(figure: "Figure") -> None:
        services = story.site.services
        grid = figure.subplots(len(services), 2, squeeze=False, sharex=True)
        for row, service in zip(grid, services, strict=True):
            prefix = f"{service['name']}: " if len(services) > 1 else ""
            for axes, kind, unit, factor in ((row[0], "ttft", "s", 1.0), (row[1], "itl", "ms", 1e3)):
                seen = []
                for replay in _roles(story):
                    values = replay.columns[f"{kind}_s:{service['name']}"] * factor
                    seen.append(values)
                    axes.plot(_minutes(replay), values, label=_name(replay), **ROLE_STYLE[replay.role])
                target = service[f"{kind}_s"] * factor
                axes.axhline(target, color=BLACK, lw=1.2, ls="-.", label="target", zorder=5)
                high = max(float(np.nanmax(v)) for v in seen)
                if kind == "ttft" and high > 8 * target:
                    axes.set_yscale("log")
                else:
                    axes.set_ylim(0, max(1.15 * high, 1.25 * target))
                axes.set_ylabel(f"{prefix}{kind.upper()}, {unit}")
                _shade(axes, story)
        for axes in grid[-1]:
            axes.set_xlabel("time, min")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=4)

    return draw


def stages_chart(story: Story) -> Draw:
    """Caps per GPU and serving nodes of either stage, under the policy on show and the best baseline."""

    def draw(figure: "Figure") -> None:
        from matplotlib.lines import Line2D

        services = story.site.services
        grid = figure.subplots(len(services), 2, squeeze=False, sharex=True)
        roles = [r for r in _roles(story) if r.role in (LEARNED, BEST)]
        first: dict[str, Any] = {"lw": 1.9, "ls": "-"}
        second: dict[str, Any] = {"lw": 1.1, "ls": ":"}
        for row, service in zip(grid, services, strict=True):
            prefix = f"{service['name']}: " if len(services) > 1 else ""
            for replay in reversed(roles):
                style = first if replay is roles[0] else second
                for stage, colour in STAGE_COLOUR.items():
                    t, c = _minutes(replay), replay.columns
                    caps_w, nodes = c[f"cap_gpu_w:{service['name']}:{stage}"], c[f"nodes:{service['name']}:{stage}"]
                    row[0].plot(t, np.where(nodes > 0, caps_w, np.nan), color=colour, **style)
                    row[1].step(t, nodes, where="post", color=colour, **style)
            row[0].set_ylabel(f"{prefix}mean cap, W per GPU")
            row[1].set_ylabel(f"{prefix}serving nodes")
            row[1].set_ylim(bottom=0)
            for axes in row:
                _shade(axes, story)
        for axes in grid[-1]:
            axes.set_xlabel("time, min")
        handles = [Line2D([], [], color=colour, lw=1.9, label=stage) for stage, colour in STAGE_COLOUR.items()]
        for replay in roles:
            style = first if replay is roles[0] else second
            handles.append(Line2D([], [], color="#555555", label=_name(replay), **style))
        figure.legend(handles=handles, loc="outside upper left", ncols=4)

    return draw


def refusals(replay: Replay) -> dict[Reason, np.ndarray]:
    """Nodes whose bid was not granted, by reason and over time; reasons that occurred, the most frequent first."""
    found = {r: replay.columns[f"reason_{int(r)}"] for r in REASON_WORDS if f"reason_{int(r)}" in replay.columns}
    kept = {r: v for r, v in found.items() if v.sum() > 0}
    return dict(sorted(kept.items(), key=lambda pair: -pair[1].sum()))


def refusals_chart(story: Story) -> Draw:
    """Nodes whose bid was not granted, stacked by reason."""

    def draw(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        mine = story.replay(LEARNED)
        found = refusals(mine)
        if found:
            axes.stackplot(
                _minutes(mine),
                *(_smooth(v) for v in found.values()),
                labels=[REASON_WORDS[r] for r in found],
                colors=[REASON_COLOUR[r] for r in found],
                lw=0,
            )
            legend_above(axes, 2)
        axes.set_ylabel("servers")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, story.site.nodes)
        axes.set_xlabel("time, min")
        _shade(axes, story)

    return draw


def comparison_chart(rows: Sequence[dict], labels: Callable[[str], str], shown: str) -> Draw:
    """Paired differences in goodput to the best baseline with their intervals, a panel per scenario.

    Args:
        rows: Of an evaluation.
        labels: From a policy's name to the one shown.
        shown: Name of the policy on show.
    """

    def draw(figure: "Figure") -> None:
        scenarios = list(dict.fromkeys(r["scenario"] for r in rows))
        panels = figure.subplots(1, len(scenarios), sharex=True, sharey=True, squeeze=False)[0]
        names = list(dict.fromkeys(r["policy"] for r in rows))[::-1]
        for axes, scenario in zip(panels, scenarios, strict=True):
            axes.axvline(0, color=BLACK, lw=1.0)
            for r in rows:
                if r["scenario"] != scenario:
                    continue
                y, vs = names.index(r["policy"]), r["vs_best_baseline"]
                low, high = (100 * v for v in vs["ci95"])
                colour = BLUE if r["policy"] == shown else GREY
                axes.plot([low, high], [y, y], color=colour, lw=2.6, solid_capstyle="butt")
                axes.plot([100 * vs["diff"]], [y], "o", color=colour, ms=6)
            axes.set_title(scenario)
            axes.set_yticks(range(len(names)), [labels(n) for n in names])
            axes.set_ylim(-0.6, len(names) - 0.4)
            axes.grid(axis="y", visible=False)
        figure.supxlabel("goodput against the best baseline, % (bars: 95 % of paired differences)", fontsize=10)

    return draw


def learning_chart(curve: Sequence[dict[str, float]]) -> Draw:
    """Validation gain of the policy so far over the time of training."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        judged = [row for row in curve if "gain" in row]
        minutes = np.array([row["seconds"] for row in judged]) / 60
        gain = 100 * np.array([row["gain"] for row in judged])
        axes.axhline(0, color=BLACK, lw=1.0, label="the baseline it corrects")
        axes.plot(minutes, gain, "o-", color=BLUE, lw=1.8, ms=5, label="policy so far")
        best = np.maximum.accumulate(gain)
        axes.plot(minutes, best, color=BLUE, lw=1.0, ls=":", label="best so far: the one that is kept")
        axes.set_xlim(left=0)
        axes.set_xlabel("training time, min")
        axes.set_ylabel("goodput gain on\nvalidation windows, %")
        legend_above(axes, 3)

    return draw


def picture(story: Story) -> Draw:
    """The one figure of the README: power against the limit, and the tokens that it bought."""

    def draw(figure: "Figure") -> None:
        top, bottom = figure.subplots(2, 1, sharex=True)
        draw_power(top, story)
        legend_above(top, 4)
        draw_tokens(bottom, story)
        bottom.set_ylabel("good Mtok/s per MW")
        bottom.set_xlabel("time, min")
        legend_above(bottom, 4)

    return draw
