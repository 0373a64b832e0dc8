"""Tokens are conserved through caches, retries, preemption and nodes that do both stages."""

import heapq
from dataclasses import replace

import numpy as np
import pytest

from flyball import registry
from flyball.envs.core import Core
from flyball.envs.plant_tables import WAIT_POINTS
from flyball.envs.scenario import load_scenario
from flyball.envs.waiting import WAIT_WORK, prefill_waiting
from flyball.fleet.topology import Fleet

SHORT = ("seconds=240", "warmup_s=0")
STORES = ("queue", "ready", "active", "retry")


def play(core, steps):
    for _ in range(steps):
        core.step(core.base)
    return core


def check_books(plant):
    """Offered tokens are served, rejected, lost or in a store, and no store is negative."""
    s = plant.service
    in_flight = sum(s[f"{store}_tok"] + s[f"{store}_out_tok"] for store in STORES)
    np.testing.assert_allclose(s["served_tok"] + s["rejected_tok"] + s["lost_tok"] + in_flight, s["offered_tok"], 1e-9)
    for store in STORES:
        requests = s["active" if store == "active" else f"{store}_req"]
        assert (requests >= -1e-9).all() and (s[f"{store}_tok"] >= -1e-6).all()


def aggregated_core(batch=2, overrides=SHORT):
    """`steady` on its own site with every node doing both stages."""
    scenario = load_scenario("steady", overrides)
    site = scenario.fleet
    services = [replace(s, kind="aggregated") for s in site.services]
    nodes = [replace(n, stage="decode") for n in site.nodes]
    fleet = Fleet.build("aggregated", site.domains, nodes, services, timing=site.timing)
    moved = replace(scenario, site="aggregated")
    moved.__dict__["fleet"] = fleet
    core = Core(moved, registry.baseline("uniform", moved), batch=batch)
    core.reset(np.arange(batch))
    return core


def test_aggregated_nodes_prefill_and_decode():
    """A service whose nodes do both stages serves tokens, keeps its books, and its prefill stretches its steps."""
    core = play(aggregated_core(), 40)
    check_books(core.plant)
    assert (core.plant.service["served_tok"] > 0.3 * core.plant.service["offered_tok"]).all()
    assert (core.plant.service["kv_frac"] <= 1.0).all()
    kpis = core.kpis(0)
    assert kpis["budget_violation_ws"] == 0.0 and np.isfinite(kpis["itl_p99_s"])


def test_a_prefix_cache_saves_prefill(make_core):
    """With cached prefixes an overloaded fleet rejects less, and the cached tokens count as served."""
    load = ("load.target_util=1.5", "slo_aware_admission=false")
    rejected = []
    for hits in (0.0, 0.6):
        core = play(make_core("steady", overrides=(*SHORT, *load, f"load.prefix_hit_frac={hits}")), 40)
        check_books(core.plant)
        rejected.append(float(core.plant.service["rejected_tok"].sum()))
    assert rejected[1] < rejected[0]


@pytest.mark.parametrize("frac", [0.5, 1.0])
def test_retries_are_counted_apart(make_core, frac):
    """Rejected requests that come back are offered once, retried at most once each, and conserved."""
    core = play(make_core("steady", overrides=(*SHORT, "load.target_util=2", f"load.retry_frac={frac}")), 40)
    plain = play(make_core("steady", overrides=(*SHORT, "load.target_util=2")), 40)
    check_books(core.plant)
    totals = core.plant.totals
    np.testing.assert_array_equal(totals["offered_req"], plain.plant.totals["offered_req"])
    assert (totals["retried_req"] > 0.0).all() and (totals["retried_req"] <= frac * totals["offered_req"]).all()


def test_kv_memory_holds_what_decodes_even_when_contexts_grow(make_core):
    """Requests whose KV no longer fits go back to prefill: none is lost, and memory is never over-full."""
    core = play(make_core("steady", overrides=(*SHORT, "slo_aware_admission=false", "load.target_util=1.2")), 20)
    plant = core.plant
    plant.service["context"] *= 40.0
    plant.step(core.base, ticks=1)
    assert (plant.totals["preempted_req"] > 0.0).all()
    assert (plant.service["kv_frac"] <= 1.0).all()
    check_books(plant)


def test_no_nodes_in_a_stage_give_finite_books(make_core):
    """A service without prefill, or without decode, stays finite and serves nothing new."""
    for stage in (0, 1):
        core = make_core("steady", overrides=SHORT)
        core.plant.node["stage"] = stage
        rows = core.plant.plan.node
        for _ in range(30):
            rows["stage"] = stage
            core.plant.tick_under(rows)
        check_books(core.plant)
        assert all(np.isfinite(core.plant.service[name]).all() for name in core.plant.service.dtype.names)


@pytest.mark.parametrize("servers", [2, 12])
@pytest.mark.parametrize("load", [0.8, 0.95, 1.05])
def test_early_rejection_turns_away_what_a_replay_of_requests_turns_away(servers, load):
    """The closed form's share of requests turned away is within 0.05 of a request-by-request queue's."""
    rng = np.random.default_rng(0)
    service_s, longest_s, cs2, count = 0.063, 0.6, 0.92, 20_000
    arrive_s = np.cumsum(rng.exponential(service_s / (servers * load), count))
    sigma = np.sqrt(np.log1p(cs2))
    work_s = rng.lognormal(np.log(service_s) - sigma**2 / 2, sigma, count)
    free_s, turned = [0.0] * servers, 0
    for at_s, needs_s in zip(arrive_s.tolist(), work_s.tolist(), strict=True):
        if max(free_s[0] - at_s, 0.0) > longest_s - needs_s:
            turned += 1
        else:
            heapq.heapreplace(free_s, max(free_s[0], at_s) + needs_s)
    waits = np.zeros(WAIT_POINTS), np.zeros(WAIT_WORK)
    joins = prefill_waiting(load, float(servers), service_s, 1.0, cs2, longest_s, 1.0, *waits)[0]
    assert 1.0 - joins == pytest.approx(turned / count, abs=0.02)
