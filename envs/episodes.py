"""Episodes of one policy: the live loop with the plant at its end."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..fleet.plan import Reason
from .core import Background, Core
from .scenario import Scenario
from .traces import RateTable, Requests, read_requests


@dataclass(frozen=True)
class Series:
    """What one environment did, once per control interval.

    Attributes:
        columns: Name to values, shape (steps,) each; the unit is in the name.
    """

    columns: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]


@dataclass(frozen=True)
class Episodes:
    """Results of a batch of episodes.

    Attributes:
        kpis: One dict per episode.
        load_scale: Superposition factor of the load file, 1 for generated load.
        load_source: Where the load came from.
        series: What environment 0 did, where it was asked for.
    """

    kpis: list[dict[str, float]]
    load_scale: float
    load_source: str
    series: Series | None = None

    def values(self, kpi: str) -> np.ndarray:
        """One KPI over episodes."""
        return np.array([row[kpi] for row in self.kpis])


def read_file(path: str | Path | None) -> Requests | RateTable | None:
    """A load file, or None for generated load.

    Raises:
        LoadError: if it cannot be read.
    """
    return None if path is None else read_requests(path)


def run_episodes(
    scenario: Scenario,
    policy: Background,
    seeds: Sequence[int],
    file: Requests | RateTable | None = None,
    block: str = "test",
    is_recorded: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Episodes:
    """Run one episode per seed, all at once.

    Args:
        scenario: What happens.
        policy: The source of bids.
        seeds: One per episode.
        file: Load from a file.
        block: Third of the file, or stream of the generator.
        is_recorded: Keep the series of the first episode.
        progress: Called with the share done.
    """
    core = Core(scenario, policy, batch=len(seeds), file=file, block=block)
    core.reset(np.asarray(seeds))
    plant = core.plant
    rows: list[dict[str, float]] = []
    steps = plant.ticks // plant.control_ticks
    before = _counters(core)
    for step in range(steps):
        core.step(core.base)
        if is_recorded:
            now = _counters(core)
            rows.append(_row(core, before, now))
            before = now
        if progress:
            progress((step + 1) / steps)
    series = Series({k: np.array([r[k] for r in rows]) for k in rows[0]}) if rows else None
    return Episodes([core.kpis(b) for b in range(core.batch)], core.load_scale, core.load_source, series)


def _counters(core: Core) -> dict[str, float]:
    s = core.plant.service[0]
    names = ("served_tok", "late_tok", "rejected_tok", "lost_tok", "offered_tok")
    return {name: float(s[name].sum()) for name in names}


def _row(core: Core, before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """One control interval of environment 0."""
    plant, dt_s = core.plant, core.fleet.timing.control_s
    node, told, static = plant.node[0], plant.snapshot, core.fleet.node_static
    delta = {k: now[k] - before[k] for k in now}
    tick = int(min(plant.tick[0], plant.ticks))
    out = {
        "t_s": float(plant.time_s[0]),
        "power_w": float(plant.domain["power_w"][0, 0]),
        "demanded_w": float(plant.limits[0, tick, 0, 0]),
        "in_force_w": float(plant.limits[0, tick, 0, 1]),
        "possible_w": float(plant.state.node["cap_possible_w"][0].sum() + static["non_gpu_max_w"].sum()),
        "good_tok_s": (delta["served_tok"] - delta["late_tok"]) / dt_s,
        "offered_tok_s": delta["offered_tok"] / dt_s,
        "spoilt_tok_s": (delta["late_tok"] + delta["rejected_tok"] + delta["lost_tok"]) / dt_s,
        "interventions": float(plant.plan.fleet["interventions"][0]),
        "shed_level": float(plant.plan.fleet["shed_level"][0]),
        "down_nodes": float((node["down_s"] > 0).sum()),
        "drained_nodes": float(node["is_drained"].sum()),
    }
    for reason in np.unique(plant.plan.node["reason"][0]):
        out[f"reason_{int(reason)}"] = float((plant.plan.node["reason"][0] == reason).sum())
    for s, service in enumerate(core.fleet.services):
        heard = told.service[0, s]
        out[f"ttft_s:{service.name}"] = float(heard["ttft_s"])
        out[f"itl_s:{service.name}"] = float(heard["itl_s"])
        for stage, label in ((0, "prefill"), (1, "decode")):
            here = (static["service"] == s) & (node["stage"] == stage)
            serving = here & (node["down_s"] <= 0) & (node["moving_s"] <= 0)
            gpus = max(int((serving * static["gpus"]).sum()), 1)
            out[f"nodes:{service.name}:{label}"] = float(serving.sum())
            out[f"cap_gpu_w:{service.name}:{label}"] = float((serving * node["cap_w"]).sum()) / gpus
    for reason in Reason:
        out.setdefault(f"reason_{int(reason)}", 0.0)
    return out


def mean_kpis(kpis: list[dict[str, float]]) -> dict[str, float]:
    """Mean over episodes, NaN left out."""
    out = {}
    for name in kpis[0]:
        values = [row[name] for row in kpis if not math.isnan(row[name])]
        out[name] = float(np.mean(values)) if values else math.nan
    return out
