"""The command line. Only click is imported here: `flyball --help` answers in a fraction of a second."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import click

from . import __version__
from .fleet.errors import BadInput, FlyballError


class _Group(click.Group):
    """Turns what a user can mend into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BadInput as e:
            click.echo(f"error: {e}", err=True)
            ctx.exit(2)
        except FlyballError as e:
            click.echo(f"error: {e}", err=True)
            ctx.exit(1)
        except BrokenPipeError:
            # the reader has gone, as in `flyball scenarios | head`
            sys.stderr.close()
            ctx.exit(0)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def emit(result: dict[str, Any]) -> None:
    """One JSON object on stdout; NaN and infinities become null, as JSON has neither."""
    click.echo(json.dumps(clean(result), allow_nan=False))


def clean(value: Any) -> Any:
    """A value as strict JSON has it: names as strings, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and not isinstance(value, int | float):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class WholeNumber(click.ParamType):
    """A whole number, in digits or as 1e7."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(value)
        except ValueError:
            pass
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not number.is_integer():
            self.fail(f"{value!r} is not a whole number; write it like 10000000 or 1e7.", param, ctx)
        return int(number)


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; logs go to stderr.")
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a scenario's key, e.g. load.scale=1.",
)
load_option = click.option(
    "--load", type=click.Path(), default=None,
    help="Load from a file: Azure LLM CSV, Mooncake JSONL or a rate table. Generated load by default.",
)  # fmt: skip


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="flyball")
def main() -> None:
    """The governor of GPU fleets under a power budget.

    \b
    Start here:
      flyball demo                     the whole story, with a report
      flyball scenarios                what can happen to a fleet
      flyball simulate bursty --policy greedy
    """


from .commands import register  # noqa: E402  (the verbs need the group above)

register(main)
