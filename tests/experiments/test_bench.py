"""Benchmarks: generated fleets are what they say, measurements have spreads, allocations are comparable."""

import base64
import json
import multiprocessing

import msgpack
import numpy as np
import pytest

from flyball.envs.scenario import load_scenario
from flyball.experiments.bench import BENCHES, arbiter, http, run_bench
from flyball.experiments.bench.fleets import five_levels, rows_of_racks, scenario_on
from flyball.experiments.bench.three_phase import Request, ThreePhase
from flyball.experiments.bench.timing import REPEATS, Sample, seconds_per_call
from flyball.fleet.errors import BadInput, FlyballError
from flyball.fleet.site_file import load_site


def quiet(label, share):
    """Progress that nobody reads."""


@pytest.mark.parametrize("nodes", [1, 5, 16, 64, 600])
def test_generated_trees_have_five_levels_that_each_cover_every_node(nodes):
    """Every level's domains are a partition of the nodes, whatever their number."""
    fleet = five_levels(nodes)
    static = fleet.domain_static
    assert len(fleet.nodes) == nodes and set(static["depth"]) == set(range(5))
    for depth in range(5):
        rows = static[static["depth"] == depth]
        assert (rows["node_end"] - rows["node_start"]).sum() == nodes
    assert {n.domain for n in fleet.nodes} == {
        d.name for d, s in zip(fleet.domains, static, strict=True) if s["depth"] == 4
    }


def test_larger_sites_have_the_proportions_of_the_demo_site():
    """The 64-node site of the benchmark is four demo sites in one: oversubscription and stages are the same."""
    small, large = load_site("demo-16"), rows_of_racks(64)
    assert large.domains[0].peak_w == 4 * small.domains[0].peak_w
    assert (large.node_static["stage"] == 0).sum() == 4 * (small.node_static["stage"] == 0).sum()
    assert (large.node_static["cap_max_w"] == small.node_static["cap_max_w"][0]).all()


def test_scenario_moves_to_another_fleet_and_keeps_what_happens():
    """A benchmark's scenario differs from the shipped one in the site alone, and so does its hash."""
    fleet, shipped = rows_of_racks(16), load_scenario("bursty")
    moved = scenario_on(fleet, shipped)
    assert moved.fleet is fleet and moved.load == shipped.load and moved.seconds == shipped.seconds
    assert moved.hash != shipped.hash and shipped.fleet.name == "demo-16"


def test_samples_have_median_and_spread():
    """A figure is a median, and its spread stands beside it."""
    sample = Sample((1.0, 2.0, 3.0, 4.0, 100.0))
    assert sample.figures("x_us", 10.0) == {"x_us": 30.0, "x_us_iqr": 20.0}
    calls = []
    assert len(seconds_per_call(lambda: calls.append(1), repeats=1, repeat_s=1e-4).values) == REPEATS
    assert len(calls) > REPEATS


def test_arbiter_figures_have_the_names_of_the_contract():
    """Single settlements, batches and the ratio to linear programs, all positive."""
    out = run_bench("arbiter", quiet, sizes=(16, 256), ratio_sizes=(256,), batch=64, repeat_s=0.01)
    assert out["bench"] == "arbiter" and {"cpu", "cores", "python", "numpy", "numba"} <= set(out["machine"])
    names = {"settle_16_us", "settle_256_us", "settle_64x64_ms", "qp_ratio_256", "settle_16_us_iqr"}
    assert names <= set(out["figures"])
    assert all(v >= 0 for v in out["figures"].values()) and out["figures"]["qp_ratio_256"] > 1


def test_environment_figures_have_the_names_of_the_contract():
    """Both profiles, the single environment, CartPole by the same function, and memory."""
    out = run_bench("env", quiet, envs=2, nodes=16, repeat_s=0.01, memory_envs=2)
    names = {"node_steps_per_s", "factory_node_steps_per_s", "single_env_steps_per_s", "cartpole_ratio", "rss_mib"}
    assert names <= set(out["figures"])
    assert all(out["figures"][name] > 0 for name in names)


