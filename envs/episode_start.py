"""How an episode starts: what every episode of a fleet starts with, and what its seeds draw.

What does not depend on a seed is written once per plant and copied: filling records field by field took longer than
drawing an episode.
"""

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..fleet.arbiter.state import ArbiterState, initial_state
from ..fleet.snapshot import Snapshot
from ..fleet.tables import DECODED_SHARE, NEVER_S
from ..fleet.topology import Fleet
from .events import event_times
from .limits import budget_series
from .plant_tables import PLANT_DOMAIN, PLANT_NODE, PLANT_SERVICE
from .scenario import PlantRanges
from .world import WORLD_RANGES, start_world

if TYPE_CHECKING:
    from .plant import Plant

PARAMETER_STREAM, FAULT_STREAM, EVENT_STREAM = 11, 12, 13
"""Seed streams: parameters, faults and event times are drawn apart from each other and from the load."""

BREAKER_CONSTANT_S = {"rack": 9.3, "main": 1.25}
"""Trip-curve constants by breaker kind (MODEL.md section 8)."""

CONTINUOUS_FRAC = 0.8
"""A breaker carries 80 % of its rating continuously (MODEL.md section 8)."""


class Start(NamedTuple):
    """One environment of a fleet before anything is drawn: rows to be copied, never written."""

    state: ArbiterState  # a batch of one
    node: np.ndarray  # (N,) PLANT_NODE
    domain: np.ndarray  # (D,) PLANT_DOMAIN
    service: np.ndarray  # (S,) PLANT_SERVICE
    told: Snapshot  # a batch of one
    budgets: dict[tuple[float, ...], tuple[np.ndarray, np.ndarray]]  # limits by the starts of their changes


BUDGETS_KEPT = 4
"""Scenarios whose budgets change at fixed times have one series of limits; drawn times hardly ever come again."""


def make_start(fleet: Fleet) -> Start:
    """What every episode of a fleet starts with."""
    static, state = fleet.node_static, initial_state(fleet, 1, assume_acked=True)
    node = np.zeros(len(static), PLANT_NODE)
    node["cap_w"] = state.node["cap_cmd_w"][0]
    node["pending_s"] = -1.0
    node["ack_seq"] = state.node["seq"][0]
    node["ceiling"] = 1.0
    node["stage"] = static["stage"]
    node["phi"] = 1.0
    domain = np.zeros(len(fleet.domains), PLANT_DOMAIN)
    for row, d in zip(domain, fleet.domains, strict=True):
        row["rating_w"] = d.breaker_w if d.breaker_w is not None else d.peak_w / CONTINUOUS_FRAC
        row["constant_s"] = BREAKER_CONSTANT_S[d.breaker_kind]
    service = np.zeros(len(fleet.services), PLANT_SERVICE)
    service["itl_request_s"] = 0.5 * fleet.service_static["itl_s"]
    told = Snapshot.unknown(fleet, 1)
    heard = told.node[0]
    heard["power_w"] = 0.0
    heard["demand_w"] = static["cap_max_w"]
    heard["util_frac"] = 0.5
    heard["clock_frac"] = 1.0
    heard["age_s"] = 0.0
    for name in ("cap_w", "ack_seq", "stage"):
        heard[name] = node[name]
    heard["moving_s"] = 0.0
    heard["is_up"] = 1
    heard["is_silent"] = 0
    heard["xid"] = 0
    told.domain["meter_w"] = np.nan
    told.domain["meter_age_s"] = NEVER_S
    for name in ("backlog_s", "active", "kv_frac", "reject_frac", "age_s"):
        told.service[name] = 0.0
    told.service["ttft_s"] = 0.2 * fleet.service_static["ttft_s"]
    told.service["itl_s"] = 0.5 * fleet.service_static["itl_s"]
    told.service["ttft_ok_frac"] = told.service["itl_ok_frac"] = 1.0
    return Start(state, node, domain, service, told, {})


