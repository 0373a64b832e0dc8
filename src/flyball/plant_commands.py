"""The verb that compares the plant with measured hardware. It imports what it needs when it runs."""

from pathlib import Path

import click

from .cli import emit, json_option
from .fleet.errors import BadInput


def register_plant(main: click.Group) -> None:
    """Attach the plant's verbs to the group."""
    main.add_command(validate)


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, envvar="FLYBALL_DATA",
    help="Folder of measurements, one folder per source (mlenergy_v3, aiconfigurator, ...).",
)  # fmt: skip
@click.option("--check", "checks", multiple=True, help="Only this check; may be repeated. All by default.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder for a page with plots.")
@json_option
def validate(data: Path, checks: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Compare the plant with measured hardware: watts, inter-token latency, time to first token.

    \b
    Shipped parameters are judged on every row, and refits on held-out rows and held-out models.
    Sources that DIR lacks are skipped and said so. Exits 0 whether or not targets are met; "passed" says.
    Examples:
      flyball validate --data ../shared/data
      flyball validate --data DIR --check power --json
    """
    try:
        from .experiments.validate.report import all_passed, run_checks, write_report
    except ImportError as e:
        raise BadInput(f"this needs {e.name}; pip install pandas pyarrow scipy") from e

    findings = run_checks(data, checks, lambda name: click.echo(f"validate: {name} ...", err=True))
    written = write_report(data, findings, out) if out else []
    passed = all_passed(findings)
    if as_json:
        emit({
            "data": data, "findings": [f.as_dict() for f in findings], "passed": passed,
            "report": written[0] if written else None,
        })  # fmt: skip
        return
    from .plant_tables import show_findings

    show_findings(findings, passed, written)
