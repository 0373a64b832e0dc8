"""The node agent: reads NVML, posts telemetry, obeys leases, and falls back when there is none.

One thread owns the GPUs and never waits for the network; a second one does the HTTP exchange (`courier.py`).
Between ticks the first tells the guardian that it lives, so that a service that hangs is a matter of the
lease and not of the hang limit.
"""

import contextlib
import logging
import math
import os
import random
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..fleet.errors import BadInput
from . import nvml
from .capping import split_w
from .client import Backoff, ServiceClient
from .courier import Answer, Courier, Wake
from .errors import AgentRefused
from .guardian import start_guardian
from .hardware import NodeHardware
from .lease import UNKNOWN_W, Do, LeaseState, Verdict, boottime_s
from .ownership import OwnershipFile, read_boot_id
from .stages import StageLink
from .telemetry import GpuInventory, Reply, Telemetry

TOKEN_VARIABLE = "FLYBALL_TOKEN"

NOTHING = (0, 0)
"""Epoch and sequence of an agent that acknowledges nothing; those of real leases start at 1."""

HEARTBEATS = 4
"""Per hang limit: one or two may be late on a busy host without a false alarm."""

IDLE_READ_TICKS = 1.1
"""A message brings its own reading; without one the GPUs are read a little later than it was due."""

_log = logging.getLogger("flyball.agent")


def default_state_dir() -> Path:
    """`$XDG_STATE_HOME/flyball`, else /var/lib/flyball for root and ~/.local/state/flyball for others."""
    named = os.environ.get("XDG_STATE_HOME")
    if named:
        return Path(named) / "flyball"
    return Path("/var/lib/flyball") if os.geteuid() == 0 else Path.home() / ".local/state/flyball"