def test_http_figures_have_the_names_of_the_contract():
    """Both encodings and sizes, throughput, batches and the network alone, against a service that the bench starts."""
    out = run_bench("http", quiet, repeat_s=0.02, batch=3)["figures"]
    names = {"rack16_msgpack_p50_us", "rack16_json_p50_us", "fleet256_msgpack_p50_us"}
    names |= {"rack16_per_s", "rack16_batched_per_s", "session_run_16_us"}
    assert names <= set(out) and all(out[name] > 0 for name in names)
    assert multiprocessing.active_children() == []


def test_a_request_of_the_http_bench_decides_what_the_engine_decides():
    """MessagePack and JSON columns carry one snapshot and state: the service makes the same plan of both."""
    scenario = scenario_on(rows_of_racks(16), load_scenario(http.SCENARIO))
    snapshot, state = http.under_load(scenario, 1)
    with http.service(16) as listening:
        link = http.Link(listening)
        answers = []
        for body in (http.packed_request(snapshot, state), http.json_request(snapshot, state)):
            link.send(link.request(body))
            answers.append(link.receive())
        with pytest.raises(FlyballError, match="refuses a decision"):
            link.send(link.request(http.Body(b"{", "application/json")))
            link.receive()
        link.close()
    packed, columns = msgpack.unpackb(answers[0]), json.loads(answers[1])
    assert base64.b64decode(columns["plan_bytes"]) == packed["plan"]
    assert base64.b64decode(columns["state"]) == packed["state"]


def test_missing_scipy_gives_null_figures_with_a_note(monkeypatch, capsys):
    """The comparison is an extra: without it everything else is still measured."""

    def absent(fleet):
        raise ImportError("No module named 'scipy'")

    monkeypatch.setattr(arbiter, "ThreePhase", absent)
    out = run_bench("arbiter", quiet, sizes=(16,), ratio_sizes=(16,), batch=2, repeat_s=0.01)
    assert out["figures"]["qp_ratio_16"] is None and out["figures"]["settle_16_us"] > 0
    assert "scipy is missing" in capsys.readouterr().err


def test_unknown_benchmark_is_refused():
    """A wrong name is one line that lists the right ones."""
    with pytest.raises(BadInput, match="env, arbiter"):
        run_bench("nothing")
    assert set(BENCHES) >= {"env", "arbiter"}


def request_of(fleet, want_w, priority=None, is_active=None) -> Request:
    static, nodes = fleet.node_static, len(fleet.nodes)
    return Request(
        np.asarray(want_w, float),
        static["cap_min_w"],
        static["cap_max_w"],
        np.zeros(nodes) if priority is None else priority,
        np.ones(nodes, bool) if is_active is None else is_active,
    )


def test_linear_programs_keep_every_limit_and_use_the_site():
    """What we compare with is feasible, within product ranges, and leaves no watt that it could have given."""
    fleet = five_levels(40)
    allocator = ThreePhase(fleet)
    rng = np.random.default_rng(0)
    cap_w = allocator.allocate(request_of(fleet, rng.uniform(1600, 5600, 40)))
    static = fleet.node_static
    load_w = allocator.tree @ cap_w
    assert (load_w <= allocator.limit_w + 1e-3).all()
    assert (cap_w >= static["cap_min_w"] - 1e-6).all() and (cap_w <= static["cap_max_w"] + 1e-6).all()
    is_free = load_w < allocator.limit_w - 1.0
    could_rise = (allocator.tree.T @ (~is_free)).astype(int) == 0
    assert (cap_w[could_rise] >= static["cap_max_w"][could_rise] - 1.0).all()


def test_linear_programs_grant_requests_that_fit_and_serve_priority_first():
    """Phase one: no shortfall where none is needed, and none of the higher priority before the lower's."""
    fleet = five_levels(16)
    allocator = ThreePhase(fleet)
    modest = np.full(16, 2400.0)
    assert (allocator.allocate(request_of(fleet, modest)) >= modest - 1e-3).all()
    priority = np.arange(16) % 2
    cap_w = allocator.allocate(request_of(fleet, np.full(16, 5600.0), priority))
    assert cap_w[priority == 1].min() > cap_w[priority == 0].max()


def test_settled_caps_satisfy_about_as_much_as_linear_programs():
    """Where requests stand still, water-filling grants nearly the watts that the programs do."""
    figures = arbiter.figures(quiet, sizes=(64,), ratio_sizes=(64,), batch=2, repeat_s=0.01)
    assert figures["settle_satisfaction_64"] > 0.93 * figures["qp_satisfaction_64"]
