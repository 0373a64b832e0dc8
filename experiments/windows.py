"""Windows of a comparison: computed in pieces, in several processes if asked, and kept one by one.

A window is one episode of one policy. Its KPIs do not depend on what else is in its batch, so that any number of
processes, and any order, give the same table.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .. import registry
from ..envs.episodes import read_file, run_episodes
from ..envs.scenario import Scenario
from ..fleet.errors import BadInput, FlyballError
from .contenders import fingerprint, is_entry, make_policy

PIECE = 8
"""Windows in a piece of work: one batch in one process."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Task:
    """One policy on one scenario.

    Attributes:
        scenario: What happens.
        policy: By name, file or entry point.
        ablation: Bid channel that its base plays.
        folder: Where an entry point is imported from.
        load: Trace or rate table; generated load if None.
        block: Third of the trace, or stream of the generator.
    """

    scenario: Scenario
    policy: str
    ablation: str | None = None
    folder: str | None = None
    load: str | None = None
    block: str = "test"

    @property
    def label(self) -> str:
        """For progress bars."""
        without = f" without {self.ablation}" if self.ablation else ""
        return f"{self.scenario.name} / {self.policy}{without}"


@dataclass
class Windows:
    """KPIs of one task by seed; grows as pieces come in."""

    load: str = ""
    load_scale: float = 1.0
    kpis: dict[int, dict[str, float]] = field(default_factory=dict)


def play(task: Task, seeds: Sequence[int]) -> Windows:
    """Run a piece of a task."""
    policy = make_policy(task.policy, task.scenario, task.ablation, task.folder)
    try:
        done = run_episodes(task.scenario, policy, seeds, _file(task.load), task.block)
    except Exception as e:
        if not is_entry(task.policy):
            raise
        # a stranger's code may raise anything, also what cannot travel between processes
        raise BadInput(f"{task.label}: {type(e).__name__}: {e}") from None
    return Windows(done.load_source, done.load_scale, dict(zip(seeds, done.kpis, strict=True)))


@cache
def _file(path: str | None):
    return read_file(path)


def run(
    tasks: Sequence[Task],
    seeds: Sequence[int],
    out: Path | None = None,
    processes: int = 1,
    progress: Progress | None = None,
    is_apart: bool = False,
) -> dict[Task, Windows]:
    """Every task on every seed.

    Args:
        tasks: Distinct.
        seeds: Of the windows.
        out: Folder that keeps windows; those it has are not computed again.
        processes: At most so many at once.
        progress: Called with a label and the share done.
        is_apart: Run even a single process apart from this one: for code of strangers.

    Raises:
        FlyballError: if a process died.
    """
    kept = {task: Kept(task, out) for task in tasks}
    pieces: list[tuple[Task, tuple[int, ...]]] = []
    for task in tasks:
        missing = [s for s in seeds if s not in kept[task].windows.kpis]
        pieces += [(task, tuple(missing[i : i + PIECE])) for i in range(0, len(missing), PIECE)]
    if progress and pieces:
        progress(pieces[0][0].label, 0.0)
    for i, (task, found) in enumerate(_each(pieces, min(processes, len(pieces)), is_apart)):
        kept[task].add(found)
        if progress:
            progress(task.label, (i + 1) / len(pieces))
    return {task: kept[task].windows for task in tasks}


def is_kept(task: Task, seeds: Sequence[int], out: Path | None) -> bool:
    """Whether a folder has every window of a task."""
    return out is not None and set(seeds) <= set(Kept(task, out).windows.kpis)


def _each(pieces, processes: int, is_apart: bool) -> Iterator[tuple[Task, Windows]]:
    """Results of pieces, as they come."""
    if processes <= 1 and not (is_apart and pieces):
        for task, seeds in pieces:
            yield task, play(task, seeds)
        return
    # spawned, not forked: numba and ONNX Runtime hold threads
    with ProcessPoolExecutor(max(processes, 1), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(play, task, seeds): task for task, seeds in pieces}
        try:
            for future in as_completed(futures):
                try:
                    found = future.result()
                except BrokenProcessPool:
                    raise FlyballError(
                        f"a process died, perhaps that of {futures[future].label}, often for want of memory; run it "
                        "again with --jobs 1 (--out keeps what was done)"
                    ) from None
                yield futures[future], found
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class Kept:
    """Windows of one task, and the file that keeps them; the file's name and content say what they depend on."""

    def __init__(self, task: Task, out: Path | None):
        self.windows = Windows()
        self.path: Path | None = None
        if out is None:
            return
        load = _file(task.load)
        self.key = {
            "code": code_hash(),
            "scenario": task.scenario.hash,
            "policy": fingerprint(task.policy, task.scenario, task.ablation, task.folder),
            "load": None if load is None else load.digest,
            "block": task.block,
        }
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:12]
        name = Path(task.policy.replace(":", "-")).name + (f"--without-{task.ablation}" if task.ablation else "")
        self.path = Path(out) / "windows" / f"{task.scenario.name}--{name}--{digest}.json"
        if self.path.exists():
            found = self._read()
            if found is not None:
                kpis = {int(seed): row for seed, row in found["windows"].items()}
                self.windows = Windows(found["load"], found["load_scale"], kpis)

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.path.read_text())  # type: ignore[union-attr]
            return found if found["key"] == self.key else None
        except (ValueError, KeyError, TypeError):  # a damaged file is computed again
            return None

    def add(self, found: Windows) -> None:
        """Enter a piece; the file appears whole or stays as it was."""
        windows = self.windows
        windows.load, windows.load_scale = found.load, found.load_scale
        windows.kpis.update(found.kpis)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "key": self.key,
            "load": windows.load,
            "load_scale": windows.load_scale,
            "windows": {str(seed): windows.kpis[seed] for seed in sorted(windows.kpis)},
        }
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content))
        partial.replace(self.path)


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
