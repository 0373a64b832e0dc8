"""One side's replay of a stretch of the log: the incumbent's commands, or a policy in their place."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...envs.load import Load, LoadSpec, superpose
from ...envs.plant import Plant
from ...envs.scenario import Scenario
from ...envs.traces import RateTable
from ...fleet.observe import observe
from ...fleet.tables import PARKED
from ...fleet.topology import STAGE_NAMES, Fleet
from ...policies.base import Policy
from ..incumbent import command
from .stretch import Stretch

WARMUP_S = 60.0
"""The plant starts with empty queues: left out of every figure."""


@dataclass(frozen=True)
class Recorded(Scenario):
    """A scenario whose site comes from the log instead of a file."""

    recorded: Fleet | None = None

    @property
    def fleet(self) -> Fleet:  # type: ignore[override]
        assert self.recorded is not None
        return self.recorded


@dataclass(frozen=True)
class Side:
    """What one side's replay of one stretch gave.

    Attributes:
        kpis: One dict per draw.
        power_w, gpu_w: Per draw and control interval, shape (B, K).
        ttft_s, itl_s: Shape (B, K, S).
    """

    kpis: list[dict[str, float]]
    power_w: np.ndarray
    gpu_w: np.ndarray
    ttft_s: np.ndarray
    itl_s: np.ndarray


def starting(fleet: Fleet, stretch: Stretch) -> Fleet:
    """The site with its nodes in the stages that they had at the start of the stretch."""
    nodes = tuple(
        replace(n, stage=STAGE_NAMES[stage]) if stage != PARKED else n
        for n, stage in zip(fleet.nodes, stretch.stage[0].tolist(), strict=True)
    )
    return replace(fleet, nodes=nodes)


def scenario_of(fleet: Fleet, stretch: Stretch) -> Recorded:
    """The stretch as a scenario on the site of the log."""
    seconds = stretch.ticks * fleet.timing.tick_s
    return Recorded("shadow", "shadow", "", "", seconds, WARMUP_S, recorded=fleet)


def load_of(stretch: Stretch, fleet: Fleet, seeds: np.ndarray) -> Load:
    """Requests drawn from the recorded rates: every draw has its own noise."""
    timing = fleet.timing
    steps = round(stretch.ticks * timing.tick_s / timing.control_s)
    at = stretch.row_of_tick[:: round(timing.control_s / timing.tick_s)][:steps]
    spec, loads = LoadSpec(scale=1.0), []
    names = [s.name for s in fleet.services]
    for s, name in enumerate(names):
        rate, prompt, output = stretch.rates[at, s].T
        table = RateTable(
            np.arange(steps) * timing.control_s,
            rate,
            np.maximum(prompt, 1.0),
            np.maximum(output, 1.0),
            "shadow log",
            "",
        )
        if rate.sum() <= 0:
            loads.append(_silence(stretch.ticks, len(seeds), spec, timing.tick_s))
            continue
        own = [int(seed) * len(names) + s for seed in seeds]
        loads.append(superpose(table, spec, [1.0], stretch.ticks * timing.tick_s, timing.tick_s, own, [name]))
    joined: dict[str, Any] = {
        n: np.concatenate([getattr(load, n) for load in loads], -1)
        for n in ("arrivals", "prompt_tokens", "output_tokens", "ca2", "cs2")
    }
    return replace(loads[0], **joined)


def _silence(ticks: int, batch: int, spec: LoadSpec, tick_s: float) -> Load:
    """A service to which nothing came."""
    shape, one = (batch, ticks, 1), (batch, 1)
    means = np.full(shape, spec.prompt_tokens), np.full(shape, spec.output_tokens)
    return Load(
        np.zeros(shape), *means, np.full(one, spec.ca2), np.full(one, spec.prompt_cv**2), tick_s, "shadow log", 1.0
    )


def plant_of(scenario: Recorded, stretch: Stretch, load: Load, seeds: np.ndarray) -> Plant:
    """The plant at the start of a stretch, under the limits that the log has."""
    plant = Plant(scenario, scenario.fleet, len(seeds))
    plant.reset(seeds, load)
    plant.limits[:], plant.told[:] = stretch.limits, stretch.told
    plant.limits_now()
    return plant


class _Record:
    """What a replay shows, once per control interval."""

    def __init__(self, plant: Plant):
        self.plant = plant
        self.columns: dict[str, list[np.ndarray]] = {n: [] for n in ("power_w", "gpu_w", "ttft_s", "itl_s")}

    def take(self) -> None:
        told = self.plant.snapshot
        self.columns["power_w"].append(self.plant.domain["power_w"][:, 0].copy())
        self.columns["gpu_w"].append(np.nansum(told.node["power_w"], -1))
        for name in ("ttft_s", "itl_s"):
            self.columns[name].append(told.service[name].copy())

    def side(self) -> Side:
        arrays = {n: np.stack(v, 1) for n, v in self.columns.items()}
        return Side([self.plant.kpis(b) for b in range(self.plant.batch)], **arrays)


def _hold_down(plant: Plant, is_down: np.ndarray) -> None:
    """Keep nodes down through the coming tick."""
    if is_down.any():
        plant.node["down_s"][:, is_down] = 2.0 * plant.fleet.timing.tick_s
        plant.node["agent_down"][:, is_down] = 1


def run_incumbent(plant: Plant, stretch: Stretch) -> Side:
    """Play the caps and stages that the log has."""
    record = _Record(plant)
    plant.node["cap_w"] = plant.snapshot.node["cap_w"] = stretch.cap_w[0]
    for k in range(stretch.ticks):
        _hold_down(plant, stretch.is_down[k])
        plant.tick_under(command(plant, stretch.cap_w[k], stretch.stage[k]))
        if (k + 1) % plant.control_ticks == 0:
            record.take()
    return record.side()


def run_policy(plant: Plant, stretch: Stretch, policy: Policy) -> Side:
    """Play what a policy bids and the arbiter makes of it."""
    record, memory = _Record(plant), policy.start(plant.batch)
    step = plant.control_ticks
    for k in range(0, stretch.ticks, step):
        bids, memory = policy.bid(plant.snapshot, observe(plant.fleet, plant.state, plant.snapshot), memory)
        if stretch.is_down[k : k + step].any():
            for j in range(k, k + step):
                _hold_down(plant, stretch.is_down[j])
                plant.step(bids, 1)
        else:
            plant.step(bids)
        record.take()
    return record.side()
