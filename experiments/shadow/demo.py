"""A shadow run with the plant as the fleet, beside a static cap table, and the report on it."""

import time
from pathlib import Path
from typing import Any

from ... import registry
from ...envs.scenario import load_scenario
from ..incumbent import CapTable, run_beside, shortened
from .report import Progress, shadow_report

DEMO_SCENARIO, DEMO_POLICY, DEMO_SEED = "demo", "best-baseline", 3_000_000


def make_shadow_demo(
    out: Path, seconds: int, progress: Progress | None = None, policy: str = DEMO_POLICY
) -> dict[str, Any]:
    """Run a service in shadow mode beside a static cap table, with the plant as the fleet, and report on it.

    The table is the strongest that never exceeds a limit: it fits the lowest one that the scenario brings.

    Args:
        out: Folder for the database and the report.
        seconds: Length of the run.
        progress: Called with a label and the share done.
        policy: What Flyball proposes with.

    Returns:
        As `shadow_report`, and "incumbent", the table.
    """
    tell = progress or (lambda label, share: None)
    scenario = shortened(load_scenario(DEMO_SCENARIO), float(seconds))
    fleet = scenario.fleet
    lowest_frac = min((e.limit_frac for e in scenario.budget_events), default=1.0)
    table = CapTable.provision(fleet, lowest_frac)
    db = Path(out) / "shadow.db"
    for part in ("", "-wal", "-shm"):
        db.with_name(db.name + part).unlink(missing_ok=True)
    db.parent.mkdir(parents=True, exist_ok=True)
    run_beside(
        scenario,
        registry.policy(policy, scenario),
        lambda plant, view: table.caps_w(fleet, plant.node["stage"][0]),
        f"sqlite:///{db}",
        DEMO_SEED,
        start_s=float(int(time.time()) - seconds),
        progress=lambda label, share: tell(label, 0.4 * share),
    )
    report = shadow_report(
        f"sqlite:///{db}",
        Path(out) / "shadow.html",
        None,
        None,
        progress=lambda label, share: tell(label, 0.4 + 0.6 * share),
    )
    return {**report, "incumbent": {"prefill_w": table.prefill_w, "decode_w": table.decode_w, "fits_frac": lowest_frac}}
