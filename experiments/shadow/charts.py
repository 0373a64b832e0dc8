"""Charts of a shadow report, in the palette and style of the demo's."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ...fleet.plan import Reason
from ..charts import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, REASON_COLOUR, VERMILION, Draw, legend_above
from .compare import WORDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCUMBENT_STYLE: dict[str, Any] = {"color": GREY, "lw": 1.6, "ls": "--"}
FLYBALL_STYLE: dict[str, Any] = {"color": BLUE, "lw": 1.8}
STAGE_COLOUR = {"prefill": PURPLE, "decode": GREEN}

BREAK_STEPS = 3.0
"""Points further apart than this many usual steps are not joined by a line."""


def _axis(time_s: list) -> tuple[np.ndarray, str]:
    """Time since the start in the unit that people would use."""
    t = np.array(time_s, float) - time_s[0]
    for limit_s, unit_s, label in ((3 * 3600, 60.0, "min"), (3 * 86400, 3600.0, "h")):
        if t[-1] <= limit_s:
            return t / unit_s, f"time since the start, {label}"
    return t / 86400.0, "time since the start, days"


def _broken(t: np.ndarray, values: list) -> np.ndarray:
    """Values with NaN after each gap, so that no line is drawn over it."""
    out = np.array([np.nan if v is None else v for v in values], float)
    step = np.diff(t)
    if len(step):
        out[:-1][step > BREAK_STEPS * np.median(step)] = np.nan
    return out


def power_chart(series: dict[str, list]) -> Draw:
    """What either side lets the site draw, what it drew, and the limit."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        t, label = _axis(series["time_s"])
        for name, words, style in (
            ("in_force_w", "limit in force", {"color": BLACK, "lw": 1.8}),
            ("incumbent_w", "most that the incumbent's caps allow", INCUMBENT_STYLE),
            ("proposed_w", "most that Flyball's caps would allow", FLYBALL_STYLE),
            ("metered_w", "power metered under the incumbent", {"color": ORANGE, "lw": 1.2}),
        ):
            values = _broken(t, series[name]) / 1e3
            if np.isfinite(values).any():
                axes.step(t, values, where="post", label=words, **style)
        axes.set_ylabel("site power, kW")
        axes.set_xlabel(label)
        axes.margins(x=0.0)
        legend_above(axes, 2)

    return draw


def caps_chart(series: dict[str, list]) -> Draw:
    """Mean caps per GPU of either stage under either side."""

    def draw(figure: "Figure") -> None:
        from matplotlib.lines import Line2D

        axes = figure.subplots()
        t, label = _axis(series["time_s"])
        for stage, colour in STAGE_COLOUR.items():
            axes.plot(t, _broken(t, series[f"incumbent_w_gpu:{stage}"]), color=colour, lw=1.4, ls="--")
            axes.plot(t, _broken(t, series[f"proposed_w_gpu:{stage}"]), color=colour, lw=1.8)
        axes.set_ylabel("mean cap, W per GPU")
        axes.set_xlabel(label)
        axes.set_xlim(t[0], t[-1])
        handles = [Line2D([], [], color=c, lw=1.8, label=s) for s, c in STAGE_COLOUR.items()]
        handles += [
            Line2D([], [], color="#555555", lw=1.8, label="Flyball"),
            Line2D([], [], color="#555555", lw=1.4, ls="--", label="incumbent"),
        ]
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, borderaxespad=0.1)

    return draw


