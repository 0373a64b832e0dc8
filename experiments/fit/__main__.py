"""`python -m flyball.experiments.fit --data DIR --out DIR`: refit and write the parameter tables."""

from pathlib import Path

import click

from ...envs.hardware import PROFILES
from .pipeline import fit_profiles


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=PROFILES, show_default=True)
def main(data: Path, out: Path) -> None:
    """Fit every parameter that DATA speaks of and write the tables that the simulator reads."""
    for path in fit_profiles(data).write(out):
        click.echo(path)


if __name__ == "__main__":
    main()
