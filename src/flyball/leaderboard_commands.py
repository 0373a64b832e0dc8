"""The verb of the leaderboard: submit."""

import sys
from pathlib import Path

import click

from .cli import emit, json_option
from .fleet.errors import BadInput


def register_leaderboard(main: click.Group) -> None:
    """Attach the verb to the group."""
    main.add_command(submit)


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
        raise BadInput("ranked runs are not open yet; check a submission with: flyball submit CARD.toml --check")
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
