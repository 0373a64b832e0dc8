"""`flyball simulate`: one episode of one policy."""

from collections.abc import Callable, Sequence
from typing import Any

from .. import registry
from ..envs.episodes import read_file, run_episodes
from ..envs.scenario import load_scenario


def simulate(
    scenario: str,
    policy: str,
    load: str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Run one episode and return what the command-line contract prints.

    A file is read whole (block "all"): an episode is a window of it.
    """
    loaded = load_scenario(scenario, overrides)
    episodes = run_episodes(loaded, registry.policy(policy, loaded), [seed], read_file(load), "all", False, progress)
    return {
        "scenario": loaded.name,
        "policy": policy,
        "load": episodes.load_source,
        "load_scale": episodes.load_scale,
        "seed": seed,
        "kpis": episodes.kpis[0],
    }