def heat_chart(heat: dict[str, Any]) -> Draw:
    """Difference of caps, nodes by time."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        t, label = _axis(heat["time_s"])
        values = np.array([[np.nan if v is None else v for v in row] for row in heat["w_gpu"]], float)
        finite = np.abs(values[np.isfinite(values)])
        top = max(float(np.quantile(finite, 0.98)) if len(finite) else 0.0, 1.0)
        step = float(np.median(np.diff(t))) if len(t) > 1 else 1.0
        from matplotlib import colormaps

        colours = colormaps["PuOr_r"].with_extremes(bad="#d9d9d9")
        image = axes.imshow(
            values,
            aspect="auto",
            interpolation="nearest",
            cmap=colours,
            vmin=-top,
            vmax=top,
            extent=(t[0], t[-1] + step, len(values) - 0.5, -0.5),
        )
        axes.set_yticks(range(len(values)), heat["nodes"], fontsize=8 if len(values) <= 24 else 6)
        axes.set_xlabel(label)
        axes.grid(visible=False)
        bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.04, extend="both")
        bar.set_label("Flyball − incumbent, W per GPU")
        bar.outline.set_visible(False)

    return draw


def reasons_chart(series: dict[str, list], nodes: int) -> Draw:
    """Nodes on which the sides disagree, by what bound the proposal."""

    def draw(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        t, label = _axis(series["time_s"])
        found = {r: series[f"reason:{r.name}"] for r in Reason if f"reason:{r.name}" in series}
        found = dict(sorted(found.items(), key=lambda pair: -sum(pair[1])))
        if found:
            axes.stackplot(
                t,
                *found.values(),
                labels=[WORDS[r] for r in found],
                colors=[REASON_COLOUR.get(r, "#9ecae1") for r in found],
                lw=0,
                step="post",
            )
            legend_above(axes, 2)
        axes.set_ylim(0, nodes)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("nodes that differ")
        axes.set_xlabel(label)
        axes.margins(x=0.0)

    return draw


def change_chart(rows: list[dict[str, Any]], labels: dict[str, str]) -> Draw:
    """Relative changes with the interval of their mean (bar) and the spread over draws (line)."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.axvline(0, color=BLACK, lw=1.0)
        for y, row in enumerate(rows[::-1]):
            c = row["change"]
            axes.plot([100 * v for v in c["range95"]], [y, y], color=GREY, lw=1.2)
            axes.plot([100 * v for v in c["ci95"]], [y, y], color=BLUE, lw=5.0, solid_capstyle="butt")
            axes.plot([100 * c["mean"]], [y], "o", color=BLUE, ms=6, mec="white")
        axes.set_yticks(range(len(rows)), [labels[r["kpi"]] for r in rows[::-1]])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("predicted change, % of the incumbent (bar: 95 % of the mean; line: 95 % of draws)")

    return draw


def draws_chart(row: dict[str, Any]) -> Draw:
    """The change of one KPI in every draw, sorted."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        values = np.sort(100 * np.array([np.nan if v is None else v for v in row["change"]["draws"]], float))
        axes.bar(np.arange(len(values)) + 1, values, color=np.where(values >= 0, BLUE, VERMILION), width=0.7)
        axes.axhline(0, color=BLACK, lw=1.0)
        axes.set_xlabel("draws of the plant's parameters and of the load's noise, sorted")
        axes.set_ylabel("change, %")
        axes.grid(axis="x", visible=False)
        axes.set_xlim(0.3, len(values) + 0.7)

    return draw


def check_chart(series: dict[str, list], services: list[str]) -> Draw:
    """Logged power and latency against the replay of the incumbent."""

    def draw(figure: "Figure") -> None:
        t, label = _axis(series["time_s"])
        grid = figure.subplots(1 + len(services), 2, squeeze=False, sharex=True)
        panels = [(grid[0, 0], "logged_power_w", "incumbent_power_p{}_w", 1e-3, "power, kW")]
        for row, service in zip(grid[1:], services, strict=True):
            prefix = f"{service}: " if len(services) > 1 else ""
            panels.append(
                (row[0], f"logged_ttft_s:{service}", f"incumbent_ttft_s_p{{}}:{service}", 1.0, f"{prefix}TTFT, s")
            )
            panels.append(
                (row[1], f"logged_itl_s:{service}", f"incumbent_itl_s_p{{}}:{service}", 1e3, f"{prefix}ITL, ms")
            )
        for axes, logged, predicted, factor, words in panels:
            low, middle, high = (factor * _broken(t, series[predicted.format(q)]) for q in (5, 50, 95))
            axes.fill_between(t, low, high, color=BLUE, alpha=0.18, lw=0, label="plant, 5 to 95 % of draws")
            axes.plot(t, middle, color=BLUE, lw=1.3, label="plant, median")
            seen = factor * _broken(t, series[logged])
            if np.isfinite(seen).any():
                axes.plot(t, seen, color=VERMILION, lw=1.1, label="logged")
            axes.set_ylabel(words)
            axes.margins(x=0.0)
        # the policy's own power in the same draws
        axes = grid[0, 1]
        for name, style in (("proposed", FLYBALL_STYLE), ("incumbent", INCUMBENT_STYLE)):
            axes.plot(t, 1e-3 * _broken(t, series[f"{name}_power_p50_w"]), label=f"plant under {name}", **style)
        axes.set_ylabel("power in the plant, kW")
        axes.set_title("both sides in the plant", fontsize=9)
        axes.legend(["Flyball", "incumbent"], loc="best", fontsize=8)
        for axes in grid[-1]:
            axes.set_xlabel(label)
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3)

    return draw


def coverage_chart(time_s: np.ndarray, known: np.ndarray) -> Draw:
    """Share of nodes that were known, over the whole range; white where nothing was logged."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        t, label = _axis(time_s.tolist())
        values = _broken(t, (100 * known).tolist())
        axes.fill_between(t, values, step="post", color=BLUE, alpha=0.5, lw=0)
        axes.set_ylim(0, 105)
        axes.set_ylabel("nodes known, %")
        axes.set_xlabel(label)
        axes.margins(x=0.0)

    return draw
