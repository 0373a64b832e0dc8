"""`flyball evaluate`: policies against baselines, paired over windows they were never tuned or trained on."""

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from .. import registry
from ..envs.episodes import read_file
from ..envs.scenario import Scenario, check_scenario, load_scenario
from ..fleet.errors import BadInput
from .bench.fleets import rows_of_racks, scenario_on
from .contenders import ALL_BASELINES, CLAIRVOYANT, Contender, contenders, fingerprint, make_policy, trained_on
from .machine import versions
from .rows import HEADLINE, Case, judge, rows_of
from .windows import PIECE, Task, code_hash, is_kept, run

__all__ = ["DEFAULT_POLICIES", "HEADLINE", "SUITES", "TEST_SEED", "EvaluateConfig", "default_seeds", "evaluate"]

SUITES = {
    "standard": ("steady", "bursty", "mix-shift", "curtailment", "faults", "multi-service"),
    "demo": ("demo", "curtailment", "curtailment-sudden", "bursty"),
    "smoke": ("steady", "curtailment"),
}
"""Named lists of scenarios."""

STANDARD = "standard"

DEFAULT_POLICIES = (ALL_BASELINES,)

TEST_SEED = 1_000_000
"""First seed of test windows; tuning and training use seeds below it, and other blocks of a trace."""

MANY_PIECES = 24
"""Pieces of work from which on a second process, with its seconds of start, is worth it."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to compare.

    Attributes:
        scenarios: Names or paths.
        policies: Names or ONNX files, "baselines" for every one that can run live; the best tuned baseline of each
            family is added.
        suite: Name printed with the rows.
        load: Trace or rate table; generated load if None.
        seeds: Windows per scenario and policy.
        out: Folder for results; a run that was cut off goes on from it, window by window.
        overrides: `--set` of every scenario.
        block: Third of the trace, or stream of the generator.
        groups: Policies that come as several training seeds.
        jobs: Processes; None: two for long runs, where there are cores.
        has_headroom: Run the clairvoyant on the same windows, and state the recovered headroom.
        sizes: Nodes of generated sites to use instead of the scenarios' own.
        is_ablated: Also run every policy file with each bid channel given back to its base.
        first_seed: Of the windows.
    """

    scenarios: tuple[str, ...]
    policies: tuple[str, ...] = DEFAULT_POLICIES
    suite: str | None = None
    load: str | None = None
    seeds: int = 8
    out: Path | None = None
    overrides: tuple[str, ...] = ()
    block: str = "test"
    groups: tuple[Contender, ...] = ()
    jobs: int | None = 1
    has_headroom: bool = False
    sizes: tuple[int, ...] = ()
    is_ablated: bool = False
    first_seed: int = TEST_SEED

    @property
    def windows(self) -> range:
        """Seeds of the windows."""
        return range(self.first_seed, self.first_seed + self.seeds)


def default_seeds(suite: str | None) -> int:
    """Windows where none are asked for: 40 of a suite's results page, 8 of a look."""
    return 40 if suite == STANDARD else 8


def evaluate(config: EvaluateConfig, progress: Callable[[str, float], None] | None = None) -> dict[str, Any]:
    """Run every policy on the same windows of every scenario.

    Returns:
        {"suite", "rows", "command", "code", "versions", "budgets"}. A row is one policy on one scenario: `rows.rows_of`
        and `rows.judge` say what is in it.

    Raises:
        BadInput: unknown scenario, policy, file, size, or fewer than one seed or job.
    """
    if config.seeds < 1:
        raise BadInput(f"--seeds {config.seeds}: use at least 1")
    if config.jobs is not None and config.jobs < 1:
        raise BadInput(f"--jobs {config.jobs}: use at least 1")
    read_file(config.load)  # refuse a bad file in this process, before minutes of work
    fields = []
    for scenario in _scenarios(config):
        field = contenders(config.policies, config.groups, scenario, config.is_ablated)
        for contender in field:
            for member in contender.members:
                make_policy(member, scenario, contender.ablation, contender.folder)
        fields.append((scenario, _with_clairvoyant(config, scenario, field)))
    tasks = [task for scenario, field in fields for c in field for task in _tasks(config, scenario, c)]
    tasks = list(dict.fromkeys(tasks))
    done = run(tasks, config.windows, config.out, _processes(config, len(tasks)), progress)
    cases = []
    for scenario, field in fields:
        windows = {c.name: [done[t] for t in _tasks(config, scenario, c)] for c in field}
        origin = {c.name: trained_on(c, scenario) for c in field}
        best = registry.best_baseline_name(scenario)
        cases.append(Case(scenario, tuple(field), windows, best, config.windows, origin))
    rows = []
    for case in cases:
        seen = any(c.name == CLAIRVOYANT for c in case.contenders)
        rows += rows_of(case, CLAIRVOYANT if seen else None)
    judge(cases, rows)
    if progress:
        progress("done", 1.0)
    return {
        "suite": config.suite,
        "rows": rows,
        "command": command(config),
        "code": code_hash(),
        "versions": versions(),
        "budgets": _budgets(cases),
    }


