"""`python -m flyball.experiments.calibrate.page DATA`: write the tables of docs/calibration.md from fresh runs."""

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...fleet.errors import BadInput
from ..replay.check import findings as replay_findings
from ..replay.compare import compare
from .refit import refit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "calibration.md"


def table(rows: Sequence[dict]) -> str:
    """Findings as a Markdown table."""
    lines = [
        "| check | device | points | error | bias | 90 % below | target | within | note |",
        "|---|---|--:|--:|--:|--:|--:|---|---|",
    ]
    for r in rows:
        target = "" if r["target"] is None else f"{r['target']:.0%}"
        within = "" if r["target"] is None else ("yes" if r["passed"] else "**no**")
        lines.append(
            f"| {r['check']} | {r['sku']} | {r['n']} | {r['mape']:.1%} | {r['bias']:+.1%} | {r['p90']:.1%} "
            f"| {target} | {within} | {r['note']} |"
        )
    return "\n".join(lines)


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        BadInput: if the page has no such marks.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise BadInput(f"{PAGE.name}: no marks <!-- {name} --> and <!-- /{name} -->; put them back")
    return pattern.sub(lambda m: m[1] + content + m[2], text)


def write_page(data: Path) -> None:
    """Refit, replay, and write both tables."""
    from .published_curves import published_findings

    # slow runs first, the page is read and written at the end: it may be edited meanwhile
    replayed = table(replay_findings(compare()))
    with tempfile.TemporaryDirectory() as scratch:
        rows = refit(data, Path(scratch))["findings"]
    curves = data / "published_power_curves" / "curves.csv"
    if curves.is_file():
        rows += published_findings(curves)
    text = fill(PAGE.read_text(), "fitted", table(rows))
    PAGE.write_text(fill(text, "replay", replayed))


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
