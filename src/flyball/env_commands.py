"""The verbs of the environments. Each imports what it needs when it runs."""

from pathlib import Path

import click

from .cli import emit, json_option, set_option
from .console import progress_bar

IDS = ("Power-v0", "Stages-v0", "Placement-v0", "Remediation-v0", "Factory-v0", "PowerRaw-v0")
"""`envs.IDS`, again: importing the environments would load Gymnasium for `--help`. A test holds them equal."""


def register_env(main: click.Group) -> None:
    """Attach the verbs to the group."""
    main.add_command(dataset)


@click.command()
@click.argument("scenario")
@click.option(
    "--policy",
    default="best-baseline",
    show_default=True,
    help="A baseline's name, champion, best-baseline or FILE.onnx.",
)
@click.option("--episodes", default=10, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of datasets.")
@click.option("--env", "env_id", type=click.Choice(IDS), default=IDS[0], show_default=True, help="What the agent owns.")
@click.option("--obs", type=click.Choice(["flat", "tokens"]), default="flat", show_default=True, help="Observations.")
@click.option(
    "--noise", default=0.0, show_default=True, type=click.FloatRange(min=0), help="Deviation of noise on actions."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the first episode.")
@set_option
@json_option
def dataset(
    scenario: str,
    policy: str,
    episodes: int,
    out: Path,
    env_id: str,
    obs: str,
    noise: float,
    seed: int,
    overrides,
    as_json: bool,
) -> None:
    """Write episodes of a policy as a Minari dataset, for offline learning.

    \b
    Examples:
      flyball dataset bursty --policy greedy --episodes 20 --out datasets
      flyball dataset curtailment --policy champion --noise 0.1 --out datasets
      MINARI_DATASETS_PATH=datasets minari list local
    """
    from .envs.dataset import write_dataset

    with progress_bar(f"{scenario} / {policy}", as_json) as bar:
        result = write_dataset(
            scenario, policy, episodes, out, env_id, obs, noise, seed, overrides, lambda share: bar("", share)
        )
    if as_json:
        emit(result)
        return
    click.echo(f"{result['dataset']}: {result['episodes']} episodes, {result['steps']} steps in {result['path']}")
