"""Baselines bid in range, row by row, and keep their heads when telemetry is missing."""

import dataclasses

import numpy as np
import pytest

from flyball import registry
from flyball.envs.core import Core
from flyball.envs.episodes import run_episodes
from flyball.envs.model import PlantModel
from flyball.envs.scenario import SCENARIOS, load_scenario
from flyball.fleet.observe import observe
from flyball.fleet.snapshot import Snapshot


def core_of(policy, scenario="multi-service", batch=3):
    loaded = load_scenario(scenario)
    core = Core(loaded, registry.baseline(policy, loaded), batch=batch)
    core.reset(np.arange(batch))
    for _ in range(5):
        core.step(core.base)
    return core


QUICK = tuple(name for name in registry.BASELINES if name not in registry.NEEDS_SIMULATOR)
"""Baselines that need no plant to think with; the others have tests of their own."""

SHIPPED = sorted(path.stem for path in SCENARIOS.glob("*.toml"))


@pytest.mark.parametrize("scenario", SHIPPED)
@pytest.mark.parametrize("name", QUICK)
def test_bids_are_finite_and_in_range(name, scenario):
    """Every bid of every baseline lies in [-1, 1], in every scenario, with its default constants."""
    loaded = load_scenario(scenario)
    core = Core(loaded, registry.baseline(name, loaded, {}), batch=2)
    core.reset([0, 1])
    for _ in range(12):
        core.step(core.base)
        for array in (core.base.pool, core.base.node, core.base.fleet):
            assert np.isfinite(array).all() and (np.abs(array) <= 1).all()


@pytest.mark.parametrize("name", registry.BASELINES)
def test_bids_are_single_precision_in_range(name):
    """Bids are float32 within [-1, 1], whatever the constants that were tuned."""
    core = core_of(name)
    for array in (core.base.pool, core.base.node, core.base.fleet):
        assert np.isfinite(array).all() and (np.abs(array) <= 1).all() and array.dtype == np.float32


@pytest.mark.parametrize("name", QUICK)
def test_bids_do_not_depend_on_the_batch(name):
    """A row's bids are bit for bit those of the row alone."""
    core = core_of(name)
    policy, plant = core.background, core.plant
    memory = policy.start(3)
    whole, _ = policy.bid(plant.snapshot, core.observation, memory)
    for b in range(3):
        seen = observe(core.fleet, core.plant.state.env(b), plant.snapshot.env(b))
        alone, _ = policy.bid(plant.snapshot.env(b), seen, None if memory is None else memory[b : b + 1])
        assert whole.pool[b].tobytes() == alone.pool[0].tobytes()


@pytest.mark.parametrize("name", QUICK)
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
    snapshot.domain["limit_w"][:, 0] = 100_000  # below, either stage asks for more than its watts can carry
    memory = policy.start(1)
    calm, _ = policy.bid(snapshot, core.observation, memory)
    snapshot.service["output_tokens"] *= 0.3
    busy, _ = policy.bid(snapshot, core.observation, memory)
    lead = lambda bids: float(bids.pool[0, 0, 0] - bids.pool[0, 1, 0])  # noqa: E731
    assert lead(busy) > lead(calm)


def test_greedy_gives_decode_more_watts_when_more_is_in_flight():
    """The batch in flight counts, not only the work that arrives."""
    core = core_of("greedy", "steady", batch=1)
    policy, snapshot = registry.baseline("greedy", core.scenario, {}), core.plant.snapshot.copy()
    snapshot.domain["limit_w"][:, 0] = 85_000
    snapshot.service["arrival_rps"] *= 0.4  # a burst that is over, whose requests still decode
    snapshot.service["active"] *= 0.5
    calm, _ = policy.bid(snapshot, core.observation, policy.start(1))
    lead = lambda bids: float(bids.pool[0, 1, 0] - bids.pool[0, 0, 0])  # noqa: E731
    leads = []
    for _ in range(8):  # until it is hopeless, when watts are worth more elsewhere
        snapshot.service["active"] *= 1.4
        leads.append(lead(policy.bid(snapshot, core.observation, policy.start(1))[0]))
    assert max(leads) > lead(calm)


MOTIVATED = {
    "static": "steady",
    "greedy": "multi-service",
    "pi": "bursty",
    "three-band": "training-ballast",
    "reactive": "mix-shift",
    "three-phase": "multi-service",
}
"""Where each baseline should earn its keep."""


@pytest.mark.parametrize("name", MOTIVATED)
def test_a_baseline_is_not_worse_than_uniform_where_it_should_help(name):
    """With default constants, goodput over eight windows is at least uniform's, less half a percent."""
    scenario = load_scenario(MOTIVATED[name])
    scores = [
        run_episodes(scenario, registry.baseline(p, scenario, {}), range(8)).values("goodput_tok_s_per_mw").mean()
        for p in (name, "uniform")
    ]
    assert scores[0] >= 0.995 * scores[1]


@pytest.mark.parametrize("name", [n for n in QUICK if n != "random"])
def test_services_are_a_set(name):
    """Swapping two services of a site of equal nodes swaps their bids: no baseline prefers the first."""
    core = core_of(name, "multi-service", batch=1)
    policy = registry.baseline(name, core.scenario, {})
    snapshot, seen = core.plant.snapshot.copy(), core.observation
    memory = policy.start(1)
    plain, _ = policy.bid(snapshot, seen, memory)
    fleet = dataclasses.replace(core.fleet, services=core.fleet.services[::-1])
    model = {"model": PlantModel(fleet)} if name in registry.NEEDS_MODEL else {}
    other = dataclasses.replace(policy, fleet=fleet, **model)
    snapshot.service[:] = snapshot.service[:, ::-1].copy()
    order = [2, 3, 0, 1]
    seen = dataclasses.replace(seen, pool=np.ascontiguousarray(seen.pool[:, order]))
    moved, _ = other.bid(snapshot, seen, memory)
    np.testing.assert_allclose(moved.pool, plain.pool[:, order], atol=1e-5)