@dataclass(frozen=True)
class AgentConfig:
    """Settings of one agent.

    Attributes:
        server: URL of the service.
        node: Name of this node in the site file.
        nvml: "real" or "emulated".
        is_dry_run: Watch and report; call no setter at all.
        token: Bearer token; None reads FLYBALL_TOKEN.
        nvml_state: State file of emulated GPUs; None reads FLYBALL_NVML_STATE.
        state_dir: Where ownership of caps is kept.
        tick_s: Between two exchanges.
        hang_limit_s: Silence of the loop after which the guardian lowers the caps.
        local_max_w: Highest cap of this node, whatever a lease says; None for the products' maximum.
        timeout_s: Of each wait for the network.
        boot_id: Of the host; None reads the kernel's.
        stage_file: Where whoever runs the stages says which one runs (`stages.py`); None for nobody.
        command_file: Where the agent leaves the stage commanded, for whoever runs the stages.
    """

    server: str
    node: str = field(default_factory=socket.gethostname)
    nvml: str = "real"
    is_dry_run: bool = False
    token: str | None = field(default=None, repr=False)
    nvml_state: Path | None = None
    state_dir: Path = field(default_factory=default_state_dir)
    tick_s: float = 1.0
    hang_limit_s: float = 0.5
    local_max_w: int | None = None
    timeout_s: float = 2.0
    boot_id: str | None = None
    stage_file: Path | None = None
    command_file: Path | None = None

    def check(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            BadInput: with the flag to change.
        """
        if self.nvml not in ("real", "emulated"):
            raise BadInput(f"--nvml {self.nvml!r}: use real or emulated")
        if not self.node:
            raise BadInput("--node is empty; give the node's name in the site file")
        if not (self.tick_s > 0 and self.hang_limit_s > 0 and self.timeout_s > 0):
            raise BadInput("tick_s, hang_limit_s and timeout_s must be above 0")
        if self.local_max_w is not None and self.local_max_w < 0:
            raise BadInput("local_max_w must be at least 0")


def run_agent(config: AgentConfig) -> None:
    """Run until SIGTERM or SIGINT, then leave the GPUs at min(cap in force, fallback).

    Call it from the main thread of a process of its own that has no other thread: it forks the guardian.

    Raises:
        BadInput: settings that make no sense, or another agent on this node.
        AgentRefused: the service refused the first exchange for good (wrong token, unknown node).
        GpuError: no NVML on this node.
        WatchdogGone: the guardian died; caps are at the fallback, and a supervisor should start it again.
    """
    config.check()
    client = ServiceClient(config.server, config.node, config.token or os.environ.get(TOKEN_VARIABLE), config.timeout_s)
    _load_nvml(config)
    files = None if config.is_dry_run else OwnershipFile(config.state_dir, config.node)
    guardian = None if config.is_dry_run else start_guardian(config.hang_limit_s)
    with contextlib.ExitStack() as stack:
        if files is not None:
            stack.callback(files.close)
        if guardian is not None:
            stack.callback(guardian.release)
        hardware = NodeHardware(config.node, config.boot_id or read_boot_id(), guardian, files)
        stack.callback(hardware.close)
        wake = stack.enter_context(Wake())
        courier = Courier(client, wake)
        stack.callback(courier.stop)
        _Loop(config, hardware, courier, wake).run()


def _load_nvml(config: AgentConfig) -> None:
    if config.nvml == "emulated":
        from .emulator.load import load_emulated

        load_emulated(config.nvml_state)


def restore_caps(config: AgentConfig) -> dict[str, int]:
    """Give the GPUs back the caps that Flyball found, for a node that leaves its care.

    A person's decision, never the agent's own: it may raise caps, and no service has granted the watts.

    Returns:
        Caps read back, by UUID of the GPUs whose cap was ours.

    Raises:
        BadInput: while an agent runs for the node.
        GpuError: if a cap cannot be written; those before it are restored.
    """
    config.check()
    _load_nvml(config)
    files = OwnershipFile(config.state_dir, config.node)
    try:
        left = files.load()
        if left.boot_id != (config.boot_id or read_boot_id()):
            return {}  # the reboot has restored them
        gpus = {g.uuid: g for g in nvml.open_gpus()}
        restored = {
            uuid: nvml.set_cap_w(gpus[uuid], owned.original_cap_w) for uuid, owned in left.gpus.items() if uuid in gpus
        }
        nvml.close_gpus()
        files.store(replace(left, fallback_w=UNKNOWN_W, gpus={}))
        return restored
    finally:
        files.close()


class _Loop:
    """The agent's loop over one node."""

    def __init__(self, config: AgentConfig, hardware: NodeHardware, courier: Courier, wake: Wake):
        self.config, self.hardware, self.courier, self.wake = config, hardware, courier, wake
        self.state = LeaseState(hardware.owned.epoch, hardware.owned.seq)
        self.backoff = Backoff()
        self.random = random.Random()
        self.inventory = tuple(GpuInventory.of(g) for g in hardware.gpus)
        self.seq = 0
        self.last_xid = 0
        self.acknowledged = NOTHING
        self.stages = StageLink(config.stage_file, config.command_file)
        self.clock_frac = 1.0
        self.was_answered = False
        self.last_error = ""
        self.last_verdict = Verdict.ACCEPTED
        self.has_fallen = False

    def run(self) -> None:
        beat_s = self.config.hang_limit_s / HEARTBEATS
        next_tick_s = next_send_s = boottime_s()
        try:
            while not self.wake.is_stopping:
                self._beat()
                answer = self.courier.receive()
                if answer is not None:
                    next_send_s = self._hear(answer, boottime_s())
                now_s = boottime_s()
                is_due = now_s >= next_send_s and not self.courier.is_busy
                if now_s >= next_tick_s or is_due:
                    self.hardware.read()
                    self._obey()
                    next_tick_s = now_s + self.config.tick_s * IDLE_READ_TICKS
                    if is_due:
                        self.courier.send(self._telemetry())
                        next_send_s = math.inf
                elif self._just_expired(now_s):
                    self._obey()
                self.wake.wait(self._until(boottime_s(), beat_s, next_tick_s, next_send_s))
        finally:
            self._leave()

    def _beat(self) -> None:
        if self.hardware.guardian is not None:
            self.hardware.guardian.beat()

    def _until(self, now_s: float, beat_s: float, next_tick_s: float, next_send_s: float) -> float:
        until_s = min(now_s + beat_s, next_tick_s)
        if not self.courier.is_busy:
            until_s = min(until_s, next_send_s)
        if self.state.lease is not None and not self.has_fallen:
            until_s = min(until_s, self.state.deadline_s)
        return until_s - now_s

    def _just_expired(self, now_s: float) -> bool:
        return self.state.lease is not None and not self.has_fallen and self.state.expired(now_s)

    # ── hearing ─────────────────────────────────────────────────────────────────────────────────────────
    def _hear(self, answer: Answer, now_s: float) -> float:
        """Take in one outcome and return when to send again."""
        sent_at_s = answer.telemetry.sent_at_s
        if answer.reply is None:
            assert answer.error is not None
            if isinstance(answer.error, AgentRefused) and not self.was_answered:
                raise answer.error
            self.backoff = self.backoff.failed()
            if str(answer.error) != self.last_error:
                _log.warning("%s; trying again", answer.error)
            self.last_error = str(answer.error)
            return now_s + self.backoff.wait_s(not self.state.expired(now_s), self.random.random())
        if self.last_error or not self.was_answered:
            _log.info("%s answers", self.config.server)
        self.backoff, self.last_error, self.was_answered = self.backoff.succeeded(), "", True
        self.hardware.forget_xids(self.last_xid)
        if answer.reply.lease is not None:
            # without a lease the service commands nothing, stages and drains included
            self.stages.command(answer.reply)
            self._take(answer.reply, sent_at_s, now_s)
        return max(sent_at_s + self.config.tick_s, now_s)

    def _take(self, reply: Reply, sent_at_s: float, now_s: float) -> None:
        assert reply.lease is not None
        self.state, verdict = self.state.accept(reply.lease, sent_at_s, now_s)
        if verdict is not Verdict.ACCEPTED:
            if verdict is not self.last_verdict:
                _log.warning(
                    "lease epoch %d seq %d refused (%s): this node holds epoch %d seq %d%s",
                    reply.lease.epoch,
                    reply.lease.seq,
                    verdict.name,
                    self.state.epoch,
                    self.state.seq,
                    self._epoch_hint(verdict),
                )
            self.last_verdict = verdict
            return
        self.last_verdict = verdict
        self._obey()
        # whole percents: policies bid a little differently at every step, and a write costs milliseconds
        clock_frac = math.floor(reply.clock_frac * 100) / 100
        if clock_frac > 0 and clock_frac != self.clock_frac:
            self.hardware.set_clock_ceiling(clock_frac)
            self.clock_frac = clock_frac

    def _epoch_hint(self, verdict: Verdict) -> str:
        files = self.hardware.files
        if verdict is not Verdict.OLD_EPOCH or files is None:
            return ""
        return f"; if the service's database is new on purpose, stop this agent and remove {files.path}"

    # ── obeying ─────────────────────────────────────────────────────────────────────────────────────────
    def _obey(self) -> None:
        """Bring caps to what the lease, or its absence, demands, and note what may be acknowledged."""
        hardware, lease = self.hardware, self.state.lease
        if lease is None or hardware.guardian is None:
            return
        action = self.state.action(boottime_s(), hardware.cap_w)
        fallbacks_w = split_w(lease.fallback_w, hardware.gpus, hardware.lost)
        if action.do is Do.FALL_BACK:
            if not self.has_fallen:
                _log.warning("the lease expired: going to the fallback of %d W", lease.fallback_w)
            self.has_fallen = True
            hardware.set_caps(fallbacks_w, only_lower=True)
            if action.parks:
                self.stages.park()
            return
        self.has_fallen = False
        allowed_w = lease.cap_w
        if self.config.local_max_w is not None:
            allowed_w = min(allowed_w, self.config.local_max_w)
        shares_w = split_w(allowed_w, hardware.gpus, hardware.lost)
        hardware.own(self.state, shares_w, fallbacks_w, self.stages.command_file if lease.parks else None)
        # the deadline may have passed while the state was written
        if self.state.expired(boottime_s()):
            return
        hardware.set_caps(shares_w)
        if 0 <= hardware.cap_w <= lease.cap_w or self._is_lowest(shares_w):
            self.acknowledged = (lease.epoch, lease.seq)

    def _is_lowest(self, shares_w: dict[str, int]) -> bool:
        """Whether a lost GPU alone keeps the node above its cap: every other one was read back at its share.

        The command has taken what effect it can, and the read-back that goes with the acknowledgement, in which
        the lost GPU counts at its maximum, says what remains possible. Without it the service would go on
        charging the node at what it may have drawn before, and nobody could have those watts.
        """
        hardware = self.hardware
        if not hardware.lost or hardware.cap_w == UNKNOWN_W:
            return False
        return all(hardware.caps_w[uuid] <= share_w for uuid, share_w in shares_w.items() if uuid in hardware.caps_w)

    def _telemetry(self) -> Telemetry:
        hardware = self.hardware
        readings = list(hardware.readings.values())
        has_power = bool(readings) and not hardware.inconclusive
        self.seq += 1
        self.last_xid = hardware.xids[-1].number if hardware.xids else 0
        xids, stage = hardware.standing_xids(), self.stages.read()
        held_w = self.state.fallback_w if self.state.lease else hardware.owned.fallback_w
        return Telemetry(
            node=self.config.node,
            boot_id=hardware.boot_id,
            sent_at_s=boottime_s(),
            seq=self.seq,
            power_w=sum(r.power_w for r in readings) if has_power else None,
            demand_w=hardware.demand_w() if has_power else None,
            util_frac=_mean([r.util_frac for r in readings]),
            clock_frac=_mean([r.clock_frac for r in readings]),
            temp_c=max((r.temp_c for r in readings), default=math.nan),
            cap_w=hardware.cap_w,
            ack_epoch=self.acknowledged[0],
            ack_seq=self.acknowledged[1],
            fallback_w=UNKNOWN_W if self.config.is_dry_run else held_w,
            stage=stage.stage,
            moving_s=stage.moving_s,
            xid=tuple(xid for _, xid in xids),
            xid_gpus=tuple(uuid for uuid, _ in xids),
            gpus=tuple(g.uuid for g in hardware.gpus),
            lost=tuple(sorted(hardware.lost)),
            recovery={r.uuid: r.recovery_action for r in readings if r.recovery_action} or None,
            problems=tuple(hardware.problems.values()),
            inventory=self.inventory,
            dry_run=self.config.is_dry_run,
        )

    def _leave(self) -> None:
        """Stop: go to the fallback, never up, and leave the state file for the next agent."""
        lease = self.state.lease
        if lease is None or self.hardware.guardian is None:
            return
        self.hardware.read()
        self.hardware.set_caps(split_w(lease.fallback_w, self.hardware.gpus, self.hardware.lost), only_lower=True)
        if lease.parks:
            self.stages.park()
        if self.clock_frac < 1.0:
            self.hardware.set_clock_ceiling(1.0)
        _log.info("stopped at the fallback of %d W", lease.fallback_w)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
