"""`flyball evaluate`: policies against baselines, paired over windows they were never tuned or trained on."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import registry
from ..envs.episodes import read_file, run_episodes
from ..envs.scenario import Scenario, load_scenario
from ..fleet.errors import BadInput
from .statistics import interval, paired

SUITES = {
    "standard": ("steady", "bursty", "mix-shift", "curtailment", "faults", "multi-service"),
    "demo": ("demo", "curtailment", "curtailment-sudden", "bursty"),
    "smoke": ("steady", "curtailment"),
}
"""Named lists of scenarios."""

DEFAULT_POLICIES = ("uniform", "static", "proportional", "greedy")

LARGER_IS_BETTER = {"goodput_tok_s_per_mw": True, "slo_attainment_frac": True, "tokens_per_joule": True}
"""Direction of KPIs for `worst`; every other KPI is worse when larger."""

HEADLINE = "goodput_tok_s_per_mw"

TEST_SEED = 1_000_000
"""First seed of test windows; tuning and training use seeds below it, and other blocks of a trace."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to compare.

    Attributes:
        scenarios: Names or paths.
        policies: Names or ONNX files; the best tuned baseline of each family is added.
        suite: Name printed with the rows.
        load: Trace or rate table; generated load if None.
        seeds: Windows per scenario and policy.
        out: Folder for results; a run that was cut off goes on from it.
        overrides: `--set` of every scenario.
        block: Third of the trace, or stream of the generator.
    """

    scenarios: tuple[str, ...]
    policies: tuple[str, ...] = DEFAULT_POLICIES
    suite: str | None = None
    load: str | None = None
    seeds: int = 8
    out: Path | None = None
    overrides: tuple[str, ...] = ()
    block: str = "test"


def evaluate(config: EvaluateConfig, progress: Callable[[str, float], None] | None = None) -> dict[str, Any]:
    """Run every policy on the same windows of every scenario.

    Returns:
        {"suite", "rows", "command"}; a row is {"scenario", "family", "policy", "load", "load_scale", "seeds", "kpis",
        "vs_best_baseline", "recovered_headroom"}.

    Raises:
        BadInput: unknown scenario, policy, file, or fewer than one seed.
    """
    if config.seeds < 1:
        raise BadInput(f"--seeds {config.seeds}: use at least 1")
    file = read_file(config.load)
    scenarios = [load_scenario(s, config.overrides) for s in config.scenarios]
    jobs = [(sc, p) for sc in scenarios for p in _policies(config.policies, sc)]
    for scenario, name in jobs:  # refuse bad names before minutes of work
        registry.policy(name, scenario)
    seeds = [TEST_SEED + i for i in range(config.seeds)]
    done: dict[tuple[str, str], dict[str, Any]] = {}
    for i, (scenario, name) in enumerate(jobs):
        label = f"{scenario.name} / {name}"
        if progress:
            progress(label, i / len(jobs))
        done[scenario.name, name] = _windows(config, scenario, name, seeds, file)
    if progress:
        progress("done", 1.0)
    rows = [_row(scenario, name, done, config) for scenario, name in jobs]
    return {"suite": config.suite, "rows": rows}


def _policies(names: Sequence[str], scenario: Scenario) -> list[str]:
    """The policies asked for and the best tuned baseline, each once, names resolved."""
    out: list[str] = []
    for name in (*names, "best-baseline"):
        real = registry.best_baseline_name(scenario) if name == "best-baseline" else name
        if real not in out:
            out.append(real)
    return out


def _windows(config: EvaluateConfig, scenario: Scenario, name: str, seeds: list[int], file) -> dict[str, Any]:
    """KPIs of every window, from the results folder where they were computed before."""
    key = {
        "code": code_hash(),
        "scenario": scenario.hash,
        "policy": _fingerprint(name, scenario),
        "load": None if file is None else file.digest,
        "block": config.block,
        "seeds": seeds,
    }
    cache = None
    if config.out is not None:
        cache = config.out / "windows" / f"{scenario.name}--{Path(name).name}.json"
        if cache.exists():
            found = json.loads(cache.read_text())
            if found["key"] == key:
                return found
    started = time.process_time()
    episodes = run_episodes(scenario, registry.policy(name, scenario), seeds, file, config.block)
    result = {
        "key": key,
        "kpis": episodes.kpis,
        "load": episodes.load_source,
        "load_scale": episodes.load_scale,
        "cpu_s": time.process_time() - started,
    }
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(".partial")
        partial.write_text(json.dumps(result))
        partial.replace(cache)
    return result


@cache
def code_hash() -> str:
    """First 16 hex digits of the SHA-256 of all that decides an episode: the nouns, the plant and the policies."""
    digest = hashlib.sha256()
    root = Path(registry.__file__).parent
    for folder in ("fleet", "envs", "policies"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".toml"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _fingerprint(name: str, scenario: Scenario) -> Any:
    """What identifies a policy: its constants, or its file's bytes."""
    if name == "champion" or name.endswith(".onnx"):
        path = registry.champion_path() if name == "champion" else Path(name)
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return [name, registry.tuned()["baselines"].get(name, {}).get(scenario.family, {}).get("params", {})]


def _row(scenario: Scenario, name: str, done: dict, config: EvaluateConfig) -> dict[str, Any]:
    mine = done[scenario.name, name]
    base_name = registry.best_baseline_name(scenario)
    base = done[scenario.name, base_name]
    kpis = {}
    for kpi in mine["kpis"][0]:
        values = np.array([w[kpi] for w in mine["kpis"]], float)
        mean, ci = interval(values)
        finite = values[np.isfinite(values)]
        worst = math.nan
        if len(finite):
            worst = float(finite.min() if LARGER_IS_BETTER.get(kpi) else finite.max())
        kpis[kpi] = {"mean": mean, "ci95": ci, "worst": worst}
    diff, ci = paired([w[HEADLINE] for w in mine["kpis"]], [w[HEADLINE] for w in base["kpis"]])
    return {
        "scenario": scenario.name,
        "family": scenario.family,
        "policy": name,
        "load": mine["load"],
        "load_scale": mine["load_scale"],
        "seeds": config.seeds,
        "kpis": kpis,
        "vs_best_baseline": {"baseline": base_name, "diff": diff, "ci95": ci},
        # needs a clairvoyant controller's score of the same windows; none is run here
        "recovered_headroom": None,
    }
