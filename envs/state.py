"""Saving and restoring: everything of a core that has memory, as copies.

`save_plant` and `restore_plant` are all that knows the plant's arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..fleet.bids import Bids
from ..fleet.observe import Observation
from .core import Core
from .plant import Plant

PLANT_ARRAYS = (
    "params", "tick", "time_s", "arrivals", "prompt_tok", "output_tok", "ca2", "cs2", "limits", "told", "node",
    "domain", "service", "totals", "ttft", "itl",
)  # fmt: skip
"""The plant's own arrays, batch first, that an episode fills or changes."""


@dataclass(frozen=True)
class CoreState:
    """Everything of some environments that has memory, as copies.

    Attributes:
        plant: What `save_plant` gave.
        memory: Of the background policy; None or an array, batch first.
        base: The background's bids of now.
        observation: What was last seen.
        load_scale: Superposition factor of a load file.
        load_source: Where the load came from.
    """

    plant: Any
    memory: np.ndarray | None
    base: Bids
    observation: Observation
    load_scale: float
    load_source: str


def plant_tables(plant: Plant) -> dict[str, np.ndarray]:
    """Every array of the plant that has memory, by name: views."""
    out = {name: getattr(plant, name) for name in PLANT_ARRAYS}
    for part in ("node", "domain", "service"):
        out[f"told_{part}"] = getattr(plant.snapshot, part)
    for part in ("node", "domain", "pool", "service", "fleet"):
        out[f"state_{part}"] = getattr(plant.state, part)
    out["plan_node"], out["plan_fleet"] = plant.plan.node, plant.plan.fleet
    if plant.batch_jobs is not None:
        out["jobs"], out["job_account"] = plant.batch_jobs.job, plant.batch_jobs.account
    return out


def save_plant(plant: Plant, envs: np.ndarray) -> dict[str, np.ndarray]:
    """Copies of the plant's rows `envs`."""
    return {name: table[envs] for name, table in plant_tables(plant).items()}


def restore_plant(plant: Plant, saved: dict[str, np.ndarray], envs: np.ndarray) -> None:
    """Write saved rows into the rows `envs`; one saved row fills them all."""
    for name, table in plant_tables(plant).items():
        table[envs] = saved[name]


def save(core: Core, envs: Sequence[int] | np.ndarray | None = None) -> CoreState:
    """Copy everything that has memory.

    Args:
        core: A core that was reset.
        envs: Which environments; all by default.
    """
    assert core.observation is not None, "reset first"
    index = np.arange(core.batch) if envs is None else np.asarray(envs)
    seen = core.observation
    return CoreState(
        save_plant(core.plant, index),
        None if core.memory is None else core.memory[index],
        Bids(core.base.pool[index], core.base.node[index], core.base.fleet[index]),
        Observation(*(getattr(seen, f)[index] for f in ("pool", "node", "fleet", "pool_mask", "node_mask"))),
        core.load_scale,
        core.load_source,
    )


def restore(core: Core, state: CoreState, envs: Sequence[int] | np.ndarray | None = None) -> None:
    """Put a saved state back.

    Args:
        core: A core of the same scenario, fleet and background.
        state: What `save` gave; a state of one environment fills all of `envs`.
        envs: Which environments; all by default.
    """
    index = np.arange(core.batch) if envs is None else np.asarray(envs)
    restore_plant(core.plant, state.plant, index)
    if core.observation is None or len(index) == core.batch:
        # whole arrays: copies, so that a state can be restored again
        spread = (lambda a: np.repeat(a, core.batch, 0)) if len(state.base.pool) == 1 else (lambda a: a.copy())
        core.memory = None if state.memory is None else spread(state.memory)
        core.base = Bids(*(spread(a) for a in (state.base.pool, state.base.node, state.base.fleet)))
        seen = state.observation
        core.observation = Observation(*(spread(a) for a in vars(seen).values()))
    else:
        if state.memory is not None:
            core.memory[index] = state.memory
        for name in ("pool", "node", "fleet"):
            getattr(core.base, name)[index] = getattr(state.base, name)
            getattr(core.observation, name)[index] = getattr(state.observation, name)
    core.load_scale, core.load_source = state.load_scale, state.load_source
