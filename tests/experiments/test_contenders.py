"""Who competes: what identifies a contender's decisions."""

import copy

import pytest

from flyball import registry
from flyball.envs.scenario import load_scenario
from flyball.experiments.contenders import fingerprint


@pytest.mark.parametrize("planner", registry.NEEDS_SIMULATOR)
def test_a_planner_is_identified_by_the_constants_of_its_whole_portfolio(planner, monkeypatch):
    """Another constant of any policy that it may put in charge is another fingerprint: kept windows are not reused."""
    scenario, table = load_scenario("bursty"), registry.tuned()
    before = fingerprint(planner, scenario)
    for name in ("greedy", "static", "reactive"):
        changed = copy.deepcopy(table)
        params = changed["baselines"][name]["bursty"]["params"]
        params[min(params)] *= 1.01
        monkeypatch.setattr(registry, "tuned", lambda changed=changed: changed)
        assert fingerprint(planner, scenario) != before
    monkeypatch.setattr(registry, "tuned", lambda: table)
    assert fingerprint(planner, scenario) == before


def test_portfolios_hold_each_policy_once_and_the_clairvoyants_holds_the_rollouts():
    """Both start with the family's greedy; no constants are rolled twice."""
    scenario = load_scenario("faults")
    small, large = (registry.portfolio(name, scenario) for name in registry.NEEDS_SIMULATOR)
    for found in (small, large):
        assert found[0] == ("greedy", registry.tuned()["baselines"]["greedy"]["faults"]["params"])
        assert all(member not in found[:i] for i, member in enumerate(found))
    assert {n for n, _ in small} == set(registry.CANDIDATES) and len(small) < len(large)
    assert all(member in large for member in small)
