"""Steps power caps and clock ceilings of a drained node, measures, and gives every setting back however it ends.

Three layers, each for what the one before cannot do: the sweep's own `finally` (also on SIGTERM, SIGINT and SIGHUP),
the restorer process (SIGKILL, a hang), and a record on disk (both dead: the next sweep of this boot finds it). It never
sets a cap above the one it found, so that a budget that counts on that cap holds throughout, and it holds the agent's
ownership lock, so that neither an agent nor a second sweep can write meanwhile. The agent's own record is not touched.
"""

import contextlib
import csv
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...actuators import nvml
from ...actuators.agent import default_state_dir
from ...actuators.errors import GpuUnsupported
from ...actuators.ownership import OwnedGpu, Ownership, OwnershipFile, read_boot_id
from ...fleet.errors import BadInput, FlyballError
from .gpu_load import Kernel, Load
from .restorer import restore, start_restorer
from .watch import Sample, sample

BUSY_UTIL_FRAC = 0.05
CLOCK_FRACS = (0.9, 0.75, 0.6, 0.45, 0.3)

_log = logging.getLogger("flyball.calibrate")


class SettingsNotRestored(FlyballError):
    """A GPU did not take its settings back; the message says how to do it by hand."""


class SweepDisturbed(FlyballError):
    """A cap was not what the sweep had set: the measurement is worth nothing."""


@dataclass(frozen=True)
class SweepConfig:
    """Settings of one sweep.

    Attributes:
        node: Name under which ownership is kept; the agent's of this node.
        state_dir: Where; the agent's by default.
        is_forced: Sweep although the node has work.
        caps: Steps of the cap between the lowest legal one and the one found; 0 for none.
        clocks: Clock ceilings to step through, shares of the maximum.
        seconds: Measured at each step and kernel.
        settle_s: Waited before.
        hang_limit_s: Silence after which the restorer acts; a slow kernel must fit.
        boot_id: Of the host; None reads the kernel's.
    """

    node: str
    state_dir: Path
    is_forced: bool = False
    caps: int = 7
    clocks: Sequence[float] = CLOCK_FRACS
    seconds: float = 5.0
    settle_s: float = 2.0
    hang_limit_s: float = 10.0
    boot_id: str | None = None


def sweep_config(node: str, state_dir: Path | None, kinds: Sequence[str], **given: Any) -> SweepConfig:
    """A config from what a command line says; `kinds` are `caps` and `clocks`.

    Raises:
        BadInput: for another kind.
    """
    unknown = [k for k in kinds if k not in ("caps", "clocks")]
    if unknown or not kinds:
        raise BadInput(f"--sweep {','.join(kinds)!r}: use caps, clocks or caps,clocks")
    config = SweepConfig(node, state_dir or default_state_dir(), **given)
    if "caps" not in kinds:
        config = replace(config, caps=0)
    if "clocks" not in kinds:
        config = replace(config, clocks=())
    return config


def compute_processes(gpu: nvml.Gpu) -> int:
    """Processes that compute on a GPU; -1 where the driver does not say."""
    import pynvml

    try:
        return len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu.handle))
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        # a driver without the call gives the second, which is no NVMLError; utilisation alone decides then
        return -1


def refuse_busy(gpus: Sequence[nvml.Gpu], processes: Callable[[nvml.Gpu], int] = compute_processes) -> None:
    """Refuse a node that has work.

    Raises:
        BadInput: naming the GPU and what it does.
    """
    for gpu in gpus:
        count = processes(gpu)
        if count > 0:
            raise BadInput(f"{gpu.uuid} runs {count} compute process(es): drain the node first, or give --force")
        util_frac = nvml.read(gpu).util_frac
        if util_frac > BUSY_UTIL_FRAC:
            raise BadInput(f"{gpu.uuid} is {util_frac:.0%} busy: drain the node first, or give --force")


