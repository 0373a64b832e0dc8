"""What a GPU error or another agent's health event means for its node.

Power and thermal throttling is noise here, because whoever sets the caps can tell a capped GPU from a sick
one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ..fleet.arbiter.health import DRAINING_ACTIONS, xid_action

SEVERITY = ("meta", "fabric", "human", "gpu_reset", "reboot")
"""Draining outcomes, mildest first: the worst decides. 154 ("meta") only points at the code beside it."""


def worst_fatal_xid(codes: Iterable[int]) -> int:
    """The code that takes the node out of service; 0 when none does."""
    fatal = [c for c in codes if c != 0 and xid_action(c) in DRAINING_ACTIONS]
    return max(fatal, key=lambda c: (SEVERITY.index(xid_action(c)), c), default=0)


@dataclass(frozen=True)
class HealthVerdict:
    """What a health event asks for: nothing, a cordon, a cordon and drain, or back in service."""

    action: str  # "none" | "cordon" | "drain" | "restore"
    why: str


THROTTLE_WORDS = ("THROTTLE", "POWER_CAP", "POWERCAP", "THERMAL_VIOLATION", "POWER_VIOLATION")


def judge_health_event(
    is_fatal: bool, is_healthy: bool, codes: Iterable[str], recommended: str, strategy: str, skip_drain: bool
) -> HealthVerdict:
    """Decide what a health event means for the node it names."""
    codes = [str(c) for c in codes]
    if is_healthy:
        return HealthVerdict("restore", "a healthy event cancels from any state")
    if strategy != "EXECUTE_REMEDIATION":
        return HealthVerdict("none", f"strategy {strategy} stores only")
    if codes and all(any(w in c.upper() for w in THROTTLE_WORDS) for c in codes):
        return HealthVerdict("none", "throttling is what a cap does; it is no fault on its own")
    if not is_fatal:
        return HealthVerdict("none", "not fatal")
    digits = [int(d) for c in codes if (d := c.upper().removeprefix("XID").strip(" _:")).isdecimal()]
    if digits:
        xid = worst_fatal_xid(digits)
        if xid == 0:
            return HealthVerdict("none", f"XID {digits[0]} concerns the application only")
        kind = xid_action(xid)
        drains = kind in ("gpu_reset", "reboot", "fabric") and not skip_drain
        return HealthVerdict("drain" if drains else "cordon", f"XID {xid} ({kind.replace('_', ' ')})")
    if recommended == "NONE":
        return HealthVerdict("none", "no action recommended")
    return HealthVerdict("cordon" if skip_drain else "drain", f"fatal, {recommended or 'UNKNOWN'} recommended")
