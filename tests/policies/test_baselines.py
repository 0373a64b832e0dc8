"""Baselines bid in range, row by row, and keep their heads when telemetry is missing."""

import numpy as np
import pytest

from flyball import registry
from flyball.envs.core import Core
from flyball.envs.scenario import load_scenario
from flyball.fleet.observe import observe
from flyball.fleet.snapshot import Snapshot


def core_of(policy, scenario="multi-service", batch=3):
    loaded = load_scenario(scenario)
    core = Core(loaded, registry.baseline(policy, loaded), batch=batch)
    core.reset(np.arange(batch))
    for _ in range(5):
        core.step(core.base)
    return core


@pytest.mark.parametrize("name", registry.BASELINES)
def test_bids_are_finite_and_in_range(name):
    """Every bid of every baseline lies in [-1, 1]."""
    core = core_of(name)
    for array in (core.base.pool, core.base.node, core.base.fleet):
        assert np.isfinite(array).all() and (np.abs(array) <= 1).all() and array.dtype == np.float32


@pytest.mark.parametrize("name", registry.BASELINES)
def test_bids_do_not_depend_on_the_batch(name):
    """A row's bids are bit for bit those of the row alone."""
    core = core_of(name)
    policy, plant = core.background, core.plant
    memory = policy.start(3)
    whole, _ = policy.bid(plant.snapshot, core.observation, memory)
    for b in range(3):
        alone, _ = policy.bid(plant.snapshot.env(b), core.observation, None if memory is None else memory[b : b + 1])
        assert whole.pool[b].tobytes() == alone.pool[0].tobytes()


@pytest.mark.parametrize("name", registry.BASELINES)
def test_a_snapshot_of_which_nothing_is_known_gives_bids(name):
    """With every value missing a baseline still bids, finitely."""
    core = core_of(name, batch=1)
    unknown = Snapshot.unknown(core.fleet)
    seen = observe(core.fleet, core.plant.state, unknown)
    bids, _ = core.background.bid(unknown, seen, core.background.start(1))
    assert np.isfinite(bids.pool).all()


def test_the_tuned_table_names_known_constants():
    """Every entry of the tuned table builds its baseline."""
    scenario = load_scenario("bursty")
    for name, families in registry.tuned()["baselines"].items():
        for row in families.values():
            registry.baseline(name, scenario, row["params"])


def test_greedy_gives_more_watts_to_the_stage_with_more_to_do():
    """Where watts are scarce, shorter answers move watts from decode to prefill."""
    core = core_of("greedy", "steady", batch=1)
    core.background = registry.baseline("greedy", core.scenario, {})
    policy, snapshot = core.background, core.plant.snapshot.copy()
    snapshot.domain["limit_w"][:, 0] = 85_000
    memory = policy.start(1)
    calm, _ = policy.bid(snapshot, core.observation, memory)
    snapshot.service["output_tokens"] *= 0.3
    busy, _ = policy.bid(snapshot, core.observation, memory)
    lead = lambda bids: float(bids.pool[0, 0, 0] - bids.pool[0, 1, 0])  # noqa: E731
    assert lead(busy) > lead(calm)
