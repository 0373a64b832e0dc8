"""A second process that stands by while the first one holds GPUs: how it is forked, spoken to and let go.

What it does when the first one dies or falls silent is its job: `guardian` lowers the caps of an agent to their
fallback, a sweep's restorer gives settings back. It is forked before its owner initialises NVML or starts a thread,
so that it shares the owner's pages and needs no start of its own; it initialises NVML for itself.
"""

import contextlib
import gc
import json
import logging
import os
import signal
from collections.abc import Callable
from typing import Any, NoReturn

from ..fleet.errors import FlyballError
from . import nvml
from .errors import GpuError

LOOK_AGAIN_S = 0.1
LAST_WORDS_S = 60.0
"""How long a watchdog whose owner died keeps trying when NVML gives no answer."""

MAX_MESSAGE_BYTES = 65536

Job = Callable[[int, dict[str, nvml.Gpu]], None]
"""What a watchdog does until it is let go: called with its end of the pipe and its GPUs by UUID."""

_log = logging.getLogger("flyball.watchdog")


class WatchdogGone(FlyballError):
    """The watchdog does not run: without it nothing may be written."""


class Watchdog:
    """The owner's end.

    Args:
        name: What it is called in messages.
        pid: Of the process.
        pipe: To it.
    """

    def __init__(self, name: str, pid: int, pipe: int):
        self.name, self.pid, self._pipe = name, pid, pipe

    def tell(self, message: dict[str, Any]) -> None:
        """Hand over what to do if the owner falls silent, before the writes that go with it.

        Raises:
            WatchdogGone: if the process died.
        """
        self._write(json.dumps(message).encode() + b"\n")

    def beat(self) -> None:
        """Say that the owner goes on.

        Raises:
            WatchdogGone: if the process died.
        """
        self._write(b"\n")

    def release(self) -> None:
        """End it without its job: the owner has seen to everything itself."""
        with contextlib.suppress(WatchdogGone):
            self.tell({"release": True})
        self.abandon()

    def abandon(self) -> None:
        """Leave its job to it, as a death of this process would, and wait until it has ended."""
        os.close(self._pipe)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _write(self, message: bytes) -> None:
        try:
            # a message is cut only when the pipe is full: the other end has not read for minutes
            if os.write(self._pipe, message) != len(message):
                raise WatchdogGone(f"the {self.name} does not read its pipe")
        except (BrokenPipeError, BlockingIOError):
            raise WatchdogGone(f"the {self.name} process {self.pid} is gone or hangs") from None


class Inbox:
    """The other end: whole messages out of what the pipe brings."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> list[dict[str, Any]]:
        """Messages that `data` completes; heartbeats are none."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines if line]


def fork_watchdog(name: str, process_name: str, job: Job) -> tuple[int, int]:
    """Fork a watchdog; call it before NVML is initialised and before any thread is started.

    Args:
        name: What it is called in messages.
        process_name: What the kernel shows, at most 15 bytes.
        job: Runs in the new process, once that has reached the GPUs.

    Returns:
        Its process id and the pipe to it.

    Raises:
        WatchdogGone: if it cannot reach the GPUs.
    """
    pipe_read, pipe_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    gc.freeze()  # or the collector's marks would copy every page that the two processes share
    pid = os.fork()
    if pid == 0:
        os.close(pipe_write)
        os.close(ready_read)
        _run(name, process_name, pipe_read, ready_write, job)
    gc.unfreeze()
    os.close(pipe_read)
    os.close(ready_write)
    with os.fdopen(ready_read, "rb") as ready:
        answer = ready.read().decode()
    if answer != "ready":
        os.close(pipe_write)
        os.waitpid(pid, 0)
        raise WatchdogGone(f"the {name} could not start: {answer or 'it died'}")
    return pid, pipe_write


def _run(name: str, process_name: str, pipe: int, ready: int, job: Job) -> NoReturn:
    status = 1
    try:
        os.setsid()  # a signal to the owner's process group must not take both
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as f:
            f.write(process_name)
        try:
            gpus = {g.uuid: g for g in nvml.open_gpus()}
        except GpuError as error:
            os.write(ready, str(error).encode())
        else:
            os.write(ready, b"ready")
            os.close(ready)
            job(pipe, gpus)
            status = 0
    except Exception:
        _log.exception("the %s failed", name)
    finally:
        # never return into the owner's code
        os._exit(status)
