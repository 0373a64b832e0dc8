"""Site files: TOML that describes a fleet, read into a validated `Fleet`."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from .errors import SiteError
from .tables import DISAGGREGATED, SERVICE_KINDS
from .toml_file import find_file, names_in, number, parse, read_toml
from .topology import Fleet, Node, PowerDomain, Service, Slo, Timing

SITES = Path(__file__).parents[1] / "envs" / "sites"
"""The sites that ship with the package."""

_MAX_NODES = 200_000  # twice the largest fleet this is meant for: refuse a slipped digit, not a large site


@dataclass(frozen=True)
class _TimingIn:
    """[timing]: the keys of `topology.Timing`."""

    control_s: float = number(Timing.control_s, above=0, high=3600)
    tick_s: float = number(Timing.tick_s, above=0, high=60)
    actuation_p99_s: float = number(Timing.actuation_p99_s, low=0, high=600)
    firmware_lag_s: float = number(Timing.firmware_lag_s, low=0, high=600)
    stale_s: float = number(Timing.stale_s, above=0, high=3600)
    lease_ttl_s: float = number(Timing.lease_ttl_s, above=0, high=3600)
    dwell_s: float = number(Timing.dwell_s, low=0, high=86400)
    moves_per_min: float = number(Timing.moves_per_min, low=0, high=6000)
    raise_w_per_s: float = number(Timing.raise_w_per_s, above=0, high=1e9)
    deadband_w: int = number(Timing.deadband_w, low=0, high=100_000)


@dataclass(frozen=True)
class _ServiceIn:
    """[[service]]: a model and its targets."""

    name: str
    model: str
    ttft_s: float = number(Slo.ttft_s, above=0, high=3600)
    itl_s: float = number(Slo.itl_s, above=0, high=60)
    percentile: float = number(Slo.percentile, low=50, high=100)
    min_prefill_nodes: int = number(Service.min_prefill_nodes, low=1)
    min_decode_nodes: int = number(Service.min_decode_nodes, low=0)
    priority: int = Service.priority
    kind: str = Service.kind


@dataclass(frozen=True)
class _DomainIn:
    """[[domain]]: a limit on everything below it; peak_w or breaker_w must be given."""

    name: str
    parent: str | None = None
    peak_w: int | None = number(None, above=0, high=10**10)
    breaker_w: int | None = number(None, above=0, high=10**10)
    breaker_kind: str = PowerDomain.breaker_kind
    mean_w: int = number(PowerDomain.mean_w, low=0)
    window_s: float = number(PowerDomain.window_s, above=0, high=31 * 86400)
    unmanaged_w: int = number(PowerDomain.unmanaged_w, low=0)
    unknown_reserve: int = number(PowerDomain.unknown_reserve, low=0)


@dataclass(frozen=True)
class _NodesIn:
    """[[nodes]]: one node (name) or several alike (prefix and count)."""

    domain: str
    sku: str
    service: str
    gpus: int = number(low=1, high=64)
    non_gpu_max_w: int = number(low=0, high=100_000)
    prefix: str | None = None
    name: str | None = None
    count: int = number(1, low=1, high=_MAX_NODES)
    prefill: int | None = number(None, low=0)
    stage: str | None = None
    failure_domain: str | None = None


@dataclass(frozen=True)
class _SiteIn:
    """The file."""

    name: str
    service: tuple[_ServiceIn, ...]
    domain: tuple[_DomainIn, ...]
    nodes: tuple[_NodesIn, ...]
    deepest_cut_frac: float = number(Fleet.deepest_cut_frac, low=0, high=1)
    max_drain_frac: float = number(Fleet.max_drain_frac, low=0, high=1)
    meters_loosen: bool = Fleet.meters_loosen
    timing: _TimingIn = field(default_factory=_TimingIn)


def list_sites() -> list[str]:
    """Names of the sites that ship with the package."""
    return names_in(SITES)


def load_site(path_or_name: str | Path) -> Fleet:
    """Read a site file.

    Args:
        path_or_name: A path that ends in .toml, or the name of a site that ships with the package.

    Raises:
        SiteError: one line with the file, the key and what to change.
    """
    path = find_file(path_or_name, SITES, "site", SiteError)
    return fleet_from_dict(read_toml(path, SiteError), str(path))


def fleet_from_dict(data: dict, source: str) -> Fleet:
    """Build a fleet from the content of a site file.

    Args:
        data: What the TOML said.
        source: Where it came from, for messages.

    Raises:
        SiteError: one line with the source, the key and what to change.
    """
    site = parse(_SiteIn, data, source, SiteError)
    try:
        nodes = _nodes(site.nodes)
        fleet = Fleet.build(
            site.name,
            [_domain(i, d) for i, d in enumerate(site.domain)],
            nodes,
            [_service(i, s) for i, s in enumerate(site.service)],
            timing=_timing(site.timing),
            deepest_cut_frac=site.deepest_cut_frac,
            max_drain_frac=site.max_drain_frac,
            meters_loosen=site.meters_loosen,
        )
        _check_stages(fleet)
    except SiteError as e:
        raise SiteError(f"{source}: {e}") from None
    return replace(fleet, source=source)


def _timing(given: _TimingIn) -> Timing:
    ticks = given.control_s / given.tick_s
    if ticks < 1 or abs(ticks - round(ticks)) > 1e-9:
        raise SiteError(f"timing.control_s: {given.control_s:g} s is not a whole number of ticks of {given.tick_s:g} s")
    return Timing(**asdict(given))


def _service(index: int, s: _ServiceIn) -> Service:
    if s.kind not in SERVICE_KINDS:
        raise SiteError(f"service[{index}] {s.name!r}.kind: {s.kind!r}; use {', '.join(SERVICE_KINDS)}")
    if s.kind == SERVICE_KINDS[DISAGGREGATED] and s.min_decode_nodes < 1:
        raise SiteError(
            f"service[{index}] {s.name!r}.min_decode_nodes: 0; a disaggregated service keeps at least 1 (aggregated "
            "and training services may be shed to the last node)"
        )
    return Service(
        s.name,
        s.model,
        Slo(s.ttft_s, s.itl_s, s.percentile),
        s.min_prefill_nodes if s.kind == SERVICE_KINDS[DISAGGREGATED] else 0,
        s.min_decode_nodes,
        s.priority,
        s.kind,
    )


def _domain(index: int, d: _DomainIn) -> PowerDomain:
    where = f"domain[{index}] {d.name!r}"
    peak_w = d.peak_w
    if peak_w is None:
        if d.breaker_w is None:
            raise SiteError(f"{where}: give peak_w, or breaker_w from which it follows as 80 % of the rating")
        # A breaker carries 80 % of its rating continuously (NEC 210.20(A) and 215.3; MODEL.md section 8), in
        # whole numbers so that no watt is lost to rounding.
        peak_w = d.breaker_w * 4 // 5
    elif d.breaker_w is not None and peak_w > d.breaker_w:
        raise SiteError(f"{where}: peak_w {peak_w} W is above the breaker's rating, {d.breaker_w} W; lower it")
    if d.breaker_kind not in ("rack", "main"):
        raise SiteError(f"{where}.breaker_kind: {d.breaker_kind!r}; use rack or main")
    return PowerDomain(
        d.name,
        peak_w,
        d.parent,
        d.mean_w,
        d.window_s,
        d.unmanaged_w,
        d.unknown_reserve,
        d.breaker_w,
        d.breaker_kind,
    )


def _nodes(entries: tuple[_NodesIn, ...]) -> list[Node]:
    total = sum(e.count for e in entries)
    if total > _MAX_NODES:
        raise SiteError(f"nodes: {total} nodes in all; at most {_MAX_NODES} fit one site")
    out = []
    for i, e in enumerate(entries):
        where = f"nodes[{i}]"
        if (e.name is None) == (e.prefix is None):
            raise SiteError(f"{where}: give either name (one node) or prefix (count nodes)")
        if e.name is not None and e.count != 1:
            raise SiteError(f"{where}.count: {e.count} nodes cannot share the name {e.name!r}; use prefix")
        if (e.stage is None) == (e.prefill is None):
            raise SiteError(f"{where}: give either stage or prefill (how many of them start as prefill)")
        if e.prefill is not None and e.prefill > e.count:
            raise SiteError(f"{where}.prefill: {e.prefill} of {e.count} nodes; it must not exceed count")
        for k in range(e.count):
            out.append(
                Node(
                    name=e.name if e.name is not None else f"{e.prefix}{k}",
                    domain=e.domain,
                    sku=e.sku,
                    gpus=e.gpus,
                    non_gpu_max_w=e.non_gpu_max_w,
                    service=e.service,
                    stage=e.stage or ("prefill" if k < (e.prefill or 0) else "decode"),
                    failure_domain=e.failure_domain or e.domain,
                )
            )
    return out


def _check_stages(fleet: Fleet) -> None:
    """A service that starts without one of its stages serves nothing."""
    for s in fleet.services:
        if s.kind != SERVICE_KINDS[DISAGGREGATED] and any(
            n.service == s.name and n.stage == "prefill" for n in fleet.nodes
        ):
            raise SiteError(
                f"service {s.name!r} is {s.kind}: its nodes start as decode; set prefill = 0 under [[nodes]]"
            )
        for stage, least in (("prefill", s.min_prefill_nodes), ("decode", s.min_decode_nodes)):
            have = sum(n.service == s.name and n.stage == stage for n in fleet.nodes)
            if have < least:
                raise SiteError(
                    f"service {s.name!r}: {have} nodes start as {stage}, it needs {least}; "
                    "change prefill or stage under [[nodes]]"
                )
