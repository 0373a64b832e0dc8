"""Tuning everything: which scenario stands for a family, and that results arrive for every pair."""

from flyball import registry
from flyball.envs.scenario import load_scenario
from flyball.experiments.tune_all import families, tune_all


def test_every_family_has_the_scenario_of_its_name():
    """Families with a best baseline are the ones that `tune_all` can tune again."""
    assert set(registry.tuned()["best"]) - {registry.MIXTURE} <= set(families())


def test_every_pair_is_tuned_once():
    """Two processes give one result per baseline and scenario, each with a score."""
    found = list(tune_all(("uniform", "proportional"), ("small",), 0.1, 2))
    assert sorted(r.baseline for r in found) == ["proportional", "uniform"]
    assert all(r.family == "small" and r.score > 0 for r in found)


def test_a_mixture_is_tuned_relative_to_a_reference_and_no_scenario_outweighs_another():
    """The reference scores one on a mixture whatever its scenarios' goodputs, and a mixture's budget is its parts'."""
    found = next(tune_all(("uniform",), (("small", "steady"),), 0.1, 1))
    assert (found.family, found.scenario) == (registry.MIXTURE, "small, steady")
    assert found.score == found.default_score == 1.0


def test_a_policy_for_several_families_corrects_what_was_tuned_for_all(monkeypatch):
    """One family's scenarios take its constants; several families take the mixture's, where it was tuned."""
    rows = {"bursty": {"params": {"sharpness": 1.0}}, registry.MIXTURE: {"params": {"sharpness": 2.0}}}
    table = {"baselines": {"greedy": rows}, "best": {"bursty": "pi", registry.MIXTURE: "greedy"}}
    monkeypatch.setattr(registry, "tuned", lambda: table)
    bursty, steady = load_scenario("bursty"), load_scenario("steady")
    assert registry.base_of("greedy", [bursty]) == ("greedy", {"sharpness": 1.0})
    assert registry.base_of("best-baseline", [bursty, bursty]) == ("pi", {})
    assert registry.base_of("best-baseline", [bursty, steady]) == ("greedy", {"sharpness": 2.0})
