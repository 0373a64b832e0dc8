"""What baselines share: pools are counted right, and wishes become the bids that mean them."""

import dataclasses

import numpy as np
import pytest

from flyball import registry
from flyball.envs.core import Core
from flyball.envs.scenario import load_scenario
from flyball.fleet.bids import NODES_EXPONENT, WATTS_EXPONENT
from flyball.fleet.tables import STAGES
from flyball.policies.pools import PoolView, pool_view, split_bids, watt_bids
from flyball.policies.work import follow_work, lengths, no_work


@pytest.fixture(scope="module")
def core():
    """Two services in the middle of an episode, some nodes down, moving or silent."""
    scenario = load_scenario("multi-service")
    made = Core(scenario, registry.baseline("greedy", scenario, {}), batch=3)
    made.reset([0, 1, 2])
    for _ in range(5):
        made.step(made.base)
    node = made.plant.snapshot.node
    node["is_up"][0, 2], node["moving_s"][1, 3], node["stage"][2, 4], node["demand_w"][0, 5] = 0, 9.0, 2, np.nan
    return made


def test_pools_are_sums_of_their_serving_nodes(core):
    """Counts, GPUs, mean demand and mean cap of every pool are those of the nodes that serve it."""
    static, node = core.fleet.node_static, core.plant.snapshot.node
    view = pool_view(core.fleet, core.plant.snapshot)
    demand_w = np.where(np.isfinite(node["demand_w"]), node["demand_w"], static["cap_max_w"])
    for pool in range(core.fleet.pools):
        here = (static["service"] == pool // STAGES) & (node["stage"] == pool % STAGES) & (node["is_up"] == 1)
        serving = here & (node["moving_s"] <= 0)
        count = serving.sum(-1)
        assert np.array_equal(view.nodes[:, pool], count)
        assert np.array_equal(view.gpus[:, pool], (serving * static["gpus"]).sum(-1))
        assert np.array_equal(view.coming[:, pool], (here & ~serving).sum(-1))
        np.testing.assert_allclose(view.demand_w[:, pool], (serving * demand_w).sum(-1) / count, rtol=1e-12)
        np.testing.assert_allclose(view.cap_max_w[:, pool], (serving * static["cap_max_w"]).sum(-1) / count)


def test_watt_bids_make_weights_in_the_ratio_of_the_wanted_caps():
    """Bid times exponent plus log demand is the log of the wanted cap, up to one constant per environment."""
    rng = np.random.default_rng(0)
    want_w, demand_w = rng.uniform(2000, 5600, (6, 4)), rng.uniform(2000, 5600, (6, 4))
    bids = watt_bids(want_w, demand_w)
    weight = np.exp(WATTS_EXPONENT * bids) * demand_w
    np.testing.assert_allclose(weight / weight[:, :1], want_w / want_w[:, :1], rtol=1e-12)
    assert (np.abs(watt_bids(want_w**9, demand_w)) <= 1).all()


def view_of(nodes, coming=None):
    nodes = np.array(nodes, float)
    zeros = np.zeros_like(nodes)
    return PoolView(nodes, 8 * nodes, zeros if coming is None else np.array(coming, float), zeros + 1, zeros + 1)


def test_split_bids_ask_for_the_wanted_split(core):
    """The bid is the log ratio of wanted to present nodes; short distances, and the last node, are left alone."""
    view = view_of([[4, 6, 5, 5]])
    bids = split_bids(core.fleet, view, np.array([[0.6, 0.52]]))
    expected = [np.log(6 / 4), np.log(4 / 6), 0.0, 0.0]
    np.testing.assert_allclose(NODES_EXPONENT * bids[0], expected, atol=1e-12)
    half = split_bids(core.fleet, view, 0.6, gain=0.5)
    np.testing.assert_allclose(NODES_EXPONENT * half[0, :2], [np.log(5 / 4), np.log(5 / 6)], atol=1e-12)
    emptied = split_bids(core.fleet, view, 1.0, deadband_nodes=0.0)
    assert (NODES_EXPONENT * emptied[0, 1] > np.log(0.9 / 6)) and np.isfinite(emptied).all()


def test_services_of_one_stage_are_never_split(core):
    """Aggregated services and training gangs have no split to move."""
    services = (dataclasses.replace(core.fleet.services[0], kind="aggregated"), core.fleet.services[1])
    fleet = dataclasses.replace(core.fleet, services=services)
    bids = split_bids(fleet, view_of([[0, 10, 5, 5]]), 0.8)
    assert (bids[0, :2] == 0).all() and bids[0, 2] > 0


def test_averages_of_work_start_at_the_first_value_and_skip_missing_ones(core):
    """Both averages jump to the first value heard, follow with their time constants, and keep what is missing."""
    snapshot = core.plant.snapshot.copy()
    heard = snapshot.service
    heard["arrival_rps"], heard["prompt_tokens"], heard["output_tokens"] = 10.0, 1000.0, 200.0
    first = follow_work(snapshot, no_work(3, 2), 5.0, 10.0, 90.0)
    np.testing.assert_allclose(first[0, 0], [10, 1e4, 2e3, 10, 1e4, 2e3])
    heard["arrival_rps"] = 20.0
    second = follow_work(snapshot, first, 5.0, 10.0, 90.0)
    np.testing.assert_allclose(second[0, 0, [0, 3]], 20 - 10 * np.exp([-0.5, -5 / 90]))
    heard["arrival_rps"][1] = np.nan
    third = follow_work(snapshot, second, 5.0, 10.0, 90.0)
    assert np.array_equal(third[1], second[1]) and not np.array_equal(third[0], second[0])
    prompt, context = lengths(first[..., :3])
    np.testing.assert_allclose(prompt, 1000.0)
    np.testing.assert_allclose(context, 1160.0)
