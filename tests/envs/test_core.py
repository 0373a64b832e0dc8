"""The batched core: actions become bids, books balance, and a partial reset touches only its rows."""

import numpy as np
import pytest

from flyball import registry
from flyball.envs.core import CHANNELS, Core
from flyball.envs.scenario import load_scenario


def make_core(env_id="Factory-v0", batch=3, **kwargs):
    scenario = load_scenario("multi-service", ("seconds=300",))
    core = Core(scenario, registry.baseline("greedy", scenario, {}), CHANNELS[env_id], batch, **kwargs)
    core.reset(np.arange(batch))
    return core


@pytest.mark.parametrize("residual", [False, True])
def test_bids_are_clipped_and_nan_reads_as_neutral(residual):
    """Whatever an action holds, bids lie in [-1, 1]; NaN is the neutral bid."""
    core = make_core(residual=residual)
    rng = np.random.default_rng(0)
    action = rng.choice([np.nan, np.inf, -np.inf, 3.0, -0.5], (3, core.action_size))
    bids = core.bids(action)
    own = np.isnan(action[:, : core.fleet.pools * 3].reshape(3, core.fleet.pools, 3))
    assert (bids.pool[own] == 0).all()
    for array in (bids.pool, bids.node, bids.fleet):
        assert array.dtype == np.float32 and (np.abs(array) <= 1).all()


def test_channels_that_the_agent_does_not_own_keep_the_background_bids():
    """Power-v0 owns watts and spending; nodes and clocks stay the background policy's."""
    core = make_core("Power-v0")
    bids = core.bids(np.full((3, core.action_size), 0.25))
    assert (bids.pool[..., 0] == 0.25).all() and (bids.fleet == 0.25).all()
    assert np.array_equal(bids.pool[..., 1:], core.base.pool[..., 1:])
    bids.pool[:] = 9.0
    assert (core.base.pool <= 1).all()


@pytest.mark.parametrize("pad_pools", [0, 7])
def test_the_flat_observation_holds_every_part_in_its_place(pad_pools):
    """Pool features, masks, base bids, nodes and fleet stand in the documented order; missing pools are zeros."""
    core = make_core(pad_pools=pad_pools)
    core.step(core.base)
    seen = core.observation
    pools, missing = core.fleet.pools, core.flat_pools - core.fleet.pools
    pad = lambda a: np.concatenate([a.reshape(3, pools, -1), np.zeros((3, missing, a[0].size // pools))], 1)  # noqa: E731
    parts = [pad(seen.pool), pad(seen.pool_mask), pad(core.base.pool), seen.node, seen.node_mask, seen.fleet]
    expected = np.concatenate([p.reshape(3, -1) for p in (*parts, core.base.fleet)], -1)
    flat = core.flat(seen)
    assert flat.shape == (3, core.observation_size) and flat.dtype == np.float32
    assert np.array_equal(flat, expected.astype(np.float32))


def test_the_reward_is_the_difference_of_the_books():
    """Spoilt tokens, good tokens and cost of a step are what the plant's books moved by."""
    core = make_core()
    core.step(core.base)
    plant = core.plant

    def books():
        s = plant.service
        return (s["rejected_tok"] + s["lost_tok"] + s["late_tok"]).sum(-1), plant.totals["good_tok"].copy()

    for _ in range(15):
        spoilt, good = books()
        _, reward, _, info = core.step(core.base)
        np.testing.assert_allclose(info["reward_lost_share"], -(books()[0] - spoilt) / core._reward_tok)
        np.testing.assert_allclose(info["good_tok"], books()[1] - good)
        np.testing.assert_array_equal(reward, info["reward_lost_share"] + info["reward_correction"])


def test_a_partial_reset_changes_only_its_rows():
    """Observation and base bids of environments that were not reset keep their bits."""
    core = make_core(batch=4)
    core.step(core.base)
    pool, base = core.observation.pool.copy(), core.base.pool.copy()
    core.reset([7, 8], [1, 3])
    assert np.array_equal(core.observation.pool[[0, 2]], pool[[0, 2]])
    assert np.array_equal(core.base.pool[[0, 2]], base[[0, 2]])
    fresh = make_core(batch=2)
    fresh.reset([7, 8])
    assert np.array_equal(core.observation.pool[[1, 3]], fresh.observation.pool)
    assert np.array_equal(core.base.pool[[1, 3]], fresh.base.pool)
