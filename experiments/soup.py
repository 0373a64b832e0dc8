"""Average the runs of several seeds into one gated policy.

for s in 0 1 2; do flyball train bursty curtailment --algo es --cpu-seconds 200 --seed $s --out out/seeds/$s; done
python -m flyball.experiments.soup out/seeds/* --out out/soup
"""

from pathlib import Path

import click

from ..console import progress_bar
from ..fleet.errors import FlyballError


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the result.")
def main(runs: tuple[Path, ...], out: Path) -> None:
    """Average the runs of several seeds into one gated policy."""
    from ..training.soup import soup

    try:
        with progress_bar("soup", False) as bar:
            result = soup(runs, out, bar)
    except FlyballError as e:
        raise click.ClickException(str(e)) from None
    click.echo(f"{result['gain']:+.2%} on validation ({'passes' if result['passed'] else 'fails'}): {result['onnx']}")


if __name__ == "__main__":
    main()