def _scenarios(config: EvaluateConfig) -> list[Scenario]:
    """The scenarios, on their own sites or on generated ones."""
    own = [load_scenario(s, config.overrides) for s in dict.fromkeys(config.scenarios)]
    if not config.sizes:
        return own
    moved = []
    for size in dict.fromkeys(config.sizes):
        if size < 16 or size % 8:
            raise BadInput(f"--sizes {size}: use multiples of 8 from 16 on")
        for scenario in own:
            on_site = scenario_on(rows_of_racks(size), scenario)
            try:
                check_scenario(on_site)
            except BadInput as e:
                raise BadInput(f"--sizes: {scenario.name} does not fit a generated site: {e}") from None
            moved.append(on_site)
    return moved


def _with_clairvoyant(config: EvaluateConfig, scenario: Scenario, field: list[Contender]) -> list[Contender]:
    """Add the clairvoyant where it was asked for, or where a standard run's folder has its windows already."""
    if any(c.name == CLAIRVOYANT for c in field):
        return field
    added = Contender(CLAIRVOYANT, (CLAIRVOYANT,))
    tasks = _tasks(config, scenario, added)
    is_free = config.suite == STANDARD and all(is_kept(t, config.windows, config.out) for t in tasks)
    return [*field, added] if config.has_headroom or is_free else field


def _tasks(config: EvaluateConfig, scenario: Scenario, contender: Contender) -> list[Task]:
    return [
        Task(scenario, member, contender.ablation, contender.folder, config.load, config.block)
        for member in contender.members
    ]


def _processes(config: EvaluateConfig, tasks: int) -> int:
    if config.jobs is not None:
        return config.jobs
    pieces = tasks * -(-config.seeds // PIECE)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 2) if pieces >= MANY_PIECES else 1


def command(config: EvaluateConfig) -> str:
    """The command that makes these rows, without where it keeps them or how many processes it uses."""
    words = ["flyball", "evaluate"]
    words += ["--suite", config.suite] if config.suite else [w for s in config.scenarios for w in ("--scenario", s)]
    words += [w for p in config.policies for w in ("--policy", p)]
    for group in config.groups:
        words += [w for m in group.members for w in ("--group", f"{group.name}={escape(m)}")]
    words += ["--load", config.load] if config.load else []
    words += ["--seeds", str(config.seeds)]
    words += ["--sizes", ",".join(map(str, config.sizes))] if config.sizes else []
    words += [flag for flag, is_on in (("--ablate", config.is_ablated), ("--headroom", config.has_headroom)) if is_on]
    words += [w for o in config.overrides for w in ("--set", o)]
    return shlex.join(words)


def _budgets(cases: list[Case]) -> dict[str, Any]:
    """What was spent before the comparison: tuning by baseline and family, training by policy file."""
    table = registry.tuned()["baselines"]
    tuning, training = [], {}
    for case in cases:
        family = case.scenario.family
        for contender in case.contenders:
            entry = table.get(contender.name, {}).get(family)
            if entry is not None:
                spent = {k: entry.get(k) for k in ("cpu_s", "candidates")}
                tuning.append({"policy": contender.name, "family": family, **spent})
            if not contender.is_learned or contender.ablation:
                continue
            for member in contender.members:
                card = registry.policy(member, case.scenario).card  # type: ignore[attr-defined]
                spent = {k: (card.run or {}).get(k) for k in ("algo", "steps", "cpu_s", "seconds", "seed")}
                sha = fingerprint(member, case.scenario)[0]
                training[member] = {"policy": contender.name, "file": member, "sha256": sha, **spent}
    unique = {(t["policy"], t["family"]): t for t in tuning}
    return {"tuning": list(unique.values()), "training": list(training.values())}
