"""Every baseline tuned on every family, with one budget each: what makes `policies/baselines/tuned.json`.

    python -m flyball.experiments.tune_all --cpu-seconds 12 --jobs 2

With --mixture they are tuned on the standard suite's families at once, with the same budget for each of them: the
constants under a policy that is trained for all.

Results are entered as they come, so that a run that was cut off loses what it was at and no more.
"""

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import click

from .. import registry
from ..console import progress_bar
from ..envs.scenario import list_scenarios, load_scenario
from .evaluate import STANDARD, SUITES
from .tune import SPACES, Tuned, record, tune


def families() -> dict[str, str]:
    """The scenario that stands for each family: the one of its name."""
    return {name: name for name in list_scenarios() if load_scenario(name).family == name}


def tune_all(
    baselines: tuple[str, ...], subjects: Sequence[str | tuple[str, ...]], cpu_seconds: float, jobs: int
) -> Iterator[Tuned]:
    """Tune each baseline on each scenario or mixture in `jobs` processes; results as they come."""
    work = [(b, s, cpu_seconds * (1 if isinstance(s, str) else len(s))) for s in subjects for b in baselines]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for done in as_completed([pool.submit(tune, *one) for one in work]):
            yield done.result()


@click.command()
@click.option("--cpu-seconds", default=12.0, show_default=True, help="Budget of each search.")
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(min=1), help="Processes.")
@click.option("--scenario", "scenarios", multiple=True, help="Which; by default one per family.")
@click.option("--baseline", "baselines", multiple=True, help="Which; by default all that can become the best.")
@click.option("--mixture", "is_mixture", is_flag=True, help="The standard suite at once instead.")
def main(
    cpu_seconds: float, jobs: int, scenarios: tuple[str, ...], baselines: tuple[str, ...], is_mixture: bool
) -> None:
    """Tune every baseline on every family and write the table of constants."""
    subjects: Sequence[str | tuple[str, ...]] = [SUITES[STANDARD]] if is_mixture else scenarios or tuple(families())
    baselines = baselines or tuple(b for b in registry.CANDIDATES if b in SPACES)
    total, done = len(subjects) * len(baselines), 0
    with progress_bar("tune", False) as bar:
        for result in tune_all(baselines, subjects, cpu_seconds, jobs):
            table = json.loads(registry.TUNED.read_text()) if registry.TUNED.exists() else {}
            record(result, table)
            registry.TUNED.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
            done += 1
            bar(f"{result.baseline} on {result.family}", done / total)


if __name__ == "__main__":
    main()
