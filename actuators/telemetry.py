"""What an agent says and hears: one exchange carries telemetry up and the node's lease down."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from .lease import Lease
from .nvml import Gpu


@dataclass(frozen=True)
class GpuInventory:
    """One GPU as the fleet view lists it; all of it is fixed."""

    uuid: str
    name: str
    serial: str
    cap_min_w: int
    cap_max_w: int
    cap_default_w: int

    @classmethod
    def of(cls, gpu: Gpu) -> "GpuInventory":
        return cls(gpu.uuid, gpu.name, gpu.serial, gpu.cap_min_w, gpu.cap_max_w, gpu.cap_default_w)


@dataclass(frozen=True)
class Telemetry:
    """Body of `POST /v1/nodes/{node}/telemetry`; None is a value that could not be read.

    Attributes:
        boot_id: Of the host; another one means that caps went back to the driver's default.
        sent_at_s: The node's `boottime_s` at sending; the lease in the answer counts from here. On the wire
            it is `sent_at`.
        seq: Counts this agent's messages, from 1 at its start.
        power_w: Draw of the GPUs that could be read.
        demand_w: Their estimated draw without caps (`capping.estimate_demand_w`).
        util_frac: Mean busy share.
        clock_frac: Mean SM clock over its maximum.
        temp_c: Of the hottest GPU.
        cap_w: Sum of the caps read back, with the maximum for a lost GPU; UNKNOWN_W when inconclusive.
        ack_epoch: Epoch of the lease acknowledged, 0 for none.
        ack_seq: Highest lease sequence applied and read back, 0 for none.
        fallback_w: The fallback held by the agent and its guardian, UNKNOWN_W before the first lease.
        stage: The stage running now (`stages.py`); None when that is not known.
        moving_s: Until that stage serves.
        xid: XID codes since the last message that was answered, and 79 for as long as a GPU is lost.
        xid_gpus: UUID of the GPU of each of those.
        gpus: UUIDs of the node's GPUs.
        lost: UUIDs of those that cannot be reached now.
        recovery: NVML's recovery action by UUID, where there is one.
        problems: What keeps the agent from obeying, one sentence each.
        inventory: The node's GPUs.
        dry_run: Whether the agent only watches.
    """

    node: str
    boot_id: str
    sent_at_s: float
    seq: int
    power_w: float | None
    demand_w: float | None
    util_frac: float | None
    clock_frac: float | None
    temp_c: float | None
    cap_w: int
    ack_epoch: int
    ack_seq: int
    fallback_w: int
    stage: int | None = None
    moving_s: float = 0.0
    xid: tuple[int, ...] = ()
    xid_gpus: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    recovery: dict[str, int] | None = None
    problems: tuple[str, ...] = ()
    inventory: tuple[GpuInventory, ...] = ()
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; NaN becomes null, because JSON has none."""
        out = asdict(self)
        for name in ("power_w", "demand_w", "util_frac", "clock_frac", "temp_c"):
            value = out[name]
            out[name] = value if value is not None and math.isfinite(value) else None
        out["sent_at"] = out.pop("sent_at_s")
        return out


@dataclass(frozen=True)
class Reply:
    """Answer to one telemetry message.

    Attributes:
        lease: None while the service commands nothing (shadow, advise, or a node not yet resynchronised).
        stage: `fleet.tables` stage that the node is to run; None when the service does not say.
        clock_frac: Ceiling on the SM clock, 1 for none.
        server_time_s: The service's clock, for the log alone.
    """

    lease: Lease | None
    stage: int | None = None
    clock_frac: float = 1.0
    cordoned: bool = False
    drained: bool = False
    server_time_s: float = 0.0

    @classmethod
    def from_dict(cls, content: Any, request: int) -> "Reply":
        """Read an answer; keys that this version does not know are left alone.

        Args:
            content: Decoded JSON.
            request: Sequence number of the telemetry that it answers.

        Raises:
            ValueError: naming what is missing or of the wrong kind.
        """
        if not isinstance(content, dict):
            raise ValueError("the answer is not an object")
        lease = content.get("lease")
        clock_frac = _number(content, "clock_frac", 1.0)
        stage = content.get("stage")
        return cls(
            lease=None if lease is None else _lease(lease, request),
            stage=None if stage is None else _whole(content, "stage"),
            clock_frac=clock_frac if 0.0 < clock_frac <= 1.0 else 1.0,
            cordoned=bool(content.get("cordoned", False)),
            drained=bool(content.get("drained", False)),
            server_time_s=_number(content, "server_time_s", 0.0),
        )


def _lease(content: Any, request: int) -> Lease:
    if not isinstance(content, dict):
        raise ValueError("lease is not an object")
    return Lease(
        epoch=_whole(content, "epoch"),
        seq=_whole(content, "seq"),
        ttl_s=_number(content, "ttl_s"),
        cap_w=_whole(content, "cap_w"),
        fallback_w=_whole(content, "fallback_w"),
        request=request,
    )


def _number(content: dict, name: str, missing: float | None = None) -> float:
    value = content.get(name, missing)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, not a number")
    return float(value)


def _whole(content: dict, name: str) -> int:
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}, not a whole number")
    return value
