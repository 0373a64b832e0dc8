"""Reference pages written from the code they describe: `python -m flyball.experiments.reference docs`.

A test compares the pages with what this module writes, so that they cannot drift.
"""

import sys
from pathlib import Path

from ..envs.kpis import KPI_UNITS
from ..envs.scenario import PlantRanges, list_scenarios, load_scenario
from ..fleet.schema import KINDS, VERSION, schema_hash
from ..fleet.skus import SKUS


def pages() -> dict[str, str]:
    """Name of every generated page under docs/reference, and its text."""
    return {"schema.md": schema_page(), "scenarios.md": scenario_page(), "cli.md": cli_page(), "kpis.md": kpi_page()}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows])


def schema_page() -> str:
    """What a policy sees and may bid."""
    out = ["# Schema", f"What a policy sees and may bid, per kind of token. Version {VERSION}."]
    for kind, (features, bids) in KINDS.items():
        out.append(f"## {kind.capitalize()} tokens\n\nHash `{schema_hash(kind)}`.")
        for title, fields in (("Features", features), ("Bids", bids)):
            rows = [[f"`{f.name}`", f.unit, f"{f.low:g} to {f.high:g}", f.meaning] for f in fields]
            out.append(f"### {title}\n\n" + _table(["name", "unit", "range", "meaning"], rows))
    return "\n\n".join(out) + "\n"


def scenario_page() -> str:
    """What can happen to a fleet, and what is drawn."""
    rows = []
    for name in list_scenarios():
        s = load_scenario(name)
        events = "; ".join(
            f"{1 - e.limit_frac:.0%} less" + (f", {e.notice_s:g} s notice" if e.notice_s else ", no notice")
            for e in s.budget_events
        )
        rows.append(
            [f"`{name}`", s.family, s.fleet.name, f"{s.seconds:g}", f"{s.load.target_util:g}", events or "–", s.summary]
        )
    head = ["scenario", "family", "site", "seconds", "load", "budget events", "what happens"]
    ranges = [[f"`{k}`", f"{low:g} to {high:g}"] for k, (low, high) in PlantRanges().items()]
    skus = [[s.name, f"{s.cap_min_w}–{s.cap_max_w}", str(s.decode_floor_w), str(s.parked_max_w)] for s in SKUS.values()]
    return (
        "\n\n".join(
            [
                "# Scenarios",
                "Load is mean arrivals over what the fleet can serve uncapped, split at best between its stages.",
                _table(head, rows),
                "## Parameters drawn per episode\n\nDefaults; a scenario may narrow or move them.",
                _table(["parameter", "range"], ranges),
                "## GPU products",
                _table(["product", "cap, W", "decode floor, W", "parked bound, W"], skus),
            ]
        )
        + "\n"
    )


def kpi_page() -> str:
    """KPIs by name."""
    rows = [[f"`{name}`", meaning] for name, meaning in KPI_UNITS.items()]
    return "# Key performance indicators\n\n" + _table(["name", "meaning"], rows) + "\n"


def cli_page() -> str:
    """Help of every verb."""
    import click

    from ..cli import main

    out = ["# Command line", "Every verb takes `--json`; exit code 2 means that the input can be mended."]

    def describe(command: click.Command, name: str, parent: click.Context) -> None:
        # under its parent, as when it is called: help options are inherited, and click remembers them
        context = click.Context(command, info_name=name, parent=parent, max_content_width=100, terminal_width=100)
        out.append(f"## {context.command_path}\n\n```\n{command.get_help(context)}\n```")
        if isinstance(command, click.Group):
            for child in sorted(command.commands):
                describe(command.commands[child], child, context)

    root = click.Context(main, info_name="flyball", **main.context_settings)
    for name in sorted(main.commands):
        describe(main.commands[name], name, root)
    return "\n\n".join(out) + "\n"


def write(docs: Path) -> list[Path]:
    """Write every page; returns their paths."""
    folder = docs / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages().items():
        (folder / name).write_text(text)
        written.append(folder / name)
    return written


if __name__ == "__main__":
    for path in write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs")):
        print(path)