@cache
def _ranges(plant: PlantRanges) -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
    """Names, lower and upper ends of the ranges that are drawn first, by name."""
    names, low, high = zip(*((n, *ends) for n, ends in sorted(plant.items()) if n not in WORLD_RANGES), strict=True)
    return names, low, high


def _bytes(table: np.ndarray) -> np.ndarray:
    """A table as one row of bytes per environment: NumPy copies records field by field."""
    return np.reshape(table, (len(table), -1), copy=False).view(np.uint8)


def _copy(table: np.ndarray, b: int, row: np.ndarray) -> None:
    """Copy one environment's records into a table."""
    _bytes(table)[b] = row.reshape(1, -1).view(np.uint8)[0]


def start_episode(plant: "Plant", start: Start, b: int, seed: int, fault_seed: int, parameter_seed: int) -> None:
    """Start an episode in environment `b` of a plant, whose load is there already.

    Args:
        plant: Its rows `b` are written.
        start: Of the plant's fleet.
        b: Which environment.
        seed: Draws event times.
        fault_seed: Draws faults.
        parameter_seed: Draws hidden parameters, and the noise of writes and telemetry.
    """
    fleet, scenario = plant.fleet, plant.scenario
    rng = np.random.default_rng([parameter_seed, PARAMETER_STREAM])
    fault_rng = np.random.default_rng([fault_seed, FAULT_STREAM])
    event_rng = np.random.default_rng([seed, EVENT_STREAM])
    p = plant.params[b]
    names, low, high = _ranges(scenario.plant)
    for name, value in zip(names, rng.uniform(low, high).tolist(), strict=True):
        p[name] = value
    p["fault_scale"] = scenario.fault_scale
    p["early_rejection"] = scenario.early_rejection
    p["slo_aware_admission"] = scenario.slo_aware_admission
    for name in ("prefix_hit_frac", "retry_frac", "retry_after_s"):
        p[name] = getattr(scenario.load, name)
    p["parameter_seed"] = int(rng.integers(2**62))
    p["fault_seed"] = int(fault_rng.integers(2**62))
    p["nominal_w"] = fleet.domain_static["peak_w"][0]
    p["warmup_s"] = scenario.warmup_s

    node, service, told = plant.node[b], plant.service[b], plant.snapshot
    for name in ("node", "domain", "pool", "service", "fleet"):
        _copy(getattr(plant.state, name), b, getattr(start.state, name)[0])
    _copy(plant.node, b, start.node)
    _copy(plant.domain, b, start.domain)
    _copy(plant.service, b, start.service)
    for table in (plant.totals, plant.plan.node, plant.plan.fleet):
        _bytes(table)[b] = 0
    budget_s = event_times(scenario.budget_events, event_rng)
    key = tuple(budget_s)
    series = start.budgets.get(key)
    if series is None:
        series = budget_series(fleet, scenario.budget_events, budget_s, plant.ticks)
        if len(start.budgets) < BUDGETS_KEPT:
            start.budgets[key] = series
    plant.set_limits(b, series, key in start.budgets)
    service["context"] = plant.prompt_tok[b, 0] + DECODED_SHARE * plant.output_tok[b, 0]
    start_world(p, node, plant.domain[b], service, scenario, fleet, plant.profiles, budget_s, rng, event_rng, fault_rng)

    for name in ("node", "domain", "service"):
        _copy(getattr(told, name), b, getattr(start.told, name)[0])
    told.node["temp_c"][b] = node["temp_c"]
    limits = told.domain[b]
    limits["limit_w"], limits["next_limit_w"], limits["next_in_s"] = series[1][0].T
    heard = told.service[b]
    heard["arrival_rps"] = plant.arrivals[b, : plant.control_ticks].mean(0) / fleet.timing.tick_s
    heard["prompt_tokens"], heard["output_tokens"] = plant.prompt_tok[b, 0], plant.output_tok[b, 0]
