"""What happens to an environment beside serving, once per tick: events, faults, weather and heat, training."""

import numpy as np

from ..fleet.topology import Fleet
from .compiled import kernel
from .event_dynamics import event_tick, schedule
from .events import event_times
from .faults import fault_tick, start_faults
from .scenario import Scenario
from .thermal import start_temperatures, thermal_tick
from .tiles import gather, land
from .training_dynamics import train_tick
from .training_jobs import start_training

WORLD_RANGES = ("hot_spot_c", "rise_scale")
"""Ranges drawn here, after all others, so that the other parameters of a seed stay what they were before these came."""


def start_world(
    p: np.void,
    node: np.ndarray,
    domain: np.ndarray,
    service: np.ndarray,
    scenario: Scenario,
    fleet: Fleet,
    profiles: np.ndarray,
    budget_s: list[float],
    rng: np.random.Generator,
    event_rng: np.random.Generator,
    fault_rng: np.random.Generator,
) -> None:
    """Set one environment's events, faults, temperatures and gangs at the start of an episode.

    Args:
        p: Row of `PLANT_PARAMS`, its ranges drawn but for `WORLD_RANGES`.
        node: Rows of `PLANT_NODE`, shape (N,).
        domain: Rows of `PLANT_DOMAIN` with their ratings, shape (D,).
        service: Rows of `PLANT_SERVICE`, shape (S,).
        scenario: What happens.
        fleet: Where.
        profiles: `hardware.PROFILE`, shape (S, K).
        budget_s: Starts of `scenario.budget_events`.
        rng: The generator of the parameters, after they were drawn: hot spots, days and phases of training.
        event_rng: Draws the starts of the other events.
        fault_rng: The generator of the fault seed.
    """
    for name in WORLD_RANGES:
        p[name] = rng.uniform(*getattr(scenario.plant, name))
    domain["full_rating_w"] = domain["rating_w"]
    p["event_count"] = 0
    if others := scenario.plant_events:
        starts = dict(zip(map(id, scenario.budget_events), budget_s, strict=True))
        drawn = event_times(others, event_rng)
        schedule(p, fleet, [(e, starts.get(id(e), t)) for e, t in zip(others, drawn, strict=True)])
    start_faults(node, fleet, fault_rng)
    start_temperatures(p, node, fleet, scenario.weather, scenario.seconds, rng)
    start_training(p, node, service, scenario.training, fleet, profiles, rng)


@kernel
def world_tick(
    b, tick, tick_s, time_s, measured, node_static, domain_static, profiles, params, node, domain, service, totals,
    tiles,
):  # fmt: skip
    """Everything beside serving, for environment `b`, before the physics of a tick.

    Faults, events and training are rare and work on the nodes' records; where there are none, and nothing is broken,
    the nodes stay in their columns.
    """
    pr = params[b]
    if pr.event_count > 0 or pr.fault_scale > 0.0 or tiles.broken[0] != 0:
        land(b, node, tiles)
        event_tick(b, tick, tick_s, measured, node_static, domain_static, params, node, domain, service, totals)
        fault_tick(b, tick, tick_s, measured, node_static, profiles, params, node, service, totals)
        gather(b, node_static, profiles, params, node, tiles)
    thermal_tick(b, time_s, params, tiles)
    if pr.has_training != 0:
        land(b, node, tiles)
        train_tick(b, tick_s, time_s, measured, node_static, params, node, service, totals)
        gather(b, node_static, profiles, params, node, tiles)
