"""A picture of a scenario: demand, limit and power, queue, and heat or training, over a quarter of an hour."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .. import registry
from ..envs.core import Core
from ..envs.scenario import Scenario
from ..fleet.tables import TRAINING

POLICY, SEED, SECONDS = "proportional", 1, 900.0
"""A baseline that every site can run, untuned: the picture is of the scenario, not of a policy."""

MAX_BYTES = 60_000
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Okabe and Ito's, as in `charts`."""


def draw(scenario: Scenario, path: Path) -> Path:
    """Play `SECONDS` of a scenario and save its picture.

    Raises:
        RuntimeError: a picture above `MAX_BYTES`; pages are read over the network.
    """
    rows = _play(scenario)
    t_min = rows["t_s"] / 60
    figure = Figure(figsize=(8.0, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(4, 1, sharex=True)
    names = [s.name for s in scenario.fleet.services if s.kind != "training"]
    for i, name in enumerate(names):
        axes[0].plot(t_min, rows[f"rps:{name}"], color=COLOURS[i % 4], lw=1.0, label=name)
        axes[2].plot(t_min, rows[f"queue:{name}"], color=COLOURS[i % 4], lw=1.0, label=name)
    axes[0].set_ylabel("requests/s")
    axes[1].step(t_min, rows["limit_w"] / 1000, color="#1a1a1a", lw=1.2, ls="--", where="post", label="limit")
    axes[1].plot(t_min, rows["power_w"] / 1000, color=COLOURS[0], lw=1.0, label="power")
    axes[1].set_ylabel("kW")
    axes[2].set_ylabel("queue, s")
    last = "hottest GPU, °C"
    axes[3].plot(t_min, rows["temp_c"], color=COLOURS[1], lw=1.0)
    if "trained" in rows:
        last = "training, % of full"
        axes[3].clear()
        axes[3].plot(t_min, 100 * rows["trained"], color=COLOURS[2], lw=1.0)
    elif rows["down"].any():
        last = "nodes down"
        axes[3].clear()
        axes[3].step(t_min, rows["down"], color=COLOURS[1], lw=1.2, where="post")
    axes[3].set_ylabel(last)
    axes[3].set_xlabel("minutes")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]) if axis is not axes[3] or last[:3] != "hot" else None)
        axis.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        axes[0].legend(loc="upper right", fontsize=8, frameon=False)
    axes[1].legend(loc="lower right", fontsize=8, frameon=False)
    figure.suptitle(f"{scenario.name}: one episode under `{POLICY}`, untuned", fontsize=10)
    figure.savefig(path, dpi=72, metadata={"Software": None})
    if path.stat().st_size > MAX_BYTES:
        raise RuntimeError(f"{path}: {path.stat().st_size} bytes, more than {MAX_BYTES}; draw fewer points")
    return path


def _play(scenario: Scenario) -> dict[str, np.ndarray]:
    """Series of one episode, one value per control interval."""
    scenario = replace(scenario, warmup_s=0.0)  # totals count from the start
    core = Core(scenario, registry.baseline(POLICY, scenario, {}), batch=1)
    core.reset(np.array([SEED]))
    plant, fleet = core.plant, core.fleet
    training = fleet.service_static["kind"] == TRAINING
    gpus = sum(n.gpus for n in fleet.nodes if training[fleet.service_index[n.service]])
    steps = int(min(SECONDS, scenario.seconds) // fleet.timing.control_s)
    rows: list[dict[str, float]] = []
    for _ in range(steps):
        tick = int(plant.tick[0])
        core.step(core.base)
        row = {
            "t_s": float(plant.time_s[0]),
            "limit_w": float(plant.limits[0, int(plant.tick[0]) - 1, 0, 0]),
            "power_w": float(plant.domain["power_w"][0, 0]),
            "temp_c": float(plant.node["temp_c"][0].max()),
            "down": float((plant.node["down_s"][0] > 0).sum()),
        }
        span = slice(tick, int(plant.tick[0]))
        for s, service in enumerate(fleet.services):
            row[f"rps:{service.name}"] = float(plant.arrivals[0, span, s].mean() / fleet.timing.tick_s)
            row[f"queue:{service.name}"] = float(plant.service["backlog_s"][0, s])
        if gpus:
            row["work"] = float(plant.totals["trained_gpu_s"][0])
        rows.append(row)
    out = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    if gpus:
        # half a minute's mean: a gang's seconds are a square wave
        share = np.diff(out.pop("work"), prepend=0.0) / (gpus * fleet.timing.control_s)
        out["trained"] = np.convolve(np.pad(share, 3, "edge"), np.full(7, 1 / 7), "valid")
    return out
