"""A second process that gives the GPUs their settings back when a sweep no longer can.

The same second process as `actuators.guardian`, with another job: it *restores*. A sweep runs on a drained node under
no lease, lowers caps below those it found and locks clocks, and must leave neither behind. It acts
when the pipe closes (the sweep died, of SIGKILL too) and when nothing was heard for the hang limit. The caps found are
on disk as well (`actuators.ownership`), so that a sweep that starts after both died finds and restores them.
"""

import logging
import os
import select
import time
from collections.abc import Mapping

from ...actuators import nvml
from ...actuators.errors import GpuError, GpuForbidden, GpuLost
from ...actuators.watchdog import LAST_WORDS_S, LOOK_AGAIN_S, MAX_MESSAGE_BYTES, Inbox, Watchdog, fork_watchdog

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


class Restorer(Watchdog):
    """The sweep's end."""

    def hold(self, caps_w: Mapping[str, int], has_clocks: bool) -> None:
        """Hand over what to give back, before the first write.

        Raises:
            WatchdogGone: if the process died.
        """
        self.tell({"caps_w": dict(caps_w), "has_clocks": has_clocks})


def start_restorer(hang_limit_s: float) -> Restorer:
    """Fork the restorer; call it before NVML is initialised and before any thread is started.

    Args:
        hang_limit_s: Silence of the sweep after which settings are given back.

    Raises:
        WatchdogGone: if it cannot reach the GPUs.
    """
    name = "restorer"
    return Restorer(name, *fork_watchdog(name, "flyball-restore", lambda pipe, gpus: _watch(pipe, gpus, hang_limit_s)))


def _watch(pipe: int, gpus: dict[str, nvml.Gpu], hang_limit_s: float) -> None:
    """Wait for the sweep to end, to die or to hang."""
    caps_w: dict[str, int] = {}
    has_clocks = False
    inbox = Inbox()
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
        for message in inbox.take(data):
            if message.get("release"):
                return
            caps_w, has_clocks = message["caps_w"], message["has_clocks"]
