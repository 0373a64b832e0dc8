"""Small batches of shipped scenarios."""

import numpy as np
import pytest

from flyball import registry
from flyball.envs.core import Core
from flyball.envs.scenario import load_scenario


@pytest.fixture
def make_core():
    """A core of a scenario with a background policy, already reset with seeds 0, 1, ..."""

    def make(name="bursty", policy="proportional", batch=2, overrides=(), seeds=None, **kwargs) -> Core:
        scenario = load_scenario(name, overrides)
        core = Core(scenario, registry.baseline(policy, scenario), batch=batch, **kwargs)
        core.reset(np.arange(batch) if seeds is None else np.asarray(seeds))
        return core

    return make


def play(core, steps):
    """Let the background play; returns the core."""
    for _ in range(steps):
        core.step(core.base)
    return core
