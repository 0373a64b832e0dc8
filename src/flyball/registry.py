"""Names to things: policies by name, scenarios by name, environments by id.

Policies never import environments: what a baseline needs of the plant (a model of the hardware) is injected here.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .fleet.errors import BadInput

if TYPE_CHECKING:
    from .envs.core import Core
    from .envs.scenario import Scenario
    from .policies.base import Policy

TUNED = Path(__file__).parent / "policies" / "baselines" / "tuned.json"
"""Constants found by `flyball tune`, by baseline and scenario family, with the budget that found them."""

MIXTURE = "mixture"
"""Stands for a family where constants were tuned on several at once: what a policy for all of them corrects."""

PRETRAINED = Path(__file__).parent / "policies" / "pretrained"


def _classes() -> dict[str, Callable[..., "Policy"]]:
    from .policies.baselines.clairvoyant import Clairvoyant
    from .policies.baselines.greedy import Greedy
    from .policies.baselines.pi import ProportionalIntegral
    from .policies.baselines.proportional import Proportional
    from .policies.baselines.random_bids import Random
    from .policies.baselines.reactive import Reactive
    from .policies.baselines.rollout import Rollout
    from .policies.baselines.static_table import StaticTable
    from .policies.baselines.three_band import ThreeBand
    from .policies.baselines.three_phase import ThreePhase
    from .policies.baselines.uniform import Uniform

    return {
        "uniform": Uniform,
        "static": StaticTable,
        "proportional": Proportional,
        "greedy": Greedy,
        "pi": ProportionalIntegral,
        "three-band": ThreeBand,
        "reactive": Reactive,
        "three-phase": ThreePhase,
        "rollout": Rollout,
        "clairvoyant": Clairvoyant,
        "random": Random,
    }


BASELINES = (
    "uniform",
    "static",
    "proportional",
    "greedy",
    "pi",
    "three-band",
    "reactive",
    "three-phase",
    "rollout",
    "clairvoyant",
    "random",
)
NEEDS_MODEL = ("greedy",)
NEEDS_SIMULATOR = ("rollout", "clairvoyant")
"""Baselines that think with copies of the simulated plant: they run in simulation alone."""

CANDIDATES = ("static", "proportional", "greedy", "uniform", "pi", "three-band", "reactive", "three-phase")
"""Baselines that compete for `best-baseline`: those that can run live, and be the base of a learned policy."""


@cache
def tuned() -> dict[str, Any]:
    """The tuned constants: {"baselines": {name: {family: {"params", "score", ...}}}, "best": {family: name}}."""
    return json.loads(TUNED.read_text()) if TUNED.exists() else {"baselines": {}, "best": {}}


def baseline(name: str, scenario: "Scenario", params: dict[str, float] | None = None) -> "Policy":
    """A baseline by name with its constants: given, else tuned for the scenario's family, else its defaults.

    Raises:
        BadInput: an unknown name or constant.
    """
    from dataclasses import fields

    classes = _classes()
    if name not in classes:
        raise BadInput(f"no policy {name!r}; use {', '.join(classes)}, champion, best-baseline or an .onnx file")
    if params is None:
        params = tuned()["baselines"].get(name, {}).get(scenario.family, {}).get("params", {})
    cls = classes[name]
    known = {f.name for f in fields(cls)} - {"fleet", "model", "name", "base", "simulator"}  # type: ignore[arg-type]
    for key in params:
        if key not in known:
            raise BadInput(f"{name} has no constant {key!r}; it has {', '.join(sorted(known)) or 'none'}")
    extra: dict[str, Any] = {}
    if name in NEEDS_MODEL:
        from .envs.model import PlantModel

        extra["model"] = PlantModel(scenario.fleet)
    if name in NEEDS_SIMULATOR:
        from .envs.branch import PlantSimulator

        extra |= {"base": baseline("greedy", scenario), "simulator": PlantSimulator(scenario)}
    return cls(fleet=scenario.fleet, **extra, **params)


def best_baseline_name(scenario: "Scenario") -> str:
    """Name of the best tuned baseline of the scenario's family, chosen on validation windows."""
    return tuned()["best"].get(scenario.family, "greedy")


