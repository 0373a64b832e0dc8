"""Every baseline tuned on every family, with one budget each: what makes `policies/baselines/tuned.json`.

    python -m flyball.experiments.tune_all --cpu-seconds 12 --jobs 2

Results are entered as they come, so that a run that was cut off loses what it was at and no more.
"""

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

import click

from .. import registry
from ..console import progress_bar
from ..envs.scenario import list_scenarios, load_scenario
from .tune import SPACES, Tuned, record, tune


def families() -> dict[str, str]:
    """The scenario that stands for each family: the one of its name."""
    return {name: name for name in list_scenarios() if load_scenario(name).family == name}


def tune_all(baselines: tuple[str, ...], scenarios: tuple[str, ...], cpu_seconds: float, jobs: int) -> Iterator[Tuned]:
    """Tune each baseline on each scenario in `jobs` processes; results as they come."""
    work = [(b, s) for s in scenarios for b in baselines]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for done in as_completed([pool.submit(tune, b, s, cpu_seconds) for b, s in work]):
            yield done.result()


@click.command()
@click.option("--cpu-seconds", default=12.0, show_default=True, help="Budget of each search.")
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(min=1), help="Processes.")
@click.option("--scenario", "scenarios", multiple=True, help="Which; by default one per family.")
@click.option("--baseline", "baselines", multiple=True, help="Which; by default all that can become the best.")
def main(cpu_seconds: float, jobs: int, scenarios: tuple[str, ...], baselines: tuple[str, ...]) -> None:
    """Tune every baseline on every family and write the table of constants."""
    scenarios = scenarios or tuple(families())
    baselines = baselines or tuple(b for b in registry.CANDIDATES if b in SPACES)
    total, done = len(scenarios) * len(baselines), 0
    with progress_bar("tune", False) as bar:
        for result in tune_all(baselines, scenarios, cpu_seconds, jobs):
            table = json.loads(registry.TUNED.read_text()) if registry.TUNED.exists() else {}
            record(result, table)
            registry.TUNED.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
            done += 1
            bar(f"{result.baseline} on {result.family}", done / total)


if __name__ == "__main__":
    main()
