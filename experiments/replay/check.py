"""The replay as a check: errors per figure, as findings, JSON and a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .compare import METRICS, SHARES, Point, bin_error, compare

TARGET = 0.20
"""Median error of a figure that the plant's closed forms are held to; of shares 0.05, as a difference."""

SHARE_TARGET = 0.05

QUICK = {"sites": ("demo-16",), "utilisations": (0.5, 0.85, 1.2), "seconds": 300.0}


def findings(points: Sequence[Point]) -> list[dict]:
    """One finding per figure and kind of requests; `mape` is the median over points, which a pole cannot spoil."""
    out = []
    for lengths in sorted({p.lengths for p in points}):
        own = [p for p in points if p.lengths == lengths]
        for of in ("plant", "diffusion"):
            if of == "diffusion" and lengths != "chat":
                continue  # where decode fills first the wait is not before prefill
            for metric in METRICS:
                errors = np.array([p.error(metric, of) for p in own])
                errors = errors[np.isfinite(errors)]
                if not errors.size:
                    continue
                size, target = np.abs(errors), SHARE_TARGET if metric in SHARES else TARGET
                out.append(
                    {
                        "check": f"replay: {metric}, {lengths}" + ("" if of == "plant" else ", by the diffusion"),
                        "sku": "H100-SXM",
                        "source": "request-level replay (simulated, on the plant's own step times)",
                        "n": int(errors.size),
                        "mape": float(np.median(size)),
                        "bias": float(np.median(errors)),
                        "p90": float(np.quantile(size, 0.9)),
                        "target": target,
                        "passed": bool(np.median(size) <= target),
                        "note": ("difference" if metric in SHARES else "relative")
                        + f", median over points; histogram bins resolve {bin_error():.0%}",
                    }
                )
    return out


def check_replay(data_dir: Path | None = None, **options) -> list[dict]:
    """Findings of the plant's closed forms beside the replay; needs no data, `data_dir` is not read.

    Args:
        data_dir: Taken so that all checks are called alike.
        **options: Of `compare.compare`; the quick set by default.
    """
    return findings(compare(**(options or QUICK)))


def write_report(points: Sequence[Point], out: Path) -> dict[str, str]:
    """Write `replay.json`, `replay.md` and `replay.png` into a folder; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [asdict(p) | {"errors": {m: p.error(m) for m in METRICS}} for p in points]
    paths = {kind: out / f"replay.{kind}" for kind in ("json", "md", "png")}
    paths["json"].write_text(json.dumps({"points": rows, "findings": findings(points)}, indent=1))
    lines = [
        "| site | requests | CV | load | " + " | ".join(METRICS) + " |",
        "|---" * (4 + len(METRICS)) + "|",
    ]
    for p in points:
        cells = " | ".join(f"{p.error(m):+.2f}" for m in METRICS)
        lines.append(f"| {p.site} | {p.lengths} | {p.arrival_cv:g} | {p.utilisation:g} | {cells} |")
    paths["md"].write_text("\n".join(lines) + "\n")
    _plot(points, paths["png"])
    return {kind: str(path) for kind, path in paths.items()}


def _plot(points: Sequence[Point], path: Path) -> None:
    from matplotlib.figure import Figure

    metrics = ("ttft_p50_s", "ttft_p99_s", "itl_mean_s", "reject_frac")
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, metric in zip(figure.subplots(2, 2).flat, metrics, strict=True):
        for key in sorted({(p.site, p.lengths, p.arrival_cv) for p in points}):
            own = [p for p in points if (p.site, p.lengths, p.arrival_cv) == key]
            x = [p.utilisation for p in own]
            (line,) = axes.plot(
                x, [p.replay[metric] for p in own], "o-", ms=3, lw=1, label=f"{key[0]} {key[1]} CV {key[2]:g}"
            )
            axes.plot(x, [p.plant[metric] for p in own], "x--", ms=4, lw=1, color=line.get_color())
        axes.set_xlabel("load of the busier stage")
        axes.set_ylabel(metric)
    figure.axes[0].legend(fontsize=6, title="replay solid, plant dashed", title_fontsize=6)
    figure.savefig(path, dpi=110)
