"""Planning: candidates keep the site's shape, the search finds the load, and the answer says what it beats."""

import json
from collections import Counter

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball.cli import main
from flyball.experiments.plan import LOW_UTIL, SATURATED_UTIL, UTIL_STEP, PlanConfig, _bisect, plan
from flyball.experiments.plan_fleets import (
    PROVISIONING,
    apportion,
    fits_watts,
    most_nodes,
    most_that_fit,
    scaled,
)
from flyball.experiments.referee.world import World
from flyball.fleet.bids import Bids
from flyball.fleet.errors import BadInput, SiteError
from flyball.fleet.plan import Shed
from flyball.fleet.site_file import load_site

TINY = """
name = "tiny"
[[service]]
name = "chat"
model = "llama-70b-bf16"
ttft_s = {ttft_s}
itl_s = 0.05
[[domain]]
name = "feed"
peak_w = 26000
[[nodes]]
prefix = "n"
count = 3
domain = "feed"
sku = "H100-SXM"
gpus = 8
non_gpu_max_w = 2800
service = "chat"
prefill = 2
"""

SHORT = ("--seconds", "60", "--seeds", "1", "--policy", "uniform", "--policy", "greedy")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A site of three nodes on watts for two and a half nameplates."""
    path = tmp_path_factory.mktemp("plan") / "tiny.toml"
    path.write_text(TINY.format(ttft_s=1.0))
    return str(path)


@settings(max_examples=100, deadline=None)
@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=8), total=st.integers(0, 500))
def test_shares_sum_to_the_total_and_stay_within_one_of_their_quota(weights, total):
    """Largest remainders: nothing is lost, and nobody is a whole node from what is due."""
    shares = apportion(weights, total)
    assert sum(shares) == total
    assert all(abs(n - w * total / sum(weights)) < 1 for n, w in zip(shares, weights, strict=True))


@pytest.mark.parametrize("nodes", [8, 10, 15, 16, 17, 22, 24])
def test_candidates_keep_the_tree_and_the_proportions(nodes):
    """Limits and reserves are the site's own, prefill stays three quarters, and rows differ by a node at most."""
    site = load_site("demo-16")
    found = scaled(site, nodes)
    assert found.domains == site.domains and found.timing == site.timing and len(found.nodes) == nodes
    assert abs(sum(n.stage == "prefill" for n in found.nodes) - 0.75 * nodes) < 1
    rows = Counter(n.domain in ("rack-1", "rack-2") for n in found.nodes)
    assert abs(rows[True] - rows[False]) <= 1
    assert max(Counter(n.domain for n in found.nodes).values()) <= nodes // 4 + 1


def test_a_shift_moves_nodes_between_stages_and_is_refused_where_there_are_none():
    """A shift of two makes two prefill nodes decode nodes; one that empties a stage is refused."""
    site = load_site("demo-16")
    count = Counter(n.stage for n in scaled(site, 16, 2).nodes)
    assert (count["prefill"], count["decode"]) == (10, 6)
    with pytest.raises(SiteError, match="cannot move"):
        scaled(site, 16, -4)
    with pytest.raises(SiteError, match="fewer than"):
        scaled(site, 1)


@pytest.mark.parametrize("name", ["demo-16", "mixed", "gb200-rack"])
def test_the_most_that_fit_is_where_the_arbiter_starts_to_shed(name):
    """One more node than that, and the arbiter itself gives up decode floors; at it, limits only bind."""
    site = load_site(name)
    most, levels = most_that_fit(site), []
    for nodes in (most, most + 1):
        world = World(scaled(site, nodes))
        world.tick(Bids.neutral(1, site.pools, nodes))
        levels.append(int(world.plan.fleet["shed_level"][0]))
    assert levels[0] <= Shed.CAP and levels[1] >= Shed.EMERGENCY_CAP


def test_rules_of_provisioning_buy_what_their_watts_say():
    """On 108.8 kW in two rows: ten nodes of 10.2 kW, twelve of 8.4 kW, never more than the floors allow."""
    site = load_site("demo-16")
    bought = {p.name: most_nodes(site, lambda f, p=p: fits_watts(f, p.node_w)) for p in PROVISIONING}
    assert bought["nameplate"] == 108_800 // 10_200 == 10
    assert bought["tdp-declared"] == 108_800 // 8_400 == 12
    assert bought["tdp-declared"] <= bought["tdp-typical"] <= most_that_fit(site)


