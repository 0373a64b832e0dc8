"""A second process that gives the GPUs their settings back when a sweep no longer can.

Built like `actuators.guardian`, and forked at the same place for the same reasons, but it *restores*: a sweep runs on a
drained node under no lease, lowers caps below those it found and locks clocks, and must leave neither behind. It acts
when the pipe closes (the sweep died, of SIGKILL too) and when nothing was heard for the hang limit. The caps found are
on disk as well (`actuators.ownership`), so that a sweep that starts after both died finds and restores them.
"""

import contextlib
import gc
import json
import logging
import os
import select
import signal
import time
from collections.abc import Mapping

from ...actuators import nvml
from ...actuators.errors import GpuError, GpuForbidden, GpuLost
from ...actuators.guardian import LAST_WORDS_S, LOOK_AGAIN_S, MAX_MESSAGE_BYTES, GuardianGone

_log = logging.getLogger("flyball.calibrate")


def restore(gpus: Mapping[str, nvml.Gpu], caps_w: Mapping[str, int], has_clocks: bool) -> bool:
    """Give back caps and unlock clocks, every GPU tried; whether nothing is left to try."""
    is_done = True
    for uuid, cap_w in caps_w.items():
        gpu = gpus.get(uuid)
        if gpu is None:
            continue
        try:
            if nvml.read_cap_w(gpu) != cap_w:
                is_done &= nvml.set_cap_w(gpu, cap_w) == cap_w
            if has_clocks:
                nvml.set_clock_ceiling(gpu, 1.0)
        except GpuLost:
            continue  # a reboot brings it back with the driver's defaults
        except GpuForbidden:
            # what forbids writes took none of the sweep's either, unless the right was lost on the way
            is_done &= nvml.read_cap_w(gpu) == cap_w
        except GpuError:
            is_done = False
    return is_done


class Restorer:
    """The sweep's end."""

    def __init__(self, pid: int, pipe: int):
        self.pid, self._pipe = pid, pipe

    def hold(self, caps_w: Mapping[str, int], has_clocks: bool) -> None:
        """Hand over what to give back, before the first write.

        Raises:
            GuardianGone: if the process died.
        """
        self._write(json.dumps({"caps_w": dict(caps_w), "has_clocks": has_clocks}).encode() + b"\n")

    def beat(self) -> None:
        """Say that the sweep goes on.

        Raises:
            GuardianGone: if the process died.
        """
        self._write(b"\n")

    def release(self) -> None:
        """End it: the sweep has restored everything itself."""
        with contextlib.suppress(GuardianGone):
            self._write(b'{"release":true}\n')
        os.close(self._pipe)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def abandon(self) -> None:
        """Leave the restoring to it, as a death of this process would, and wait until it has ended."""
        os.close(self._pipe)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _write(self, message: bytes) -> None:
        try:
            if os.write(self._pipe, message) != len(message):
                raise GuardianGone("the restorer does not read its pipe")
        except (BrokenPipeError, BlockingIOError):
            raise GuardianGone(f"the restorer process {self.pid} is gone or hangs") from None


def start_restorer(hang_limit_s: float) -> Restorer:
    """Fork the restorer; call it before NVML is initialised and before any thread is started.

    Args:
        hang_limit_s: Silence of the sweep after which settings are given back.

    Raises:
        GuardianGone: if it cannot reach the GPUs.
    """
    pipe_read, pipe_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        os.close(pipe_write)
        os.close(ready_read)
        _run(pipe_read, ready_write, hang_limit_s)
    gc.unfreeze()
    os.close(pipe_read)
    os.close(ready_write)
    with os.fdopen(ready_read, "rb") as ready:
        answer = ready.read().decode()
    if answer != "ready":
        os.close(pipe_write)
        os.waitpid(pid, 0)
        raise GuardianGone(f"the restorer could not start: {answer or 'it died'}")
    return Restorer(pid, pipe_write)


def _run(pipe: int, ready: int, hang_limit_s: float) -> None:
    status = 1
    try:
        os.setsid()  # a signal to the sweep's process group must not take both
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as f:
            f.write("flyball-restore")
        try:
            gpus = {g.uuid: g for g in nvml.open_gpus()}
        except GpuError as error:
            os.write(ready, str(error).encode())
            return
        os.write(ready, b"ready")
        os.close(ready)
        _watch(pipe, gpus, hang_limit_s)
        status = 0
    except Exception:
        _log.exception("the restorer failed")
    finally:
        # never return into the sweep's code
        os._exit(status)


def _watch(pipe: int, gpus: dict[str, nvml.Gpu], hang_limit_s: float) -> None:
    """Wait for the sweep to end, to die or to hang."""
    caps_w: dict[str, int] = {}
    has_clocks = False
    rest = b""
    poller = select.poll()
    poller.register(pipe, select.POLLIN | select.POLLHUP)
    while True:
        if not poller.poll(hang_limit_s * 1000):
            # it may still write once when it goes on: look again until it speaks, dies or releases
            restore(gpus, caps_w, has_clocks)
            continue
        data = os.read(pipe, MAX_MESSAGE_BYTES)
        if not data:
            _log.warning("the sweep died: giving the settings back")
            until_s = time.monotonic() + LAST_WORDS_S
            while not restore(gpus, caps_w, has_clocks) and time.monotonic() < until_s:
                time.sleep(LOOK_AGAIN_S)
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in filter(None, lines):
            message = json.loads(line)
            if message.get("release"):
                return
            caps_w, has_clocks = message["caps_w"], message["has_clocks"]