def base_of(name: str, scenarios: "Sequence[Scenario]") -> tuple[str, dict[str, float]]:
    """The baseline that a learned policy corrects, and its constants.

    Those of one family are tuned for it; for several, for the mixture (RL.md lesson 4: what is tuned for one family
    can lose a third on another).

    Args:
        name: A baseline, or best-baseline.
        scenarios: What the policy is trained on.
    """
    table, families = tuned(), {s.family for s in scenarios}
    family = scenarios[0].family if len(families) == 1 or MIXTURE not in table["best"] else MIXTURE
    base = table["best"].get(family, "greedy") if name == "best-baseline" else name
    return base, table["baselines"].get(base, {}).get(family, {}).get("params", {})


def champion_path() -> Path:
    """The gated policy that ships in the package.

    Raises:
        BadInput: if none does.
    """
    found = sorted(PRETRAINED.glob("champion*.onnx"))
    if not found:
        raise BadInput("this build ships no champion policy; train one with: flyball train demo --out DIR")
    return found[-1]


def policy(name: str, scenario: "Scenario") -> "Policy":
    """A policy by the names of the command-line contract: a baseline, an ONNX file, champion, best-baseline.

    Raises:
        BadInput: unknown name, unreadable file, or a file made for another schema, baseline or control interval.
    """
    if name == "best-baseline":
        return baseline(best_baseline_name(scenario), scenario)
    if name == "champion" or name.endswith(".onnx"):
        from .policies.onnx import OnnxPolicy

        path = champion_path() if name == "champion" else Path(name)
        return OnnxPolicy.load(path, scenario.fleet, lambda base, params: baseline(base, scenario, params), name)
    return baseline(name, scenario)


def live_policy(name: str, scenario: "Scenario") -> "Policy":
    """`policy`, where there is a real site in place of the plant.

    Raises:
        BadInput: as `policy`, and for one that thinks with copies of the simulated plant.
    """
    if name not in NEEDS_SIMULATOR:
        made = policy(name, scenario)
        base = getattr(made, "baseline", made)
        if base.name not in NEEDS_SIMULATOR:
            return made
        name = f"{name} (on {base.name})"
    raise BadInput(
        f"policy {name} plays copies of the simulated plant and cannot run live; use champion, best-baseline or one of "
        f"{', '.join(CANDIDATES)}"
    )


def make_core(scenario: "Scenario", channels, background: str | None = None, **kwargs) -> "Core":
    """A batched core of a scenario with its background policy."""
    from .envs.core import Core

    return Core(scenario, policy(background or scenario.background, scenario), channels, **kwargs)


def _core_for(env_id: str, scenario: str, action: str, batch: int, overrides, **kwargs) -> "Core":
    from .envs.core import CHANNELS
    from .envs.scenario import load_scenario

    if action not in ("bids", "residual"):
        raise ValueError(f'action is {action!r}; use "bids" or "residual"')
    return make_core(
        load_scenario(scenario, overrides),
        CHANNELS[env_id],
        batch=batch,
        residual=action == "residual",
        has_arbiter=env_id != "PowerRaw-v0",
        **kwargs,
    )


def make_env(env_id="Power-v0", scenario="bursty", obs="flat", action="bids", render_mode=None, overrides=(), **kwargs):
    """A single environment; what `gym.make` calls."""
    from .envs.environments import ENVIRONMENTS

    return ENVIRONMENTS[env_id](_core_for(env_id, scenario, action, 1, overrides, **kwargs), obs, render_mode, env_id)


def make_vector_env(
    env_id="Power-v0",
    num_envs=8,
    scenario="bursty",
    obs="flat",
    action="bids",
    overrides=(),
    is_staggered=False,
    render_mode=None,
    autoreset="same_step",
    **kwargs,
):
    """A vector environment; what `gym.make_vec` calls."""
    from .envs.vector_env import FlyballVectorEnv

    core = _core_for(env_id, scenario, action, num_envs, overrides, **kwargs)
    return FlyballVectorEnv(core, obs, is_staggered, render_mode, env_id, autoreset)