@pytest.mark.parametrize("knee", [0.3, 0.777, 1.2])
def test_bisection_ends_within_a_step_below_the_knee(knee):
    """The load found meets the target, and one step more does not."""
    util, kpis = _bisect(lambda u: {"slo_attainment_frac": float(u <= knee), "u": u}, 0.95, {"slo_attainment_frac": 0})
    assert util <= knee < util + UTIL_STEP and kpis["u"] == util


def test_bisection_at_its_ends():
    """A candidate that meets its targets saturated needs no search, and one that never does sustains nothing."""
    full, asked = {"slo_attainment_frac": 0.99}, []
    assert _bisect(asked.append, 0.95, full) == (SATURATED_UTIL, full) and not asked
    nan = {"slo_attainment_frac": float("nan")}
    assert _bisect(lambda u: asked.append(u) or nan, 0.95, nan) == (0.0, None) and asked == [LOW_UTIL]


def test_a_plan_answers_with_what_was_measured(tiny):
    """The recommendation is the fewest nodes near the best, breaks no limit, and is compared with rules by name."""
    found = plan(PlanConfig(tiny, policies=("uniform",), seeds=1, seconds=60.0))
    rows, best = found["candidates"], found["recommended"]
    assert [r["nodes"] for r in rows] == list(range(2, found["most_nodes_that_fit"] + 1)) and len(rows) > 2
    most = max(r["requests_per_s"] for r in rows)
    assert best["nodes"] == min(r["nodes"] for r in rows if r["requests_per_s"] >= 0.99 * most)
    assert best["attainment"] >= 0.95 and best["peak_power_frac"] <= 1 and not any(r["violation_ws"] for r in rows)
    rule = found["provisioning"]["nameplate"]
    assert rule["gpus"] == 16 and rule["gpus_ratio"] == best["gpus"] / 16
    assert f"{best['gpus']} GPUs" in found["sentence"] and "in the simulated plant" in found["sentence"]
    easier = plan(PlanConfig(tiny, policies=("uniform",), seeds=1, seconds=60.0, attainment=0.8))
    assert easier["recommended"]["requests_per_s"] > best["requests_per_s"]


def test_the_command_prints_one_object_or_the_sentence_first(tiny):
    """--json is the contract's object; without it the answer in words stands above the table."""
    run = CliRunner().invoke(main, ["plan", tiny, *SHORT, "--json"])
    out = json.loads(run.stdout)
    assert run.exit_code == 0
    assert {"site", "policy", "load", "recommended", "candidates", "provisioning"} <= set(out)
    assert out["site"] == "tiny" and out["policy"] in ("uniform", "greedy") and out["load"] == "generated"
    shown = CliRunner().invoke(main, ["plan", tiny, *SHORT])
    assert shown.exit_code == 0 and shown.stdout.startswith(out["sentence"]) and "nameplate" in shown.stdout


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--attainment", "2"), "between 0 and 1"),
        (("--seeds", "0"), "at least 1"),
        (("--seconds", "1"), "at least 30"),
        (("--policy", "nobody"), "no policy 'nobody'"),
        (("--load", "nowhere.csv"), "nowhere.csv"),
        (("--scenario", "nothing"), "nothing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tiny, more, says):
    """Whatever is wrong is said in one line that names it."""
    run = CliRunner().invoke(main, ["plan", tiny, "--seconds", "60", *more])
    errors = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert run.exit_code == 2 and len(errors) == 1 and says in errors[0]


def test_targets_that_nothing_meets_are_said_so(tmp_path):
    """A TTFT that no hardware reaches is bad input with the way out, not a plan of zero requests."""
    path = tmp_path / "hopeless.toml"
    path.write_text(TINY.format(ttft_s=0.001))
    with pytest.raises(BadInput, match="lower --attainment"):
        plan(PlanConfig(str(path), policies=("uniform",), seeds=1, seconds=60.0))
