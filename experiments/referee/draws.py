"""Plant draws in which the site file lies: true non-GPU watts around the declared bound, and biased meters.

`python -m flyball.experiments.referee.draws [--draws N] [--json]` plays scenarios once per draw and reports breaker
trips and the time and depth above limits in force. A draw above 1.0 x the declared bound breaks an assumption of
docs/specification.md: then only meters can help, and this is what shows whether they do.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import numpy as np

from ... import registry
from ...console import progress_bar
from ...envs.core import Core
from ...envs.scenario import load_scenario
from ...fleet.errors import BadInput

SCENARIOS = ("curtailment", "bursty")
POLICIES = ("best-baseline", "random")
NON_GPU_FRAC = (0.85, 1.25)
METER_BIAS_FRAC = (-0.02, 0.02)
"""Twice class 1 of IEC 62053-21."""

BATCH = 50
DEPTH_EDGES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Depth above a limit, as a share of it: left edges of the histogram's bins; the last one is open."""


def draw(count: int, seed: int = 0, progress: Callable[[str, float], None] | None = None) -> dict[str, Any]:
    """Play `count` draws, evenly over scenarios and policies.

    Returns:
        {"draws", "seed", "rows": [{"scenario", "policy", "declared_holds", "draws", "breaker_trips", "trip_draws",
        "draws_above", "seconds_above", "max_depth_frac", "depth_s"}]}: one row per scenario, policy, and whether the
        truth stayed within the declared bound. `seconds_above` sums, over draws and domains, the seconds in which a
        domain drew more than its limit in force; `depth_s` are the same seconds by `DEPTH_EDGES`.

    Raises:
        BadInput: if there are fewer draws than cases.
    """
    cases = [(s, p) for s in SCENARIOS for p in POLICIES]
    if count < len(cases):
        raise BadInput(f"--draws must be at least {len(cases)}: one per scenario and policy")
    rows, done = [], 0
    for k, (scenario, policy) in enumerate(cases):
        share = count * (k + 1) // len(cases) - count * k // len(cases)
        parts = []
        for start in range(0, share, BATCH):
            size = min(BATCH, share - start)
            parts.append(_play(scenario, policy, seed + 1_000_000 * k + start, size))
            done += size
            if progress:
                progress(f"{scenario}, {policy}", done / count)
        is_true, trips, seconds, depth = (np.concatenate(column) for column in zip(*parts, strict=True))
        for holds in (True, False):
            rows.append(_row(scenario, policy, holds, is_true == holds, trips, seconds, depth))
    return {"draws": count, "seed": seed, "depth_edges_frac": list(DEPTH_EDGES), "rows": rows}


def _row(scenario, policy, holds, here, trips, seconds, depth) -> dict[str, Any]:
    return {
        "scenario": scenario,
        "policy": policy,
        "declared_holds": holds,
        "draws": int(here.sum()),
        "breaker_trips": int(trips[here].sum()),
        "trip_draws": int((trips[here] > 0).sum()),
        "draws_above": int((seconds[here].sum(-1) > 0).sum()),
        "seconds_above": float(seconds[here].sum()),
        "max_depth_frac": float(depth[here].max(initial=0.0)),
        "depth_s": [float(x) for x in seconds[here].sum(0)],
    }


def _play(scenario_name: str, policy_name: str, seed: int, size: int) -> tuple[np.ndarray, ...]:
    """One batch; whether the declared bound holds (K,), trips (K,), seconds by depth (K, bins), largest depth (K,)."""
    scenario = load_scenario(scenario_name)
    # the scenario's own check keeps this at or below 1: here the site file is meant to lie
    plant_ranges = replace(scenario.plant, non_gpu_frac=NON_GPU_FRAC, meter_bias_frac=METER_BIAS_FRAC)
    fleet = scenario.fleet
    scenario = replace(scenario, plant=plant_ranges)
    scenario.__dict__["fleet"] = fleet
    core = Core(scenario, registry.policy(policy_name, scenario), batch=size, block="test")
    core.reset(np.arange(seed, seed + size))
    plant = core.plant
    seconds = np.zeros((size, len(DEPTH_EDGES)))
    deepest = np.zeros(size)
    for _ in range(plant.ticks // plant.control_ticks):
        for _ in range(plant.control_ticks):
            plant.step(core.base, 1)
            tick = np.minimum(plant.tick - 1, plant.ticks)
            limit = plant.limits[np.arange(size), tick, :, 1].astype(float)
            over = plant.domain["power_w"] / limit - 1.0
            deepest = np.maximum(deepest, over.max(-1))
            for b, d in np.argwhere(over > 0.0):
                seconds[b, np.searchsorted(DEPTH_EDGES, over[b, d], side="right") - 1] += fleet.timing.tick_s
        core._look()
    trips = plant.totals["breaker_trips"].copy()
    return plant.params["non_gpu_frac"] <= 1.0, trips, seconds, np.maximum(deepest, 0.0)


@click.command()
@click.option("--draws", type=int, default=1000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(draws: int, seed: int, as_json: bool) -> None:
    """Breaker trips and time above limits when declared non-GPU bounds are wrong."""
    import json

    from ...console import table

    with progress_bar("draws", as_json) as bar:
        try:
            result = draw(draws, seed, bar)
        except BadInput as e:
            click.echo(str(e), err=True)
            raise SystemExit(2) from None
    if as_json:
        click.echo(json.dumps(result))
        return
    columns = [k for k in result["rows"][0] if k != "depth_s"]
    table(f"{result['draws']} draws", columns, result["rows"])


if __name__ == "__main__":
    main()
