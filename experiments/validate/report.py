"""Running the checks, and a page of what they found."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from ...fleet.errors import BadInput
from . import CHECKS, SERIES, Finding, Series

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"dense": "#1f77b4", "moe": "#d62728", "sparse": "#d62728"}


def run_checks(
    data: Path, names: Sequence[str] = (), progress: Callable[[str], None] = lambda name: None
) -> list[Finding]:
    """Findings of the named checks, or of all.

    Args:
        data: Folder with one folder per source.
        names: Of `CHECKS`; none means all.
        progress: Called with each check's name before it runs.

    Raises:
        BadInput: for a folder that is not there, an unknown check, or a malformed file.
    """
    if not data.is_dir():
        raise BadInput(f"{data}: no such folder; give the one that holds mlenergy_v3, aiconfigurator, ...")
    if unknown := sorted(set(names) - set(CHECKS)):
        raise BadInput(f"unknown check {unknown[0]!r}; known: {', '.join(CHECKS)}")
    out = []
    for name in names or CHECKS:
        progress(name)
        out += CHECKS[name](data)
    return out


def all_passed(findings: Sequence[Finding]) -> bool:
    """Whether at least one finding was judged and none failed."""
    judged = [f.passed for f in findings if f.passed is not None]
    return bool(judged) and all(judged)


def markdown(findings: Sequence[Finding], plots: Sequence[Path] = ()) -> str:
    """The findings as a page."""
    lines = [
        "# The plant against measurements", "",
        "| check | GPU | source | rows | MAPE % | bias % | p90 % | target % | passed | note |",
        "|---|---|---|---:|---:|---:|---:|---:|---|---|",
    ]  # fmt: skip
    for f in findings:
        lines.append("| " + " | ".join(cells(f)) + " |")
    lines += [""] + [f"![{p.stem}]({p.name})" for p in plots]
    return "\n".join(lines) + "\n"


def cells(f: Finding) -> list[str]:
    """A finding as text, one cell per column of the table."""

    def percent(x: float | None) -> str:
        return "" if x is None or not np.isfinite(x) else f"{100 * x:.1f}"

    verdict = {True: "yes", False: "NO", None: ""}[f.passed]
    return [f.check, f.sku, f.source, str(f.n), *map(percent, (f.mape, f.bias, f.p90, f.target)), verdict, f.note]


def write_report(data: Path, findings: Sequence[Finding], out: Path) -> list[Path]:
    """Write validation.md and its plots into `out`; returns what was written."""
    out.mkdir(parents=True, exist_ok=True)
    plots = []
    for name, make in SERIES.items():
        for i, s in enumerate(s for s in make(data) if len(s.sku)):
            plots.append(_plot(s, out / f"{name}-{i}.png"))
    page = out / "validation.md"
    page.write_text(markdown(findings, plots))
    return [page, *plots]


def _plot(s: Series, path: Path) -> Path:
    """Above, predicted against measured per product; below, the error by batch."""
    skus = sorted(set(s.sku))
    figure, axes = plt.subplots(2, len(skus), figsize=(3.2 * len(skus), 6.4), squeeze=False, layout="constrained")
    for column, sku in enumerate(skus):
        top, bottom = axes[:, column]
        for kind in sorted(set(s.kind)):
            at = (s.sku == sku) & (s.kind == kind) & np.isfinite(s.predicted) & (s.measured > 0)
            if not at.any():
                continue
            top.loglog(s.measured[at], s.predicted[at], ".", ms=3, color=COLOURS[kind], label=kind)
            error = 100 * (s.predicted[at] / s.measured[at] - 1)
            bottom.semilogx(s.batch[at], np.clip(error, -60, 60), ".", ms=3, color=COLOURS[kind])
        line = np.array([np.nanmin(s.measured), np.nanmax(s.measured)])
        top.plot(line, line, color="0.5", lw=0.8)
        bottom.axhline(0.0, color="0.5", lw=0.8)
        top.set(title=sku, xlabel=f"measured {s.name}", ylabel=f"predicted {s.name}")
        bottom.set(xlabel="batch", ylabel="error, % (cut at 60)", ylim=(-62, 62))
        if top.get_legend_handles_labels()[1]:
            top.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