def cap_steps(low_w: int, found_w: int, steps: int) -> list[int]:
    """Caps from the one found down to the lowest legal one, whole watts, never above the one found."""
    if steps < 1:
        return []
    if steps == 1 or found_w <= low_w:
        return [found_w]
    return sorted({round(found_w - i * (found_w - low_w) / (steps - 1)) for i in range(steps)}, reverse=True)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn signals that end a process into an exception, so that every `finally` runs."""

    def stop(number: int, _frame: Any) -> None:
        for other in SIGNALS:  # a second one must not cut the restoring short
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_sweep(config: SweepConfig, make_load: Callable[[], Load], say: Callable[[str], None] = lambda _: None):
    """Sweep a drained node; call it from the main thread of a process without others, before NVML is initialised.

    Args:
        config: What to step through.
        make_load: Makes the load, after the restorer was forked.
        say: Told of each step.

    Returns:
        (cap asked, clock ceiling asked, sample) of every step; the settings are as found again.

    Raises:
        BadInput: a busy node, a foreign owner, nothing to sweep.
        SettingsNotRestored: if a GPU did not take its settings back.
        GpuError: if a GPU cannot be read or written; settings are given back first.
    """
    lock = OwnershipFile(config.state_dir, config.node)
    with contextlib.ExitStack() as stack:
        stack.callback(lock.close)
        files = OwnershipFile(config.state_dir, f"{config.node}.sweep")
        stack.callback(files.close)
        stack.enter_context(_signals())
        restorer = start_restorer(config.hang_limit_s)
        is_clean = [True]  # nothing is set yet; False from the first write until everything is given back
        stack.callback(lambda: restorer.release() if is_clean[0] else restorer.abandon())
        gpus = {g.uuid: g for g in nvml.open_gpus()}
        stack.callback(nvml.close_gpus)
        boot_id = config.boot_id or read_boot_id()
        _recover(files, gpus, boot_id)
        if not gpus or any(g.handle is None for g in gpus.values()):
            raise BadInput("no GPU, or one that is lost: a sweep needs every GPU of the node")
        if not config.is_forced:
            refuse_busy(list(gpus.values()))
        found_w = {uuid: nvml.read_cap_w(g) for uuid, g in gpus.items()}
        has_clocks = bool(config.clocks)
        record = _Record(files, boot_id, found_w, has_clocks)
        restorer.hold(found_w, has_clocks)
        is_clean[0] = False
        try:
            return _step_through(config, list(gpus.values()), record, make_load(), restorer.beat, say)
        finally:
            for number in SIGNALS:  # nothing may cut the restoring short; if it does, the restorer is abandoned to it
                signal.signal(number, signal.SIG_IGN)
            _give_back(files, gpus, found_w, has_clocks)
            is_clean[0] = True


class _Record:
    """What the sweep sets, on disk before it is set."""

    def __init__(self, files: OwnershipFile, boot_id: str, found_w: dict[str, int], has_clocks: bool):
        self._files, self._boot_id, self.found_w, self._has_clocks = files, boot_id, found_w, has_clocks
        self._last_w = dict(found_w)

    def write(self, caps_w: dict[str, int]) -> None:
        """Before the caps are set: each GPU's found cap, the coming one and the one before."""
        owned = {u: OwnedGpu(self.found_w[u], caps_w[u], self._last_w[u]) for u in caps_w}
        # epoch 0: a change of epoch is what flushes the record to the disk, once
        self._files.store(
            Ownership(self._files.node, self._boot_id, epoch=0, has_clock_ceiling=self._has_clocks, gpus=owned)
        )
        self._last_w = dict(caps_w)


def _recover(files: OwnershipFile, gpus: dict[str, nvml.Gpu], boot_id: str) -> None:
    """Give back what a sweep of this boot left behind; a cap that somebody has changed since is theirs, and stays."""
    left = files.load()
    if left.boot_id != boot_id:
        return
    caps_w = {
        uuid: owned.original_cap_w
        for uuid, owned in left.gpus.items()
        if uuid in gpus and nvml.read_cap_w(gpus[uuid]) in (owned.cap_w, owned.fallback_w)
    }
    if caps_w:
        _log.warning("giving back the settings that an earlier run left: %s", caps_w)
        _give_back(files, gpus, caps_w, left.has_clock_ceiling)


def _give_back(files: OwnershipFile, gpus: dict[str, nvml.Gpu], caps_w: dict[str, int], has_clocks: bool) -> None:
    for _ in range(5):
        if restore(gpus, caps_w, has_clocks):
            files.store(Ownership(files.node))
            return
    by_hand = "; ".join(f"nvidia-smi -i {uuid} -pl {cap_w}" for uuid, cap_w in caps_w.items())
    raise SettingsNotRestored(f"a GPU refused its settings; by hand: {by_hand}; nvidia-smi -rgc")


def _step_through(
    config: SweepConfig,
    gpus: Sequence[nvml.Gpu],
    record: _Record,
    load: Load,
    beat: Callable[[], None],
    say: Callable[[str], None],
) -> list[tuple[int, float, Sample]]:
    found_w = record.found_w
    low_w, high_w = max(g.cap_min_w for g in gpus), min(found_w.values())
    settings = [(cap_w, 1.0) for cap_w in cap_steps(low_w, high_w, config.caps)]
    settings += [(high_w, frac) for frac in config.clocks]
    if not settings:
        raise BadInput("nothing to sweep: use --sweep caps, clocks or caps,clocks")
    out = []
    for cap_w, clock_frac in settings:
        record.write({gpu.uuid: min(cap_w, found_w[gpu.uuid]) for gpu in gpus})
        for gpu in gpus:
            beat()
            if config.clocks:
                nvml.set_clock_ceiling(gpu, clock_frac)
            if nvml.set_cap_w(gpu, min(cap_w, found_w[gpu.uuid])) > min(cap_w, found_w[gpu.uuid]):
                raise GpuUnsupported(f"{gpu.uuid} did not take the cap of {cap_w} W", 0)
        for kernel in load.kernels:
            beat()
            found = sample(gpus, load, kernel, config.seconds, config.settle_s, beat)
            for gpu in gpus:
                if nvml.read_cap_w(gpu) != min(cap_w, found_w[gpu.uuid]):
                    raise SweepDisturbed(
                        f"{gpu.uuid}: its cap changed during a step, by another program or after a hang of more than "
                        f"{config.hang_limit_s:g} s; stop what else sets caps here and sweep again"
                    )
            say(f"{kernel.name} {kernel.size}: cap {cap_w} W, clock {clock_frac:.0%}: {found.power_w:.0f} W")
            out.append((cap_w, clock_frac, found))
    return out


COLUMNS = ("kernel", "size", "clock_frac", "power_limit", "time_per_epoch", "average_power")


def write_sweep(rows: Sequence[tuple[int, float, Sample]], path: Path) -> None:
    """A CSV that `cap_response.read_sweeps` takes; an epoch is the work of one second at the first setting."""
    first: dict[Kernel, float] = {}
    for _, _, s in rows:
        first.setdefault(s.kernel, s.rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(COLUMNS)
        for cap_w, clock_frac, s in rows:
            if s.rate > 0:
                epoch_s = first[s.kernel] / s.rate
                writer.writerow([s.kernel.name, s.kernel.size, clock_frac, cap_w, f"{epoch_s:.6g}", f"{s.power_w:.6g}"])
