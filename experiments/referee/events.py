"""What the referee is told: the site, and one event for everything that happened to it.

Times are whole milliseconds, watts whole watts, so that every sum is exact. Nothing here knows how commands came
about: a log of another controller is judged in the same way.
"""

from dataclasses import dataclass

PREFILL, DECODE, PARKED = 0, 1, 2
"""Stages of a node, as on the wire."""

PARKS_W = 0
"""A fallback that means: park."""

NEVER_MS = 1 << 60
"""A time that does not come."""

Id = tuple[int, int]
"""(epoch, sequence) of a command; a later command has a larger one."""


@dataclass(frozen=True)
class SiteNode:
    """One node; watts are of all its GPUs together.

    Attributes:
        domain: Index of the power domain that feeds it.
        parked_max_w: The most its GPUs draw with nothing loaded.
        non_gpu_max_w: Declared bound of everything else in it.
        stage: At the start.
    """

    domain: int
    failure_domain: int
    service: int
    stage: int
    cap_min_w: int
    cap_max_w: int
    parked_max_w: int
    non_gpu_max_w: int


@dataclass(frozen=True)
class SiteDomain:
    """One power domain; `parent` is an index, -1 for the root, `mean_w` 0 for no window."""

    parent: int
    peak_w: int
    mean_w: int
    window_ms: int
    unmanaged_w: int
    unknown_reserve: int


@dataclass(frozen=True)
class SiteService:
    """Nodes per stage that drains and moves must leave, and moves per minute."""

    min_prefill_nodes: int
    min_decode_nodes: int


@dataclass(frozen=True)
class SiteTiming:
    """What the promises are stated in."""

    tick_ms: int
    actuation_p99_ms: int
    firmware_lag_ms: int
    stale_ms: int
    lease_ttl_ms: int
    dwell_ms: int
    moves_per_min: float

    @property
    def grace_ms(self) -> int:
        return self.tick_ms + self.actuation_p99_ms + self.firmware_lag_ms


@dataclass(frozen=True)
class Site:
    """The static site. Parents stand before their children; a share is (numerator, denominator)."""

    nodes: tuple[SiteNode, ...]
    domains: tuple[SiteDomain, ...]
    services: tuple[SiteService, ...]
    timing: SiteTiming
    deepest_cut: tuple[int, int]
    max_drain: tuple[int, int]


@dataclass(frozen=True)
class Demanded:
    """A domain's limit is another one from now on; `announced_ms` is when that was first told, now for no notice."""

    time_ms: int
    domain: int
    limit_w: int
    announced_ms: int


@dataclass(frozen=True)
class Announced:
    """A domain's limit will change at `start_ms`; a later announcement for the domain replaces it."""

    time_ms: int
    domain: int
    limit_w: int
    start_ms: int


@dataclass(frozen=True)
class Heard:
    """A report reached the controller: what the node read back at `sampled_ms`. `id` is (-1, -1) before any command."""

    time_ms: int
    node: int
    sampled_ms: int
    boot: int
    id: Id
    cap_w: int
    stage: int
    is_moving: bool


@dataclass(frozen=True)
class Looked:
    """What the controller took for true when it planned, per node and per domain."""

    time_ms: int
    is_silent: tuple[bool, ...]
    age_ms: tuple[int, ...]
    is_up: tuple[bool, ...]
    limit_w: tuple[int, ...]
    next_limit_w: tuple[int, ...]
    next_in_ms: tuple[int, ...]


@dataclass(frozen=True)
class Command:
    """One node's row of a plan."""

    id: Id
    cap_w: int
    fallback_w: int
    stage: int
    is_drained: bool


@dataclass(frozen=True)
class Planned:
    """A plan left the controller: one command per node. `is_shedding`: it parks, or keeps parked, for lack of watts."""

    time_ms: int
    commands: tuple[Command, ...]
    is_shedding: bool


@dataclass(frozen=True)
class Applied:
    """A node runs this command from now on; its draw obeys a lower cap within the firmware's lag."""

    time_ms: int
    node: int
    id: Id
    cap_w: int
    stage: int


@dataclass(frozen=True)
class FellBack:
    """A node's lease expired and it set this cap, or parked."""

    time_ms: int
    node: int
    cap_w: int
    is_parked: bool = False


@dataclass(frozen=True)
class Rebooted:
    """A node lost its cap and its lease: it may draw its product's maximum."""

    time_ms: int
    node: int


@dataclass(frozen=True)
class Passed:
    """Time went by."""

    time_ms: int


Event = Demanded | Announced | Heard | Looked | Planned | Applied | FellBack | Rebooted | Passed


@dataclass(frozen=True)
class Violation:
    """One broken promise.

    Attributes:
        invariant: Its name in docs/specification.md.
        where: "domain 3", "node 17" or "service 0".
        by: How far beyond, in the unit of `unit`.
    """

    invariant: str
    time_ms: int
    where: str
    by: int
    unit: str = "W"

    def __str__(self) -> str:
        return f"{self.invariant} at {self.time_ms / 1000:.3f} s, {self.where}: {self.by} {self.unit} beyond"
