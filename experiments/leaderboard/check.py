"""The check of a submission: every policy in a process of its own, timed and provoked.

The process that runs strangers' code is not the one that judges: it dies alone, and its time is limited.
"""

import importlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ... import registry
from ...envs.core import Core
from ...envs.scenario import load_scenario
from ...fleet.errors import BadInput
from ...policies.base import Policy
from ..bench.fleets import rows_of_racks, scenario_on
from .card import Card

NODES = 64
DECISION_LIMIT_MS = 10.0
"""Median time of one decision at `NODES` nodes, observation not counted."""

DECISIONS = 60
SCENARIO = "curtailment"
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Checked:
    """What the check of one policy found.

    Attributes:
        policy: As the card names it.
        decision_ms: Median time of a decision; NaN where it never decided.
        failures: What is wrong, one sentence each; none: passed.
    """

    policy: str
    decision_ms: float
    failures: tuple[str, ...]


def check(card: Card, folder: Path, timeout_s: float = TIMEOUT_S) -> list[Checked]:
    """Check every policy of a card.

    Args:
        card: The submission.
        folder: Where its files stand.
        timeout_s: Longest time that one policy's process may take.
    """
    return [_apart(entry, folder, timeout_s) for entry in card.policies]


def _apart(entry: str, folder: Path, timeout_s: float) -> Checked:
    """`examine` in a process of its own."""
    command = [sys.executable, "-m", "flyball.experiments.leaderboard.check", entry]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Checked(entry, float("nan"), (f"did not finish {DECISIONS} decisions within {timeout_s:g} s",))
    lines = done.stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1])
        return Checked(entry, float(found["decision_ms"]), tuple(map(str, found["failures"])))
    except (IndexError, ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return Checked(entry, float("nan"), (f"its process ended without an answer: {last[:200]}",))


def load_entry(entry: str, scenario, folder: Path) -> Policy:
    """A policy by the words of a card.

    Args:
        entry: "FILE.onnx" or "package.module:make".
        scenario: Whose fleet it is made for.
        folder: The card's.

    Raises:
        BadInput: if the file cannot be used, or the entry point cannot be imported or called.
    """
    if entry.endswith(".onnx"):
        return registry.policy(str(folder / entry), scenario)
    module, _, name = entry.partition(":")
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))
    try:
        return getattr(importlib.import_module(module), name)(scenario.fleet)
    except Exception as e:  # a stranger's code may raise anything
        raise BadInput(f"{entry}: {type(e).__name__}: {e}") from None


def examine(entry: str) -> Checked:
    """Load one policy and let it decide at `NODES` nodes, twice, and once on telemetry with everything missing."""
    scenario = scenario_on(rows_of_racks(NODES), load_scenario(SCENARIO))
    try:
        runs = [_decide(load_entry(entry, scenario, Path.cwd()), scenario) for _ in range(2)]
    except Exception as e:
        return Checked(entry, float("nan"), (f"{type(e).__name__}: {e}",))
    failures = []
    (bids, times_ms), (again, _) = runs
    if not all(np.isfinite(b).all() for b in bids):
        failures.append("a bid is not finite; the arbiter would read it as neutral")
    if any(np.abs(b).max() > 1.0 for b in bids if np.isfinite(b).all()):
        failures.append("a bid is outside [-1, 1]; clip it")
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(bids, again, strict=True)):
        failures.append("two runs on the same telemetry bid differently; fix its seed")
    decision_ms = float(np.median(times_ms))
    if decision_ms > DECISION_LIMIT_MS:
        failures.append(
            f"a decision takes {decision_ms:.1f} ms at {NODES} nodes; the limit is {DECISION_LIMIT_MS:g} ms"
        )
    return Checked(entry, decision_ms, tuple(failures))


def _decide(policy: Policy, scenario) -> tuple[list[np.ndarray], list[float]]:
    """Bids and times of `DECISIONS` decisions in closed loop; the last one sees nothing but missing values."""
    core = Core(scenario, registry.policy(scenario.background, scenario))
    core.reset(np.array([0]))
    memory = policy.start(1)
    out, times_ms = [], []
    for k in range(DECISIONS):
        if k == DECISIONS - 1:
            _blind(core)
        started = time.perf_counter()
        bids, memory = policy.bid(core.plant.snapshot, core.observation, memory)
        times_ms.append(1e3 * (time.perf_counter() - started))
        out.append(np.concatenate([np.ravel(b) for b in (bids.pool, bids.node, bids.fleet)]).astype(np.float64))
        core.step(bids)
    return out, times_ms


def _blind(core: Core) -> None:
    """Telemetry of nothing: every reading missing, every age long past."""
    for table in (core.plant.snapshot.node, core.plant.snapshot.service):
        for name in table.dtype.names or ():
            if table.dtype[name].kind == "f":
                table[name] = 1e9 if name == "age_s" else np.nan
    core._look()


if __name__ == "__main__":
    found = examine(sys.argv[1])
    print(json.dumps({"decision_ms": found.decision_ms, "failures": list(found.failures)}))
