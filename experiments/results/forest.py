"""The forest plot: paired differences to the best baseline with their intervals, scenario by scenario."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..charts import BLACK, BLUE, GREY, ORANGE, Draw
from ..contenders import CLAIRVOYANT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW_IN = 0.2
"""Height of one line of the plot."""


def place_of(row: dict[str, Any], has_sizes: bool) -> str:
    """A row's scenario, with its size where there are several."""
    return f"{row['scenario']}, {row['nodes']} nodes" if has_sizes else row["scenario"]


def height_in(rows: Sequence[dict[str, Any]]) -> float:
    """Height of the figure."""
    places = {(r["scenario"], r["nodes"]) for r in rows}
    return 1.2 + ROW_IN * (len(shown(rows)) + 1.5 * len(places))


def shown(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with a difference to show."""
    return [
        r
        for r in rows
        if r["policy"] != r["vs_best_baseline"]["baseline"] and r["vs_best_baseline"]["diff"] is not None
    ]


def forest(rows: Sequence[dict[str, Any]]) -> Draw:
    """Draw every row's paired difference; policy files in blue, the clairvoyant in orange, baselines in grey."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.axvline(0, color=BLACK, lw=1.0)
        has_sizes = len({r["nodes"] for r in rows}) > 1
        ticks: list[tuple[float, str]] = []
        y, last = 0.0, None
        for row in shown(rows):
            place = place_of(row, has_sizes)
            if place != last:
                y -= 1.5 if last is not None else 0.0
                # above the lines of its scenario, at the left edge of the axes
                axes.annotate(
                    place, (0, y + 0.75), xycoords=("axes fraction", "data"), fontsize=9, fontweight="bold", va="center"
                )
                last = place
            vs = row["vs_best_baseline"]
            low, high = (100 * v for v in vs["ci95"])
            colour = BLUE if row["is_learned"] else ORANGE if row["policy"] == CLAIRVOYANT else GREY
            axes.plot([low, high], [y, y], color=colour, lw=2.4, solid_capstyle="butt")
            axes.plot([100 * vs["diff"]], [y], "o", color=colour, ms=4.5)
            ticks.append((y, row["policy"]))
            y -= 1.0
        axes.set_yticks([t for t, _ in ticks], [name for _, name in ticks], fontsize=8)
        axes.set_ylim(y, 1.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("goodput against the best baseline, % (bars: 95 % of paired differences)")

    return draw
