"""The static site: power-domain tree, nodes, services, and the tables that kernels read."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np

from .errors import SiteError
from .skus import SKUS
from .tables import (
    DECODE,
    DOMAIN_STATIC,
    FLEET_STATIC,
    NODE_STATIC,
    PREFILL,
    SERVICE_KINDS,
    SERVICE_STATIC,
    STAGES,
)

STAGE_NAMES = ("prefill", "decode")


@dataclass(frozen=True)
class PowerDomain:
    """A breaker, busbar, rack or contract: a limit on everything below it.

    Attributes:
        peak_w: Instantaneous limit.
        parent: Name of the domain that feeds this one; None for the root.
        mean_w: Limit of the mean over `window_s`; 0 for none.
        unmanaged_w: Declared upper bound of loads below it that no agent governs.
        unknown_reserve: Nodes below it that may stop obeying at once and are still covered.
        breaker_w: Rating of the breaker; None where there is none.
        breaker_kind: "rack" or "main", the trip curve (MODEL.md section 8).
    """

    name: str
    peak_w: int
    parent: str | None = None
    mean_w: int = 0
    window_s: float = 900.0
    unmanaged_w: int = 0
    unknown_reserve: int = 0
    breaker_w: int | None = None
    breaker_kind: str = "rack"


@dataclass(frozen=True)
class Node:
    """A server under one agent; its GPUs share one stage and one cap."""

    name: str
    domain: str
    sku: str
    gpus: int
    non_gpu_max_w: int
    service: str
    stage: str
    failure_domain: str


@dataclass(frozen=True)
class Slo:
    """Latency targets: TTFT and mean ITL, and the share of requests that must meet them."""

    ttft_s: float = 0.5
    itl_s: float = 0.05
    percentile: float = 99.0


@dataclass(frozen=True)
class Service:
    """A model served to one set of targets, in two stages unless its kind says otherwise (`tables.SERVICE_KINDS`)."""

    name: str
    model: str
    slo: Slo = Slo()
    min_prefill_nodes: int = 1
    min_decode_nodes: int = 1
    priority: int = 125  # FIELD.md section 3: inference
    kind: str = "disaggregated"


@dataclass(frozen=True)
class Timing:
    """The clock of the loop; every rate is per second."""

    control_s: float = 5.0
    tick_s: float = 1.0
    actuation_p99_s: float = 1.0
    firmware_lag_s: float = 1.0
    stale_s: float = 5.0
    lease_ttl_s: float = 5.0
    dwell_s: float = 60.0
    moves_per_min: float = 4.0
    raise_w_per_s: float = 4000.0
    deadband_w: int = 48

    @property
    def grace_s(self) -> float:
        """When an un-noticed cut is in force: tick + actuation p99 + firmware lag."""
        return self.tick_s + self.actuation_p99_s + self.firmware_lag_s

    @property
    def dead_service_grace_s(self) -> float:
        """When an un-noticed cut is met although the service died with it: leases must run out first."""
        return max(self.grace_s, self.lease_ttl_s + self.firmware_lag_s)


@dataclass(frozen=True)
class Fleet:
    """A validated site. Nodes are in tree order, so that every domain's nodes are one range.

    Build it with `Fleet.build`, which sorts and checks; the constructor trusts its arguments.
    """

    name: str
    domains: tuple[PowerDomain, ...]
    nodes: tuple[Node, ...]
    services: tuple[Service, ...]
    timing: Timing = Timing()
    deepest_cut_frac: float = 0.3
    max_drain_frac: float = 0.25
    meters_loosen: bool = False
    source: str = field(default="", compare=False)

    @classmethod
    def build(cls, name: str, domains, nodes, services, **settings) -> "Fleet":
        """Sort domains parents-first and nodes in tree order, and check that the whole makes sense.

        Raises:
            SiteError: with one line that names the entry at fault.
        """
        domains, nodes, services = list(domains), list(nodes), list(services)
        _check_unique("domain", [d.name for d in domains])
        _check_unique("node", [n.name for n in nodes])
        _check_unique("service", [s.name for s in services])
        ordered = _tree_order(domains)
        rank = {d.name: i for i, d in enumerate(ordered)}
        service_names = {s.name for s in services}
        for n in nodes:
            if n.domain not in rank:
                raise SiteError(f"node {n.name!r}: no power domain {n.domain!r}; declare it under [[domain]]")
            if n.sku not in SKUS:
                raise SiteError(f"node {n.name!r}: unknown sku {n.sku!r}; known: {', '.join(sorted(SKUS))}")
            if n.service not in service_names:
                raise SiteError(f"node {n.name!r}: no service {n.service!r}; declare it under [[service]]")
            if n.stage not in STAGE_NAMES:
                raise SiteError(f"node {n.name!r}: stage is {n.stage!r}; use prefill or decode")
            if n.gpus < 1 or n.non_gpu_max_w < 0:
                raise SiteError(f"node {n.name!r}: gpus must be at least 1 and non_gpu_max_w at least 0")
        if not nodes:
            raise SiteError("the site has no nodes; declare at least one under [[nodes]]")
        if not services:
            raise SiteError("the site has no service; declare at least one under [[service]]")
        if any(d.unknown_reserve < 0 for d in domains):
            raise SiteError("unknown_reserve must be at least 0")
        # stable: nodes of one domain stay in the order of the file
        nodes = sorted(nodes, key=lambda n: rank[n.domain])
        fleet = cls(name, tuple(ordered), tuple(nodes), tuple(services), **settings)
        fleet._check_floors()
        return fleet

    def _check_floors(self) -> None:
        static, nodes = self.domain_static, self.node_static
        for i, d in enumerate(self.domains):
            span = nodes[static["node_start"][i] : static["node_end"][i]]
            floor_w = int((span["parked_max_w"] + span["non_gpu_max_w"]).sum()) + d.unmanaged_w
            if d.peak_w < floor_w:
                raise SiteError(
                    f"domain {d.name!r}: peak_w {d.peak_w} W is below the {floor_w} W that its nodes may draw "
                    "with every GPU parked; raise the limit or move nodes"
                )
            if d.mean_w and not floor_w <= d.mean_w <= d.peak_w:
                raise SiteError(f"domain {d.name!r}: mean_w must lie between {floor_w} W and peak_w {d.peak_w} W")

    @property
    def pools(self) -> int:
        """Pools: one per service and stage; index = 2 * service + stage."""
        return STAGES * len(self.services)

    @cached_property
    def node_index(self) -> dict[str, int]:
        return {n.name: i for i, n in enumerate(self.nodes)}

    @cached_property
    def domain_index(self) -> dict[str, int]:
        return {d.name: i for i, d in enumerate(self.domains)}

    @cached_property
    def service_index(self) -> dict[str, int]:
        return {s.name: i for i, s in enumerate(self.services)}

    @cached_property
    def sku_names(self) -> tuple[str, ...]:
        return tuple(sorted({n.sku for n in self.nodes}))

    @cached_property
    def node_static(self) -> np.ndarray:
        """`tables.NODE_STATIC`, shape (N,)."""
        table = np.zeros(len(self.nodes), NODE_STATIC)
        failure = sorted({n.failure_domain for n in self.nodes})
        for row, n in zip(table, self.nodes, strict=True):
            sku = SKUS[n.sku]
            row["gpus"] = n.gpus
            row["domain"] = self.domain_index[n.domain]
            row["failure_domain"] = failure.index(n.failure_domain)
            row["service"] = self.service_index[n.service]
            row["stage"] = PREFILL if n.stage == "prefill" else DECODE
            row["sku"] = self.sku_names.index(n.sku)
            row["cap_min_w"] = sku.cap_min_w * n.gpus
            row["cap_max_w"] = sku.cap_max_w * n.gpus
            row["decode_floor_w"] = sku.decode_floor_w * n.gpus
            row["non_gpu_max_w"] = n.non_gpu_max_w
            row["parked_max_w"] = sku.parked_max_w * n.gpus
        return table

    @cached_property
    def domain_static(self) -> np.ndarray:
        """`tables.DOMAIN_STATIC`, shape (D,), parents before children."""
        table = np.zeros(len(self.domains), DOMAIN_STATIC)
        rank = [self.domain_index[n.domain] for n in self.nodes]
        below: list[set[int]] = [{i} for i in range(len(self.domains))]
        for i in reversed(range(len(self.domains))):
            parent = self.domains[i].parent
            if parent is not None:
                below[self.domain_index[parent]] |= below[i]
        for i, (row, d) in enumerate(zip(table, self.domains, strict=True)):
            row["parent"] = -1 if d.parent is None else self.domain_index[d.parent]
            row["depth"] = 0 if d.parent is None else table["depth"][row["parent"]] + 1
            inside = [k for k, domain in enumerate(rank) if domain in below[i]]
            row["node_start"] = inside[0] if inside else 0
            row["node_end"] = inside[-1] + 1 if inside else 0
            row["peak_w"] = d.peak_w
            row["mean_w"] = d.mean_w
            row["window_s"] = d.window_s
            row["unmanaged_w"] = d.unmanaged_w
            row["non_gpu_max_w"] = sum(self.nodes[k].non_gpu_max_w for k in inside)
            row["unknown_reserve"] = d.unknown_reserve
        return table

    @cached_property
    def service_static(self) -> np.ndarray:
        """`tables.SERVICE_STATIC`, shape (S,)."""
        table = np.zeros(len(self.services), SERVICE_STATIC)
        for row, s in zip(table, self.services, strict=True):
            row["ttft_s"], row["itl_s"] = s.slo.ttft_s, s.slo.itl_s
            row["min_prefill_nodes"], row["min_decode_nodes"] = s.min_prefill_nodes, s.min_decode_nodes
            row["priority"] = s.priority
            row["kind"] = SERVICE_KINDS.index(s.kind)
        return table

    @cached_property
    def static(self) -> np.ndarray:
        """`tables.FLEET_STATIC`, shape (1,)."""
        table = np.zeros(1, FLEET_STATIC)
        for name in FLEET_STATIC.names or ():
            table[name] = getattr(self.timing, name) if hasattr(self.timing, name) else getattr(self, name)
        return table

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the site's content."""
        content = asdict(self)
        content.pop("source")
        if not content["meters_loosen"]:
            content.pop("meters_loosen")  # sites that do not use it keep the hash that they had before there was one
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def path(self, domain: int) -> list[int]:
        """Indices from a domain up to the root."""
        out = []
        while domain >= 0:
            out.append(domain)
            domain = int(self.domain_static["parent"][domain])
        return out


def _check_unique(kind: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SiteError(f"two entries of kind {kind} are called {name!r}; rename one")
        seen.add(name)


def _tree_order(domains: list[PowerDomain]) -> list[PowerDomain]:
    """Depth-first, parents before children; refuses cycles, orphans and several roots."""
    by_name = {d.name: d for d in domains}
    roots = [d for d in domains if d.parent is None]
    children: dict[str, list[PowerDomain]] = {d.name: [] for d in domains}
    for d in domains:
        if d.parent is None:
            continue
        if d.parent not in by_name:
            raise SiteError(f"domain {d.name!r}: no parent domain {d.parent!r}; declare it under [[domain]]")
        children[d.parent].append(d)
    for d in domains:
        walk, seen = d, [d.name]
        while walk.parent is not None:
            walk = by_name[walk.parent]
            if walk.name in seen:
                raise SiteError("power domains form a cycle: " + " -> ".join([*seen, walk.name]))
            seen.append(walk.name)
    if len(roots) != 1:
        raise SiteError(f"the power tree needs exactly one root (a domain without parent), found {len(roots)}")
    ordered, stack = [], [roots[0]]
    while stack:
        d = stack.pop()
        ordered.append(d)
        stack.extend(reversed(children[d.name]))
    return ordered
