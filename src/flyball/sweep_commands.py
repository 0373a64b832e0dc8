"""The verb of sweeps."""

import sys
from pathlib import Path

import click

from .cli import emit, json_option
from .console import progress_bar
from .fleet.errors import BadInput


@click.command()
@click.argument("scenario", nargs=-1, required=True)
@click.option(
    "--algo",
    "algos",
    multiple=True,
    type=click.Choice(["ppo", "es", "distill"]),
    default=("es",),
    show_default=True,
    help="Learning algorithm; repeat for several.",
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=click.Choice(["power", "power-roles", "power-roles-clocks"]),
    default=("power-roles",),
    show_default=True,
    help="Bids that the policy corrects; repeat for several.",
)
@click.option("--seeds", default=10, show_default=True, type=int, help="Trials per algorithm and profile.")
@click.option("--cpu-seconds", type=float, default=None, help="CPU time of each trial; 120 by default.")
@click.option("--steps", type=int, default=None, help="Environment steps of each trial instead of CPU time.")
@click.option("--jobs", default=2, show_default=True, type=int, help="Processes at a time on this machine.")
@click.option("--ray", default=None, metavar="ADDRESS", help="A Ray cluster instead of this machine, e.g. auto.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/sweep"),
    show_default=True,
    help="Folder of the trials; a sweep that was cut off goes on. On Ray, one that every node sees.",
)
@click.option(
    "--warm-start",
    "base",
    default="best-baseline",
    show_default=True,
    help="Baseline that the policies correct.",
)
@click.option("--mlflow", default=None, help="MLflow tracking server; SQLite in the folder by default.")
@json_option
def sweep(
    scenario, algos, profiles, seeds, cpu_seconds, steps, jobs, ray, out, base, mlflow, as_json: bool
) -> None:  # fmt: skip
    """Train seeds times configurations, each in a process of its own, and keep the best that passed its gate.

    \b
    Examples:
      flyball sweep bursty curtailment --seeds 3 --cpu-seconds 110 --out out/sweep
      flyball sweep curtailment --algo es --algo distill --profile power --profile power-roles
      flyball sweep curtailment --ray auto --out /shared/sweep

    A trial whose process dies goes on from its checkpoint, up to three times. The same command again skips what is
    done; with a larger budget it trains on. The exit code is 1 if a trial has no result.
    """
    try:
        from .training.config import TrainConfig
        from .training.sweep import sweep as run
    except ImportError as e:
        raise BadInput(
            f"training needs the [train] extra ({e.name} is missing); pip install 'flyball[train]'"
        ) from None
    if cpu_seconds is None and steps is None:
        cpu_seconds = 120.0
    template = TrainConfig(
        tuple(scenario), out, minutes=None, steps=steps, cpu_seconds=cpu_seconds, base=base, mlflow_uri=mlflow
    )
    with progress_bar(f"sweep on {', '.join(scenario)}", as_json) as bar:
        result = run(template, algos, profiles, seeds, jobs, ray, bar)
    if as_json:
        emit(result)
    else:
        from .console import show_sweep

        show_sweep(result)
    sys.exit(1 if any(row["error"] for row in result["trials"]) else 0)
