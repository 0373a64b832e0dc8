"""Tuning everything: which scenario stands for a family, and that results arrive for every pair."""

from flyball import registry
from flyball.experiments.tune_all import families, tune_all


def test_every_family_has_the_scenario_of_its_name():
    """Families with a best baseline are the ones that `tune_all` can tune again."""
    assert set(registry.tuned()["best"]) <= set(families())


def test_every_pair_is_tuned_once():
    """Two processes give one result per baseline and scenario, each with a score."""
    found = list(tune_all(("uniform", "proportional"), ("small",), 0.1, 2))
    assert sorted(r.baseline for r in found) == ["proportional", "uniform"]
    assert all(r.family == "small" and r.score > 0 for r in found)
