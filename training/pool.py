"""Tasks in processes of their own: the death of one is the loss of one attempt, and no other notices.

A pool that shares its workers among tasks breaks as a whole when one is killed; here every attempt is a new process.
"""

import fcntl
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from ..fleet.errors import BadInput

RESTARTS = 3
"""Times that a task is begun anew after its process died."""

Say = Callable[[str, float], None]
Work = Callable[[Any, Say], object]
"""Called with a task and with whom to tell a label and the share done; it goes on from what it left in its folder."""

Watch = Callable[[int, str, float], None]
"""Called with the task's index, a label and the share done."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        error: Why it has no result; None if it was done.
        restarts: Times it was begun anew; None where that is not known.
    """

    error: str | None
    restarts: int | None


def run_local(work: Work, tasks: Sequence[tuple[Any, Path]], jobs: int, watch: Watch) -> list[Outcome]:
    """Do tasks in processes, some at a time; one that dies is begun again, up to `RESTARTS` times.

    Args:
        work: What is done; importable by name.
        tasks: Each with the folder where its process keeps its lock and its output, `worker.log`.
        jobs: Processes at a time.
        watch: Told how far each is.
    """
    waiting, running = deque(range(len(tasks))), {}
    outcomes: dict[int, Outcome] = {}
    deaths = [0] * len(tasks)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                index = waiting.popleft()
                running[index] = _Attempt(work, *tasks[index])
            connection.wait([handle for attempt in running.values() for handle in attempt.handles])
            for index, attempt in list(running.items()):
                is_over = not attempt.process.is_alive()  # asked first: what it said before it ended is read below
                for label, share in attempt.read():
                    watch(index, label, share)
                if not is_over:
                    continue
                del running[index]
                attempt.close()
                code = attempt.process.exitcode
                if code == 0 or attempt.refusal:
                    outcomes[index] = Outcome(attempt.refusal, deaths[index])
                elif deaths[index] < RESTARTS:
                    deaths[index] += 1
                    waiting.appendleft(index)
                else:
                    why = f"its process ended {RESTARTS + 1} times, last with {code}; see {attempt.log}"
                    outcomes[index] = Outcome(why, deaths[index])
    finally:
        for attempt in running.values():
            attempt.close()
    return [outcomes[index] for index in range(len(tasks))]


class _Attempt:
    """One process at work on one task."""

    def __init__(self, work: Work, task: Any, folder: Path):
        context = multiprocessing.get_context("spawn")
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "worker.log"
        self.refusal: str | None = None
        self._reader, writer = context.Pipe(duplex=False)
        self._is_open = True
        self.process = context.Process(target=_serve, args=(writer, work, task, folder), daemon=True)
        self.process.start()
        writer.close()  # the child's copy alone is left: its death ends the pipe

    @property
    def handles(self) -> list[Any]:
        """What becomes ready when there is something to see."""
        return [self.process.sentinel, *([self._reader] if self._is_open else [])]

    def read(self) -> list[tuple[str, float]]:
        """Labels and shares said since the last time."""
        said = []
        try:
            while self._is_open and self._reader.poll():
                label, share, refusal = self._reader.recv()
                if refusal is None:
                    said.append((label, share))
                else:
                    self.refusal = refusal
        except (EOFError, OSError):
            self._is_open = False
        return said

    def close(self) -> None:
        """End the process if it runs, and forget it."""
        if self.process.is_alive():
            self.process.terminate()
        self.process.join()
        self._reader.close()
        self._is_open = False


def _serve(writer: connection.Connection, work: Work, task: Any, folder: Path) -> None:
    """A process's whole life. Where the pool is gone, the next word breaks the pipe and ends it."""
    log = os.open(folder / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    with (folder / "worker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a process of a pool that was killed may still be at it
        try:
            work(task, lambda label, share: writer.send((label, share, None)))
        except BadInput as e:
            with suppress(OSError):
                writer.send(("", 1.0, str(e)))
