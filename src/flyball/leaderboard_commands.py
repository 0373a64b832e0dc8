"""The verbs of the leaderboard: submit and leaderboard."""

import sys
from pathlib import Path

import click

from .cli import emit, json_option, set_option
from .fleet.errors import BadInput


def register_leaderboard(main: click.Group) -> None:
    """Attach the verbs to the group."""
    main.add_command(submit)
    main.add_command(leaderboard)


@click.command()
@click.argument("card", type=click.Path(path_type=Path))
@click.option("--check", "is_check", is_flag=True, help="Only check: run every policy apart, timed and provoked.")
@json_option
def submit(card: Path, is_check: bool, as_json: bool) -> None:
    """Check a leaderboard submission: a card (TOML) and one policy per training seed.

    \b
    Example:
      flyball submit mine/card.toml --check

    docs/leaderboard.md says what a card holds and what is checked.
    """
    from .experiments.leaderboard.card import read_card
    from .experiments.leaderboard.check import check

    if not is_check:
        raise BadInput(
            "ranked runs are not open yet; check a submission with: flyball submit CARD.toml --check, and score it on "
            "validation windows with: flyball leaderboard CARD.toml"
        )
    given = read_card(card)
    found = check(given, card.parent)
    is_passed = not any(f.failures for f in found)
    if as_json:
        rows = [{"policy": f.policy, "decision_ms": f.decision_ms, "failures": list(f.failures)} for f in found]
        emit({"name": given.name, "track": given.track, "passed": is_passed, "policies": rows})
    else:
        for f in found:
            words = "; ".join(f.failures) or f"passed, {f.decision_ms:.2f} ms per decision"
            click.echo(f"{f.policy}: {words}")
    sys.exit(0 if is_passed else 1)


@click.command()
@click.argument("cards", metavar="CARD...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--seeds", default=40, show_default=True, type=int, help="Validation windows per scenario.")
@click.option(
    "--scenario", "names", multiple=True, help="A scenario; repeat for several. The standard suite by default."
)
@click.option("--jobs", default=1, show_default=True, type=int, help="Processes.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Keep windows here; a run cut off goes on.")
@set_option
@json_option
def leaderboard(cards, seeds: int, names, jobs: int, out: Path | None, overrides, as_json: bool) -> None:
    """Score submissions on the public validation windows: the static stage table is 0, the bound 100.

    \b
    Example:
      flyball leaderboard mine/card.toml theirs/card.toml --seeds 40 --out out/leaderboard

    It runs the clairvoyant for the bound, 2 to 5 CPU seconds per window; --out keeps it. Entry points of a card are
    code: it runs in processes of its own, with your rights.
    """
    from .console import progress_bar, show_leaderboard
    from .experiments.evaluate import STANDARD, SUITES
    from .experiments.leaderboard.board import rank

    with progress_bar("leaderboard", as_json) as bar:
        result = rank(cards, seeds, names or SUITES[STANDARD], out, jobs, tuple(overrides), bar)
    if as_json:
        emit(result)
        return
    show_leaderboard(result)
