"""The plant keeps its books, and a batch is its rows."""

import numpy as np
import pytest

from flyball import registry
from flyball.envs.core import Core
from flyball.envs.scenario import list_scenarios, load_scenario

SHORT = ("seconds=240", "warmup_s=0")


def play(core, steps):
    for _ in range(steps):
        core.step(core.base)
    return core


@pytest.mark.parametrize("name", ["bursty", "faults", "curtailment", "multi-service"])
@pytest.mark.parametrize("is_aware", [True, False])
def test_tokens_in_are_served_queued_or_dropped(make_core, name, is_aware):
    """Every offered token is served, rejected, lost or still in flight."""
    switch = f"slo_aware_admission={str(is_aware).lower()}"
    core = play(make_core(name, batch=3, overrides=(*SHORT, switch)), 40)
    s = core.plant.service
    in_flight = sum(s[f"{store}_tok"] + s[f"{store}_out_tok"] for store in ("queue", "ready", "active"))
    out = s["served_tok"] + s["rejected_tok"] + s["lost_tok"] + in_flight
    np.testing.assert_allclose(out, s["offered_tok"], rtol=1e-9)


def test_energy_is_the_integral_of_power(make_core):
    """The energy KPI equals the sum of the meters' ticks."""
    core = make_core("bursty", batch=1, overrides=(*SHORT, "plant.meter_bias_frac=[0, 0]"))
    total = 0.0
    for _ in range(100):
        core.plant.step(core.base, ticks=1)
        total += float(core.plant.snapshot.domain["meter_w"][0, 0])
    assert core.plant.kpis(0)["energy_j"] == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("name", ["bursty", "faults", "thermal", "curtailment"])
def test_stores_and_draws_stay_in_their_ranges(make_core, name):
    """No queue is negative, KV stays within HBM, a node draws no less than idle and no more than its cap allows."""
    core = make_core(name, policy="random", batch=4, overrides=SHORT)
    for _ in range(40):
        core.step(core.base)
        p = core.plant
        for field in (
            "queue_req",
            "queue_tok",
            "ready_req",
            "ready_tok",
            "active",
            "active_tok",
            "active_ok",
        ):
            assert (p.service[field] >= -1e-9).all()
        assert (p.service["kv_frac"] <= 1.0).all()
        on = p.node["agent_down"] == 0
        static = p.fleet.node_static
        assert (p.node["gpu_w"] >= on * 0.99 * 72.0 * static["gpus"]).all()
        serving = on & (p.node["down_s"] <= 0) & (p.node["moving_s"] <= 0) & (p.node["stage"] < 2)
        assert (p.node["gpu_w"] <= np.where(serving, p.node["cap_w"] * 1.0101, np.inf)).all()


def test_a_batch_equals_its_rows(make_core):
    """A batch of B gives bit for bit what B single environments give."""
    batch = play(make_core("faults", policy="greedy", batch=3, overrides=SHORT, seeds=[5, 6, 7]), 30)
    for row, seed in enumerate([5, 6, 7]):
        single = play(make_core("faults", policy="greedy", batch=1, overrides=SHORT, seeds=[seed]), 30)
        for name in ("node", "domain", "service", "totals"):
            assert getattr(batch.plant, name)[row].tobytes() == getattr(single.plant, name)[0].tobytes(), name
        assert batch.observation.pool[row].tobytes() == single.observation.pool[0].tobytes()
        assert batch.plant.plan.node[row].tobytes() == single.plant.plan.node[0].tobytes()


def test_equal_seeds_give_equal_episodes(make_core):
    """A reset with the same seed starts the same episode, whatever was played before."""
    core = play(make_core("demo", policy="random", batch=2, overrides=SHORT), 20)
    first = core.plant.service.tobytes()
    core.reset(np.arange(2))
    play(core, 20)
    assert core.plant.service.tobytes() == first


def test_resetting_one_environment_leaves_the_others(make_core):
    """A partial reset changes only the environments named."""
    core = play(make_core("bursty", policy="greedy", batch=3, overrides=SHORT), 10)
    before = (
        core.plant.node[[0, 2]].tobytes(),
        core.base.pool[[0, 2]].tobytes(),
        core.memory[[0, 2]].tobytes(),
    )
    core.reset([99], envs=np.array([1]))
    assert (
        core.plant.node[[0, 2]].tobytes(),
        core.base.pool[[0, 2]].tobytes(),
        core.memory[[0, 2]].tobytes(),
    ) == before
    fresh = make_core("bursty", policy="greedy", batch=1, overrides=SHORT, seeds=[99])
    assert core.plant.node[1].tobytes() == fresh.plant.node[0].tobytes()


@pytest.mark.parametrize("name", list_scenarios())
@pytest.mark.parametrize("policy", ["random", "greedy"])
def test_no_limit_in_force_is_exceeded(name, policy):
    """Through every shipped scenario no domain draws a watt-second above its limit in force, under any bids."""
    scenario = load_scenario(name)
    core = Core(scenario, registry.baseline(policy, scenario), batch=3)
    core.reset([11, 12, 13])
    play(core, core.plant.ticks // core.plant.control_ticks)
    for b in range(3):
        kpis = core.kpis(b)
        assert kpis["budget_violation_ws"] == 0.0
        assert kpis["breaker_trips"] == 0.0


@pytest.mark.parametrize("load", ["load.target_util=0.000001", "load.target_util=8"])
def test_hardly_any_load_and_far_too_much_give_sane_numbers(make_core, load):
    """An idle fleet and a drowned one both keep finite books and their limits."""
    core = play(make_core("steady", policy="greedy", batch=2, overrides=(*SHORT, load)), 40)
    for name in core.plant.service.dtype.names:
        assert np.isfinite(core.plant.service[name]).all()
    assert core.plant.kpis(0)["budget_violation_ws"] == 0.0


def test_a_fleet_whose_nodes_are_all_down_serves_nothing_and_recovers(make_core):
    """With every node down nothing is served, and repair brings service back."""
    core = make_core("steady", batch=1, overrides=("seconds=600", "warmup_s=0", "plant.role_move_s=[30, 30]"))
    play(core, 4)
    core.plant.node["down_s"] = 60.0
    play(core, 8)
    served = float(core.plant.service["served_tok"].sum())
    assert core.plant.serving_nodes().sum() == 0
    play(core, 2)
    assert float(core.plant.service["served_tok"].sum()) == served
    play(core, 40)
    assert float(core.plant.service["served_tok"].sum()) > served


def test_lower_caps_never_serve_more(make_core):
    """Cutting the root limit in half does not raise goodput."""
    scores = []
    for frac in (1.0, 0.7):
        override = (*SHORT, f"events=[{{t_s=0, limit_frac={frac}}}]")
        scores.append(play(make_core("steady", batch=2, overrides=override), 48).plant.kpis(0)["goodput_tok_s_per_mw"])
    assert scores[1] < scores[0]
