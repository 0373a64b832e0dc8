"""`python -m flyball.experiments.calibrate.page DATA [fitted|replay]`: write docs/calibration.md's tables from runs."""

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...fleet.errors import BadInput
from ..replay.check import findings as replay_findings
from ..replay.compare import compare
from .published_curves import published_findings
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


def fitted(data: Path) -> str:
    """The table of fits and measured inputs."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = refit(data, Path(scratch))["findings"]
    curves = data / "published_power_curves" / "curves.csv"
    return table(rows + (published_findings(curves) if curves.is_file() else []))


def write_page(data: Path, parts: Sequence[str] = ("fitted", "replay")) -> None:
    """Run what the chosen tables need and write them; the page may be edited meanwhile."""
    for part in parts:
        content = fitted(data) if part == "fitted" else table(replay_findings(compare()))
        PAGE.write_text(fill(PAGE.read_text(), part, content))


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), sys.argv[2:] or ("fitted", "replay"))
