"""The shadow log replayed in the plant: the incumbent's recorded commands against the policy, on the same load.

Both sides meet the same reconstructed load, the same limits, the same nodes down and the same draw of the plant's
uncertain parameters, so that their difference is a paired one. How far the plant is right shows in the replay of the
incumbent, whose true power and latency the log holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import registry
from ...envs.scenario import Scenario
from ...policies.base import Policy
from ...serving.assurance import NeutralPolicy
from . import check
from .log import Shadow
from .side import load_of, plant_of, run_incumbent, run_policy, scenario_of, starting
from .stretch import expand, pieces

SEED = 2_000_000
"""First seed of the draws; apart from those of training, tuning and evaluation."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Replayed:
    """Draws of all stretches, in the order of draws.

    Attributes:
        incumbent, proposed: KPIs, one dict per draw.
        params: The plant's uncertain parameters, one dict per draw.
        check: How the replay of the incumbent compares with the log.
        series: {"time_s", "logged_power_w", "power_p5_w", …} of the first stretch, for the chart of the check.
        replayed_s: Time of the log that at least one draw covers.
        stretches: Parts of the log that were replayed.
    """

    incumbent: list[dict[str, float]]
    proposed: list[dict[str, float]]
    params: list[dict[str, float]]
    check: dict[str, Any]
    series: dict[str, np.ndarray]
    replayed_s: float
    stretches: int


def replay(shadow: Shadow, windows: int, progress: Progress) -> Replayed:
    """Replay both sides over `windows` draws of parameters and load noise.

    Raises:
        BadInput: if the policy of the log cannot be made here.
    """
    found = pieces(shadow)
    taken = [
        found[i * len(found) // windows] if len(found) > windows else found[i % len(found)] for i in range(windows)
    ]
    chosen = [p for p in found if p in taken]
    incumbent, proposed = [], []
    params: list[dict[str, float]] = []
    checks: list[dict[str, Any]] = []
    series: dict[str, np.ndarray] = {}
    for i, piece in enumerate(chosen):
        share = i / len(chosen)
        seeds = np.array([SEED + w for w in range(windows) if taken[w] == piece])
        stretch = expand(shadow, piece)
        fleet = starting(shadow.fleet, stretch)
        load = load_of(stretch, fleet, seeds)
        scenario = scenario_of(fleet, stretch)
        progress("replaying the incumbent", share)
        plant = plant_of(scenario, stretch, load, seeds)
        done = run_incumbent(plant, stretch)
        params += [{n: float(row[n]) for n in scenario.plant} for row in plant.params]
        progress("replaying the policy", share + 0.5 / len(chosen))
        other = run_policy(plant_of(scenario, stretch, load, seeds), stretch, make_policy(shadow.policy, scenario))
        incumbent += done.kpis
        proposed += other.kpis
        checks.append(check.compare(shadow, stretch, done))
        if not series:
            series = check.series(shadow, stretch, done, other)
    covered_s = sum(float(shadow.log.time_s[p][-1] - shadow.log.time_s[p][0]) for p in chosen)
    return Replayed(incumbent, proposed, params, check.summary(checks, shadow.fleet), series, covered_s, len(chosen))


def make_policy(record: dict[str, Any], scenario: Scenario) -> Policy:
    """The policy that a log names, with the constants that it had.

    Raises:
        BadInput: a policy file that is not there any more, or a name that this version does not know.
    """
    name = record["name"]
    if name == NeutralPolicy.name:
        return NeutralPolicy(scenario.fleet)
    if name in registry.BASELINES and "params" in record:
        return registry.baseline(name, scenario, record["params"])
    return registry.policy(name, scenario)
