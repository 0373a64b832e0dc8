"""Charts of a live run: power and caps against the limit, the caps of every node, and what holds them."""

from typing import TYPE_CHECKING

import numpy as np

from ..charts import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, Draw, legend_above, svg
from ..emulation.second import DRAINED, FALLEN, LEASED, UNLEASED
from .result import Happening, LiveResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STATUS_STYLE = {
    UNLEASED: ("#ffffff", "no lease yet"),
    LEASED: ("#9ccbe8", "lease of the first service"),
    FALLEN: (ORANGE, "at its fallback, without a service"),
    DRAINED: ("#7a3b69", "drained"),
}
RELEASED_COLOUR, RELEASED_WORDS = GREEN, "lease of the restarted service"

MARKED = ("fault", "service")
"""Kinds of events that get a line in the charts."""

NODE_HEIGHT_IN = 0.16

NAME_FRAC = 0.055
"""Width of a name as a share of the chart's."""

NAMES_ROOM = 1.26
"""Height of the power chart over the nominal limit: what happened is named above every line."""


Chart = tuple[str, str, str]
"""Title, caption and <svg> element."""


def live_charts(result: LiveResult) -> list[Chart]:
    """Every chart of a live run, in the order in which they are read."""
    return [draw(result) for draw in CHARTS]


def power_chart(result: LiveResult) -> Chart:
    """Power, caps and limits of the whole site."""
    drawn = svg(_power(result), 4.0, _power_alt(result))
    return "Power and caps against the limit, live", _power_caption(result), drawn


def caps_chart(result: LiveResult) -> Chart:
    """Caps of every node over time."""
    drawn = svg(_caps(result), _height_in(result), "Cap per GPU of every node over time.")
    return "Caps in force, node by node", _caps_caption(result), drawn


def status_chart(result: LiveResult) -> Chart:
    """What holds the caps of every node over time."""
    drawn = svg(_status(result), _height_in(result), "Leases, fallbacks and drains of every node over time.")
    return "Who holds the caps", _status_caption(result), drawn


CHARTS = (power_chart, caps_chart, status_chart)


def _height_in(result: LiveResult) -> float:
    return 1.3 + NODE_HEIGHT_IN * len(result.nodes)


def first(result: LiveResult, word: str) -> Happening | None:
    """The first event whose text has a word."""
    return next((e for e in result.events if word in e.text), None)


# ── power ───────────────────────────────────────────────────────────────────────────────────────────────
def _power(result: LiveResult) -> Draw:
    def draw(figure) -> None:
        axes, s = figure.subplots(), result.series
        t_s = s["t_s"]
        _shade(axes, result)
        axes.step(t_s, s["in_force_w"] / 1e3, where="pre", color=BLACK, lw=1.8, label="limit in force")
        axes.step(t_s, s["demanded_w"] / 1e3, where="pre", color=BLACK, lw=1.0, ls=":", label="limit demanded")
        axes.step(t_s, s["bound_w"] / 1e3, where="pre", color=VERMILION, lw=1.6, label="caps and declared bounds")
        axes.plot(t_s, s["power_w"] / 1e3, color=BLUE, lw=1.6, label="power")
        _mark(axes, result, is_named=True)
        axes.set(xlabel="seconds", ylabel="kW", xlim=(0, t_s[-1]), ylim=(0, NAMES_ROOM * result.nominal_w / 1e3))
        legend_above(axes, 4)

    return draw


def _power_caption(result: LiveResult) -> str:
    k = result.kpis
    return (
        f"{len(result.nodes)} real agents on {sum(result.gpus)} emulated GPUs, the service in a process of its own, "
        "the plant in real time. The orange-red line is read from the emulated NVML library ten times a second: what "
        "the caps in force and the declared bounds of everything else allow. Above a limit in force: "
        f"{k['budget_violation_ws']:g} W s. The cut without notice let {k['overshoot_ws'] / 1e3:.1f} kW s through "
        f"during {k['overshoot_s']:.1f} s of the {result.grace_s:g} s of its grace."
    )


def _power_alt(result: LiveResult) -> str:
    return (
        f"Power, caps and limits over {result.series['t_s'][-1]:.0f} s; the caps' least distance to the limit in force "
        f"is {result.kpis['caps_margin_w']:.0f} W."
    )


def _shade(axes: "Axes", result: LiveResult) -> None:
    """Cuts in grey, the notice of one before it in orange."""
    for cut in result.cuts:
        axes.axvspan(cut["start_s"], cut["end_s"], color="#000000", alpha=0.06, lw=0, zorder=0)
        if cut["notice_s"]:
            axes.axvspan(cut["start_s"] - cut["notice_s"], cut["start_s"], color=ORANGE, alpha=0.14, lw=0, zorder=0)


