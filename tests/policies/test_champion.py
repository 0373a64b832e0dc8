"""The policy that ships."""

import numpy as np
import pytest

from flyball import registry
from flyball.envs.episodes import run_episodes
from flyball.envs.scenario import load_scenario


def test_the_champion_ships_with_its_card():
    """The file loads for this schema, says what it corrects, and a card for people stands beside it."""
    path = registry.champion_path()
    assert path.with_suffix(".md").exists()
    policy = registry.policy("champion", load_scenario("demo"))
    assert policy.card.baseline in registry.BASELINES and policy.card.run["passed"]


@pytest.mark.parametrize("name", ["demo", "multi-service", "small"])
def test_the_champion_keeps_every_limit(name):
    """On sites of other sizes and numbers of services too, no limit in force is exceeded."""
    scenario = load_scenario(name, ("seconds=600",))
    episodes = run_episodes(scenario, registry.policy("champion", scenario), [1, 2])
    assert (episodes.values("budget_violation_ws") == 0).all()
    assert np.isfinite(episodes.values("goodput_tok_s_per_mw")).all()
