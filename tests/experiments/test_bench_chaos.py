"""Chaos: every kind of trouble happens, no limit is broken, and a broken arbiter is found out."""

import json

from click.testing import CliRunner

from flyball.cli import main
from flyball.experiments.bench.chaos import KINDS, figures
from flyball.fleet.arbiter.settle import settle


def quiet(label, share):
    """Progress that nobody reads."""


def test_every_kind_of_trouble_happens_and_no_limit_is_broken():
    """A short run meets all kinds, counts each once, and the referee finds no watt above a limit in force."""
    found = figures(quiet, events=15_000)
    assert found["limit_breaches"] == 0, found["first_breach"]
    assert all(found[kind] > 0 for kind in KINDS)
    assert found["events"] == sum(found[kind] for kind in KINDS) >= 15_000
    assert found["judged_events"] > found["events"]


def test_an_arbiter_that_goes_on_with_nominal_limits_breaches():
    """The figure can fail: an arbiter that never hears of a cut is found out, with the site that shows it."""

    def deaf(fleet, state, snapshot, bids):
        told = snapshot.copy()
        told.domain["limit_w"] = told.domain["next_limit_w"] = fleet.domain_static["peak_w"]
        return settle(fleet, state, told, bids)

    found = figures(quiet, events=5000, settle_with=deaf)
    assert found["limit_breaches"] > 0 and "site" in found["first_breach"]


def test_the_same_seed_gives_the_same_chaos():
    """A breach that was found once can be played again."""
    first, second = (figures(quiet, events=500, seed=3) for _ in range(2))
    assert {**first, "events_per_cpu_s": 0} == {**second, "events_per_cpu_s": 0}


def test_the_command_prints_the_contract_and_refuses_no_events():
    """`flyball bench chaos` takes 1e2, prints bench, figures and machine, and exits 2 where nothing is asked."""
    run = CliRunner().invoke(main, ["bench", "chaos", "--events", "1e2", "--json"])
    out = json.loads(run.stdout)
    assert run.exit_code == 0 and out["bench"] == "chaos" and set(out) == {"bench", "figures", "machine"}
    assert out["figures"]["events"] >= 100 and out["figures"]["limit_breaches"] == 0
    refused = CliRunner().invoke(main, ["bench", "chaos", "--events", "0"])
    assert refused.exit_code == 2 and "at least 1" in refused.stderr
