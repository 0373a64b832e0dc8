"""Terminal output of the plant's verbs."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .console import PIPE_WIDTH
from .experiments.validate.findings import Finding
from .experiments.validate.report import cells


def show_findings(findings: Sequence[Finding], passed: bool, written: Sequence[Path]) -> None:
    """The findings as a table, and what was written."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    table = Table("check", "GPU", "source", "rows", "MAPE %", "bias %", "p90 %", "target %", "passed", "note")
    for column in table.columns[3:8]:
        column.justify = "right"
    for column in table.columns[:9]:
        column.no_wrap = True
    # notes in full stand in --json and on the page; here one line each keeps the figures together
    table.columns[9].no_wrap, table.columns[9].overflow = True, "ellipsis"
    for f in findings:
        table.add_row(*cells(f), style={True: "green", False: "red", None: ""}[f.passed])
    console.print(table)
    judged = [f for f in findings if f.passed is not None]
    met = sum(bool(f.passed) for f in judged)
    console.print(f"{met} of {len(judged)} targets met: {'passed' if passed else 'not passed'}")
    for path in written:
        console.print(f"written: {path}")