MARK_WORDS = (
    ("XID", "XID"),
    ("cordoned", "drained"),
    ("killed", "killed"),
    ("fallback", "fallen"),
    ("listens", "restarted"),
)
"""A word of an event's text, and what its line is called."""


def _mark(axes: "Axes", result: LiveResult, is_named: bool) -> None:
    """A line where something happened; close neighbours are named on different heights, or on either side."""
    last_s, height, span_s = -1e9, 0, result.series["t_s"][-1]
    marks = [(event.t_s, name) for word, name in MARK_WORDS if (event := first(result, word)) is not None]
    for (t_s, name), (next_s, _) in zip(marks, [*marks[1:], (2 * span_s, "")], strict=True):
        axes.axvline(t_s, color=GREY, lw=0.9, ls="--", zorder=1)
        if is_named:
            height = height + 1 if t_s - last_s < 0.09 * span_s else 0
            last_s = t_s
            # a name to the right would be crossed by the next line
            is_left = next_s - t_s < NAME_FRAC * span_s < t_s
            axes.annotate(
                name,
                (t_s, 1.0 - 0.055 * height),
                xycoords=("data", "axes fraction"),
                xytext=(-3 if is_left else 3, -2),
                textcoords="offset points",
                ha="right" if is_left else "left",
                va="top",
                fontsize=8.5,
                color="#444444",
            )


# ── nodes ───────────────────────────────────────────────────────────────────────────────────────────────
def _rows(axes: "Axes", result: LiveResult, span_s: float) -> None:
    axes.set_yticks(range(len(result.nodes)), result.nodes, fontsize=7.5)
    axes.set(xlabel="seconds", xlim=(0, span_s))
    axes.grid(False)


def _extent(result: LiveResult) -> tuple[float, float, float, float]:
    return 0.0, float(result.series["t_s"][-1]), len(result.nodes) - 0.5, -0.5


def _caps(result: LiveResult) -> Draw:
    def draw(figure) -> None:
        axes = figure.subplots()
        per_gpu_w = result.series["cap_w"] / np.array(result.gpus)
        image = axes.imshow(per_gpu_w.T, aspect="auto", extent=_extent(result), cmap="cividis", interpolation="nearest")
        figure.colorbar(image, ax=axes, label="W per GPU", pad=0.01)
        _mark(axes, result, is_named=False)
        _rows(axes, result, _extent(result)[1])

    return draw


def _caps_caption(result: LiveResult) -> str:
    k = result.kpis
    text = "Caps as the emulated NVML library has them; a lost GPU counts at its maximum."
    if np.isfinite(k["cordon_s"]):
        text += f" From the XID to cordon and drain: {k['cordon_s']:.1f} s."
    if np.isfinite(k["given_w"]) and k["given_w"] > 0:
        text += (
            f" The broken node's cap fell by {k['freed_w']:,.0f} W; the others' caps together rose by "
            f"{k['given_w']:,.0f} W (means before and after)."
        )
    if np.isfinite(k["fallback_s"]):
        text += (
            f" {k['fallback_s']:.1f} s after the service was killed every node was at its fallback (leases live "
            f"{result.lease_ttl_s:g} s)."
        )
    return text


def _status(result: LiveResult) -> Draw:
    def draw(figure) -> None:
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch

        axes, s = figure.subplots(), result.series
        released = max(STATUS_STYLE) + 1
        is_released = (s["status"] == LEASED) & (s["epoch"] > result.kpis["epoch_before"])
        shown = np.where(is_released, released, s["status"])
        colours = {**{k: colour for k, (colour, _) in STATUS_STYLE.items()}, released: RELEASED_COLOUR}
        words = {**{k: text for k, (_, text) in STATUS_STYLE.items()}, released: RELEASED_WORDS}
        axes.imshow(
            shown.T,
            aspect="auto",
            extent=_extent(result),
            cmap=ListedColormap([colours[k] for k in range(released + 1)]),
            vmin=-0.5,
            vmax=released + 0.5,
            interpolation="nearest",
        )
        _mark(axes, result, is_named=False)
        _rows(axes, result, _extent(result)[1])
        handles = [Patch(color=colours[k], label=words[k]) for k in range(released + 1) if (shown == k).any()]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)

    return draw


def _status_caption(result: LiveResult) -> str:
    k = result.kpis
    text = "An agent obeys a lease until it expires, and then holds the smaller of its cap and its fallback."
    if np.isfinite(k["resync_s"]):
        text += (
            f" The restarted service (epoch {k['epoch_after']:.0f}) had every node back {k['resync_s']:.1f} s after it "
            f"listened; caps that rose before their node was back: {k['rises_before_resync']:.0f}."
        )
    return text
