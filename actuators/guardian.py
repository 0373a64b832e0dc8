"""A second process that lowers the caps when the agent no longer can.

The agent writes to a pipe: each lease's deadline and fallback, and a heartbeat several times a second. The
guardian goes to min(cap, fallback) when the pipe closes (the agent died), when nothing was heard for the hang
limit (it was stopped, or a driver call hangs), and when the deadline passes (the service is gone). While fallen
it looks again every tenth of a second, because an agent that was stopped between deciding and writing may still
write once when it goes on.
"""

import logging
import math
import os
import select
from collections.abc import Mapping
from pathlib import Path

from . import nvml
from .errors import GpuError, GpuLost
from .lease import boottime_s
from .stages import PARKED, write_command
from .watchdog import LAST_WORDS_S, LOOK_AGAIN_S, MAX_MESSAGE_BYTES, Inbox, Watchdog, fork_watchdog

_log = logging.getLogger("flyball.guardian")


class Guardian(Watchdog):
    """The agent's end: tells the guardian what to do if the agent falls silent."""

    def hold(self, deadline_s: float, fallback_w: Mapping[str, int], park_file: Path | None = None) -> None:
        """Hand over a deadline on `boottime_s` and each GPU's fallback, before the caps that go with them.

        `park_file` is the stage command file of a node that parks at the deadline.

        Raises:
            WatchdogGone: if the guardian died.
        """
        park = None if park_file is None else str(park_file)
        self.tell({"deadline_s": deadline_s, "fallback_w": dict(fallback_w), "park": park})


def start_guardian(hang_limit_s: float) -> Guardian:
    """Fork the guardian; call it before NVML is initialised and before any thread is started.

    Args:
        hang_limit_s: Silence of the agent after which the guardian acts.

    Raises:
        WatchdogGone: if the guardian cannot reach the GPUs.
    """
    name = "guardian"
    return Guardian(
        name, *fork_watchdog(name, "flyball-guard", lambda pipe, gpus: _Watch(pipe, gpus, hang_limit_s).run())
    )


class _Watch:
    """The guardian's loop."""

    def __init__(self, pipe: int, gpus: dict[str, nvml.Gpu], hang_limit_s: float):
        self.pipe, self.gpus, self.hang_limit_s = pipe, gpus, hang_limit_s
        self.fallback_w: dict[str, int] = {}
        self.deadline_s = math.inf
        self.park_file: Path | None = None
        self.heard_s = boottime_s()
        self.has_fallen = False
        self._inbox = Inbox()

    def run(self) -> None:
        poller = select.poll()
        poller.register(self.pipe, select.POLLIN | select.POLLHUP)
        while True:
            now_s = boottime_s()
            wake_s = now_s + LOOK_AGAIN_S if self.has_fallen else min(self.heard_s + self.hang_limit_s, self.deadline_s)
            if poller.poll(max(math.ceil((wake_s - now_s) * 1000), 0)):
                data = os.read(self.pipe, MAX_MESSAGE_BYTES)
                if not data:
                    self._bury()
                    return
                if self._listen(data):
                    return
            self._look(boottime_s())

    def _listen(self, data: bytes) -> bool:
        """Take in messages; True when the agent lets the guardian go."""
        self.heard_s = boottime_s()
        for message in self._inbox.take(data):
            if message.get("release"):
                return True
            self.deadline_s, self.fallback_w = message["deadline_s"], message["fallback_w"]
            self.park_file = Path(message["park"]) if message["park"] else None
        return False

    def _look(self, now_s: float) -> None:
        reason = None
        if now_s - self.heard_s >= self.hang_limit_s:
            reason = f"the agent was silent for {self.hang_limit_s:g} s"
        elif now_s >= self.deadline_s:
            reason = "the lease expired"
        if reason is None:
            self.has_fallen = False
            return
        if not self.has_fallen:
            _log.warning("%s: going to the fallback", reason)
        self.has_fallen = True
        self._fall_back()
        self._park(now_s)

    def _bury(self) -> None:
        _log.warning("the agent died: going to the fallback")
        until_s = boottime_s() + LAST_WORDS_S
        while not self._fall_back() and boottime_s() < until_s:
            select.select([], [], [], LOOK_AGAIN_S)
        while not self._park(boottime_s()) and boottime_s() < max(until_s, self.deadline_s + LAST_WORDS_S):
            select.select([], [], [], LOOK_AGAIN_S)

    def _park(self, now_s: float) -> bool:
        """Command parking once the lease has expired: a hanging agent alone unloads no model; whether it is done."""
        if self.park_file is None:
            return True
        if now_s < self.deadline_s or not write_command(self.park_file, {"stage": PARKED}):
            return False
        self.park_file = None
        return True

    def _fall_back(self) -> bool:
        """Lower every cap to its fallback, never raise one; whether nothing is left to try."""
        is_done = True
        for uuid, fallback_w in self.fallback_w.items():
            gpu = self.gpus.get(uuid)
            if gpu is None:
                continue
            target_w = max(fallback_w, gpu.cap_min_w)
            try:
                if nvml.read_cap_w(gpu) > target_w:
                    is_done &= nvml.set_cap_w(gpu, target_w) <= target_w
            except GpuLost:
                continue  # nothing can be written to it any more
            except GpuError:
                is_done = False
        return is_done
