"""A packaged scenario played on another site."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..envs.scenario import Scenario, check_scenario, load_scenario


def site_scenario(site: str | Path, base: str = "steady", **changes: Any) -> Scenario:
    """A scenario on another site.

    Args:
        site: Site file or name.
        base: Name of the scenario.
        **changes: Fields of `Scenario` to replace.

    Raises:
        BadInput: if there is no such site or scenario, or the two do not fit.
    """
    scenario = replace(load_scenario(base), site=str(site), **changes)
    scenario.fleet  # noqa: B018 - a site that cannot be read is refused under its own name
    check_scenario(scenario)
    return scenario
