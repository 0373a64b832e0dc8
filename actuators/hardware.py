"""The GPUs of one node: what they say, which caps on them are ours, and the only writes to them."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from . import nvml
from .capping import estimate_demand_w, node_cap_w
from .errors import GpuError, GpuInconclusive, GpuLost
from .guardian import Guardian
from .lease import UNKNOWN_W, LeaseState, boottime_s
from .ownership import OwnedGpu, Ownership, OwnershipFile

FELL_OFF_THE_BUS = 79
"""XID of a GPU that fell off the bus (NVIDIA's XID catalogue)."""

MAX_XIDS = 256
"""Kept while the service does not answer; a storm repeats itself."""

_log = logging.getLogger("flyball.agent")


@dataclass(frozen=True)
class XidEvent:
    """One XID of one GPU, numbered so that what was reported can be told from what came since."""

    number: int
    uuid: str
    xid: int


class NodeHardware:
    """The GPUs of one node; made once, after the guardian was forked.

    Args:
        node: Name of the node.
        boot_id: Of the host.
        guardian: None in a dry run, in which nothing is ever written.
        files: None in a dry run.
    """

    def __init__(self, node: str, boot_id: str, guardian: Guardian | None, files: OwnershipFile | None):
        self.boot_id, self.guardian, self.files = boot_id, guardian, files
        self.gpus = nvml.open_gpus()
        self.watch = nvml.XidWatch(self.gpus)
        self.readings: dict[str, nvml.GpuReading] = {}
        self.before: dict[str, nvml.GpuReading] = {}
        self.read_at_s = self.before_at_s = 0.0
        self.lost: set[str] = set()
        self.inconclusive: set[str] = set()
        self.xids: list[XidEvent] = []
        self._xids_seen = 0
        self._held: tuple[float, dict[str, int], Path | None] | None = None
        self.problems: dict[str, str] = {}
        self.owned = Ownership(node)
        self.read()
        if self.files is not None:
            self._recover(self.files.load())

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────
    def read(self) -> None:
        """Read every GPU; one that gives no usable answer keeps its last reading and is marked."""
        events = self.watch.poll()
        self.before, self.before_at_s = dict(self.readings), self.read_at_s
        self.read_at_s = boottime_s()
        self.inconclusive.clear()
        for gpu in self.gpus:
            xids = events.get(gpu.uuid, [])
            try:
                self.readings[gpu.uuid] = nvml.read(gpu, xids)
                self.lost.discard(gpu.uuid)
            except GpuLost as error:
                if gpu.uuid not in self.lost:
                    _log.error("GPU %s is lost: %s", gpu.uuid, error)
                self.lost.add(gpu.uuid)
                self.readings.pop(gpu.uuid, None)
            except GpuError as error:
                self.inconclusive.add(gpu.uuid)
                self._problem(f"read {gpu.uuid}", str(error))
            else:
                self.problems.pop(f"read {gpu.uuid}", None)
            self._note_foreign_limit(gpu.uuid)
            for xid in xids:
                _log.error("GPU %s: XID %d", gpu.uuid, xid)
                self._xids_seen += 1
                self.xids.append(XidEvent(self._xids_seen, gpu.uuid, xid))
        del self.xids[:-MAX_XIDS]

    def standing_xids(self) -> list[tuple[str, int]]:
        """Events that were not reported yet, and 79 for as long as a GPU is lost, as (uuid, code)."""
        events = [(e.uuid, e.xid) for e in self.xids]
        lost = [(uuid, FELL_OFF_THE_BUS) for uuid in sorted(self.lost)]
        return (events + [x for x in lost if x not in events])[-MAX_XIDS:]

    def forget_xids(self, number: int) -> None:
        """Drop the events up to a number: the service has answered a message that carried them."""
        self.xids = [e for e in self.xids if e.number > number]

    def _note_foreign_limit(self, uuid: str) -> None:
        reading = self.readings.get(uuid)
        if reading is not None and reading.is_foreign_limit:
            self._problem(
                f"limit {uuid}",
                f"GPU {uuid} is limited to {reading.enforced_cap_w} W by something else than NVML "
                f"(its NVML cap is {reading.cap_w} W)",
            )
        else:
            self.problems.pop(f"limit {uuid}", None)

    def _problem(self, key: str, text: str) -> None:
        if self.problems.get(key) != text:
            _log.warning("%s", text)
        self.problems[key] = text

    @property
    def caps_w(self) -> dict[str, int]:
        """Caps read back, by UUID of the reachable GPUs."""
        return {uuid: r.cap_w for uuid, r in self.readings.items()}

    @property
    def cap_w(self) -> int:
        """The node's cap in force; UNKNOWN_W when a GPU that is not lost gave no usable answer."""
        return UNKNOWN_W if self.inconclusive else node_cap_w(self.gpus, self.caps_w)

    def demand_w(self) -> float:
        dt_s = self.read_at_s - self.before_at_s
        return sum(estimate_demand_w(r, self.before.get(uuid), dt_s) for uuid, r in self.readings.items())

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────
    def own(
        self,
        state: LeaseState,
        shares_w: dict[str, int],
        fallbacks_w: dict[str, int],
        park_file: Path | None = None,
    ) -> None:
        """Put a lease with the guardian and on disk, before any cap is written under it.

        `park_file` is where the guardian commands parking when the lease expires; None where it does not park.
        """
        if self.guardian is None or self.files is None or state.lease is None:
            return
        if self._held != (state.deadline_s, fallbacks_w, park_file):
            self.guardian.hold(state.deadline_s, fallbacks_w, park_file)
            self._held = state.deadline_s, dict(fallbacks_w), park_file
        gpus = {}
        for uuid, cap_w in shares_w.items():
            known = self.owned.gpus.get(uuid)
            original_w = known.original_cap_w if known else self.caps_w.get(uuid, cap_w)
            gpus[uuid] = OwnedGpu(original_w, cap_w, fallbacks_w.get(uuid, cap_w))
        owned = replace(
            self.owned,
            boot_id=self.boot_id,
            epoch=state.epoch,
            seq=state.seq,
            fallback_w=state.fallback_w,
            gpus={**self.owned.gpus, **gpus},
        )
        self._store(owned)

    def _store(self, owned: Ownership) -> None:
        if self.files is None or owned == self.owned:
            return
        try:
            self.files.store(owned)
        except OSError as error:
            # a full disk must not stop a lower cap; the guardian still knows the fallback
            self._problem("state", f"ownership cannot be written to {self.files.path}: {error.strerror}")
        else:
            self.problems.pop("state", None)
        self.owned = owned

    def set_caps(self, targets_w: dict[str, int], only_lower: bool = False) -> None:
        """Bring caps to their targets, lowering before raising, and read each back.

        Args:
            targets_w: Watts by UUID.
            only_lower: Leave caps that are lower already.
        """
        if self.guardian is None:
            return
        now_w = self.caps_w
        wanted = [
            (target_w - now_w[uuid], uuid, target_w)
            for uuid, target_w in targets_w.items()
            if uuid in now_w and uuid not in self.inconclusive and target_w != now_w[uuid]
        ]
        for change_w, uuid, target_w in sorted(wanted):
            if only_lower and change_w > 0:
                continue
            self._set_cap(uuid, target_w)

    def _set_cap(self, uuid: str, target_w: int) -> None:
        gpu = next(g for g in self.gpus if g.uuid == uuid)
        try:
            in_force_w = nvml.set_cap_w(gpu, target_w)
        except GpuLost:
            self.lost.add(uuid)
            self.readings.pop(uuid, None)
            return
        except GpuError as error:
            self._problem(f"write {uuid}", f"GPU {uuid}: the cap of {target_w} W was refused: {error}")
            if isinstance(error, GpuInconclusive):
                self.inconclusive.add(uuid)  # it may have been written or not
            return
        self.readings[uuid] = replace(self.readings[uuid], cap_w=in_force_w)
        if in_force_w == target_w:
            self.problems.pop(f"write {uuid}", None)
        else:
            self._problem(
                f"write {uuid}",
                f"GPU {uuid} took a cap of {target_w} W without an error and still reports {in_force_w} W",
            )

    def set_clock_ceiling(self, clock_frac: float) -> None:
        """Lock clocks below a share of the maximum, 1 unlocks; a GPU that cannot is left to its cap."""
        if self.guardian is None:
            return
        for gpu in self.gpus:
            if gpu.uuid in self.lost:
                continue
            try:
                nvml.set_clock_ceiling(gpu, clock_frac)
            except GpuError as error:
                self._problem(f"clock {gpu.uuid}", f"GPU {gpu.uuid}: no clock ceiling: {error}")
            else:
                self.problems.pop(f"clock {gpu.uuid}", None)
        self._store(replace(self.owned, boot_id=self.boot_id, has_clock_ceiling=clock_frac < 1.0))

    def _recover(self, left: Ownership) -> None:
        """Take over what an agent that died left behind: min(cap, fallback) until a lease comes."""
        self.owned = left
        if left.boot_id != self.boot_id:
            # the reboot took the caps; the epoch obeyed is remembered all the same
            self.owned = replace(left, boot_id=self.boot_id, fallback_w=UNKNOWN_W, has_clock_ceiling=False, gpus={})
            return
        orphans = {u: o.fallback_w for u, o in left.gpus.items()}
        if orphans:
            _log.info("taking over the caps of %d GPUs that an earlier agent set", len(orphans))
        self.set_caps(orphans, only_lower=True)
        if left.has_clock_ceiling:
            self.set_clock_ceiling(1.0)

    def close(self) -> None:
        """Let go of NVML; caps stay as they are."""
        self.watch.close()
        nvml.close_gpus()
