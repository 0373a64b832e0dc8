"""`flyball sweep`: seeds times configurations, each a run of its own; the best that passed its gate is kept.

RL.md: seeds differ by 1 %, so take three or more and choose by validation.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import registry
from ..envs.scenario import load_scenario
from ..fleet.errors import BadInput
from .config import TrainConfig, identity_of
from .pool import Outcome, run_local
from .ray_pool import run_ray
from .tracking import prepare, store_of

Progress = Callable[[str, float], None]


def plan(template: TrainConfig, algos: Sequence[str], profiles: Sequence[str], seeds: int) -> list[TrainConfig]:
    """The trials of a sweep: algorithms times profiles times the seeds 0, 1, ..., each in a folder of its own.

    Raises:
        BadInput: no seed, algorithm or profile, or one that cannot be run.
    """
    if seeds < 1:
        raise BadInput(f"--seeds {seeds}: use at least 1")
    trials = [
        replace(template, algo=algo, profile=profile, seed=seed, out=template.out / f"{algo}-{profile}-{seed}")
        for algo in dict.fromkeys(algos)
        for profile in dict.fromkeys(profiles)
        for seed in range(seeds)
    ]
    if not trials:
        raise BadInput("a sweep needs at least one --algo and one --profile")
    for trial in trials:
        trial.check()
    return trials


def sweep(
    template: TrainConfig,
    algos: Sequence[str],
    profiles: Sequence[str],
    seeds: int,
    jobs: int = 2,
    ray: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train every trial that is not done yet, and keep the best: `best.onnx` and `sweep.json` in the folder.

    Args:
        template: What all trials share; its `out` is the sweep's folder.
        algos: Algorithms.
        profiles: What policies correct.
        seeds: Per algorithm and profile.
        jobs: Processes at a time, in the local pool.
        ray: Address of a Ray cluster instead of the local pool; every node must see the folder under the same path.
        progress: Called with a label and the share done.

    Returns:
        {"out", "scenarios", "base", "trials", "configurations", "best", "onnx"}. A trial is {"trial", "algo",
        "profile", "seed", "gain", "passed", "steps", "cpu_s", "restarts", "was_done", "error"}; `best` names one, and
        is None with `onnx` if none passed its gate.

    Raises:
        BadInput: a configuration that cannot be run, a folder in use, a store or a cluster that cannot be reached.
    """
    if jobs < 1:
        raise BadInput(f"--jobs {jobs}: use at least 1")
    template = replace(template, out=template.out.resolve())
    trials = plan(template, algos, profiles, seeds)
    scenarios = [load_scenario(name) for name in template.scenarios]
    base, params = registry.base_of(template.base, scenarios)
    registry.baseline(base, scenarios[0], params)  # refuse an unknown one before any work
    identities = [_told(identity_of(trial, scenarios), trial) for trial in trials]
    template.out.mkdir(parents=True, exist_ok=True)
    with _alone(template.out):
        found = [_finished(trial, identity) for trial, identity in zip(trials, identities, strict=True)]
        todo = [index for index, result in enumerate(found) if result is None]
        done = _run(template, [trials[i] for i in todo], jobs, ray, len(trials), progress)
        outcomes = dict(zip(todo, done, strict=True))
        rows = []
        for index, trial in enumerate(trials):
            result = found[index] or _finished(trial, identities[index])
            rows.append(_row(trial, result, outcomes.get(index)))
        return _keep(template, base, rows)


def _run(
    template: TrainConfig, trials: list[TrainConfig], jobs: int, ray: str | None, total: int, progress: Progress | None
) -> list[Outcome]:
    """Do what is not done, telling how much of the whole is."""
    if not trials:
        return []
    store = store_of(template.out, template.mlflow_uri)
    if ray is None or template.mlflow_uri:
        # one store for all: its tables are made here, once. On a cluster a SQLite file cannot be shared.
        prepare(template.out, store)
        trials = [replace(trial, mlflow_uri=store) for trial in trials]
    shares = np.zeros(len(trials))

    def watch(index: int, label: str, share: float) -> None:
        shares[index] = share
        done = total - len(trials) + int((shares >= 1).sum())
        if progress is not None:
            progress(f"{done} of {total} trials done", (total - len(trials) + shares.sum()) / total)

    tasks = [(trial, trial.out) for trial in trials]
    return run_local(train_trial, tasks, jobs, watch) if ray is None else run_ray(train_trial, tasks, ray, watch)


def train_trial(config: TrainConfig, progress: Progress) -> None:
    """One trial, in whatever process; its result is in its folder."""
    from .train import train

    train(config, progress)


def _told(identity: dict[str, Any], trial: TrainConfig) -> dict[str, Any]:
    """What a result must say of itself to be this trial's."""
    return json.loads(json.dumps({"identity": identity, "budget": trial.budget()}))


def _finished(trial: TrainConfig, told: dict[str, Any]) -> dict[str, Any] | None:
    """The trial's result if it stands in its folder: of this configuration, these scenarios and this budget."""
    try:
        result = json.loads((trial.out / "run.json").read_text())
    except (OSError, ValueError):
        return None
    is_whole = all(result.get(key) == value for key, value in told.items()) and (trial.out / "policy.onnx").exists()
    return result if is_whole else None


def _row(trial: TrainConfig, result: dict[str, Any] | None, outcome: Outcome | None) -> dict[str, Any]:
    """One trial as people and scripts see it; without an outcome it was done before."""
    error = outcome.error if outcome else None
    if result is None and error is None:
        error = f"no result in {trial.out}; on a cluster every node must see that folder"
    kept = {key: result[key] if result and not error else None for key in ("gain", "passed", "steps", "cpu_s")}
    return {
        "trial": trial.out.name,
        "algo": trial.algo,
        "profile": trial.profile,
        "seed": trial.seed,
        **kept,
        "restarts": outcome.restarts if outcome else 0,
        "was_done": outcome is None,
        "error": error,
    }


def _keep(template: TrainConfig, base: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Copy the best policy that passed, and write what there is to say."""
    passed = [row for row in rows if row["passed"]]
    best = max(passed, key=lambda row: row["gain"])["trial"] if passed else None
    onnx = template.out / "best.onnx"
    if best is None:
        onnx.unlink(missing_ok=True)  # of an earlier sweep here: it is none of these trials
    else:
        partial = onnx.with_suffix(".partial")
        shutil.copyfile(template.out / best / "policy.onnx", partial)
        partial.replace(onnx)
    result = {
        "out": str(template.out),
        "scenarios": list(template.scenarios),
        "base": base,
        "trials": rows,
        "configurations": _configurations(rows),
        "best": best,
        "onnx": str(onnx) if best else None,
    }
    summary = template.out / "sweep.json"
    partial = summary.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(summary)
    return result


def _configurations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gains over the seeds of every algorithm and profile: what a seed more would bring is not what the best has."""
    out = []
    for algo, profile in dict.fromkeys((row["algo"], row["profile"]) for row in rows):
        own = [row for row in rows if (row["algo"], row["profile"]) == (algo, profile)]
        gains = [row["gain"] for row in own if row["gain"] is not None]
        out.append(
            {
                "configuration": f"{algo}-{profile}",
                "seeds": len(own),
                "passed": sum(bool(row["passed"]) for row in own),
                "mean_gain": float(np.mean(gains)) if gains else None,
                "least_gain": min(gains) if gains else None,
                "largest_gain": max(gains) if gains else None,
            }
        )
    return out


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against a second sweep.

    Raises:
        BadInput: if one runs there.
    """
    with (folder / "sweep.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{folder}: another sweep runs there; wait for it, or use another --out") from None
        yield
