"""A site with more or fewer nodes on the same power, and how many of them different rules would buy.

Scaling keeps every power domain, its limits and its reserve, and the site's own kinds of nodes in their proportions.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..envs.scenario import PlantRanges
from ..fleet.arbiter.kinds import decode_floor
from ..fleet.arbiter.limits import BANK_FRAC
from ..fleet.errors import BadInput, SiteError
from ..fleet.skus import SKUS
from ..fleet.tables import DECODE
from ..fleet.topology import Fleet, Node

MAX_FACTOR = 16
"""Nodes are at most so many times the site's own: more would be another site."""

NodeWatts = Callable[[Node], float]


def nameplate_w(node: Node) -> float:
    """The vendor's nameplate of a node, scaled by its GPUs (sources in `fleet/skus.py`)."""
    sku = SKUS[node.sku]
    return sku.nameplate_node_w * node.gpus / sku.node_gpus


def declared_w(node: Node) -> float:
    """Every GPU at its largest cap and everything else at the site file's bound.

    Packaged sites declare what MODEL.md section 8 calls typical: there this is its "TDP + typical overhead".
    """
    return SKUS[node.sku].cap_max_w * node.gpus + node.non_gpu_max_w


def typical_w(node: Node) -> float:
    """Every GPU at its largest cap and everything else at the plant's mean share of the declared bound."""
    return SKUS[node.sku].cap_max_w * node.gpus + node.non_gpu_max_w * float(np.mean(PlantRanges().non_gpu_frac))


@dataclass(frozen=True)
class Provisioning:
    """A rule by which nodes are bought for a feed: each at so many watts, and no more than fit every limit.

    Kinds of nodes stay in the site's proportions, so that the first full rack ends the buying: on trees of unlike racks
    this buys less than filling each rack by itself would.
    """

    name: str
    meaning: str
    node_w: NodeWatts


PROVISIONING = (
    Provisioning("nameplate", "vendor's nameplate of every node", nameplate_w),
    Provisioning("tdp-declared", "TDP of every GPU + declared non_gpu_max_w", declared_w),
    Provisioning("tdp-typical", "TDP of every GPU + the plant's mean non-GPU draw", typical_w),
)
"""What a plan is compared with, the most cautious first."""


def scaled(fleet: Fleet, nodes: int, shift: int = 0) -> Fleet:
    """A site with this many nodes on the same power tree.

    Nodes of each role (service, stage, product) stay in proportion by largest remainders, at least one each, and
    spread over the domains as the site's own do, the least filled domain first.

    Args:
        fleet: The site.
        nodes: Nodes in all.
        shift: So many steps of nodes start as decode instead of prefill, negative for the other way, in every service
            whose kinds of nodes serve both; a step is one node, in large services a sixteenth.

    Raises:
        SiteError: fewer nodes than roles, or than a service's stages need, or more than a domain carries parked, or a
            shift for which no service has the nodes.
    """
    if nodes == len(fleet.nodes) and not shift:
        return fleet
    roles: dict[tuple, list[Node]] = {}
    for node in fleet.nodes:
        roles.setdefault((node.service, node.stage, node.sku, node.gpus, node.non_gpu_max_w), []).append(node)
    if nodes < len(roles):
        raise SiteError(f"{nodes} nodes are fewer than the site's {len(roles)} kinds of nodes")
    counts = apportion([len(own) for own in roles.values()], nodes, at_least=1)
    if shift:
        counts = _shifted(list(roles), counts, shift)
    home, filled = _below(fleet, fleet.nodes), Counter[str]()
    made: list[Node] = []
    for r, (own, count) in enumerate(zip(roles.values(), counts, strict=True)):
        places: dict[tuple[str, str], list[Node]] = {}
        for node in own:
            places.setdefault((node.domain, node.failure_domain), []).append(node)
        paths = [[fleet.domains[d].name for d in reversed(fleet.path(fleet.domain_index[at]))] for at, _ in places]

        def fill(i: int, shares: list[int], paths=paths) -> tuple[float, ...]:
            """How full each domain on the way to a place is, from the root, against the site's own."""
            now = [sum(n for n, path in zip(shares, paths, strict=True) if d in path) for d in paths[i]]
            return tuple((filled[d] + n) / home[d] for d, n in zip(paths[i], now, strict=True))

        shares = apportion([len(here) for here in places.values()], count, tie=fill)
        for p, (((domain, _), here), share) in enumerate(zip(places.items(), shares, strict=True)):
            made += [replace(here[0], name=f"{domain}-{r}-{p}-{k}") for k in range(share)]
            filled.update(dict.fromkeys(paths[p], share))
    _check_stages(fleet, made)
    name = f"{fleet.name}-{nodes}" + (f"{shift:+d}" if shift else "")
    settings = {
        name: getattr(fleet, name)
        for name in ("timing", "deepest_cut_frac", "max_drain_frac", "meters_loosen", "source")
    }
    return Fleet.build(name, fleet.domains, made, fleet.services, **settings)


def _shifted(roles: list[tuple], counts: list[int], shift: int) -> list[int]:
    """Role counts with nodes moved between the stages of every service, within its commonest kind of both."""
    out, has_moved = list(counts), False
    for service in dict.fromkeys(role[0] for role in roles):
        size = sum(n for role, n in zip(roles, counts, strict=True) if role[0] == service)
        pairs = [
            (counts[i] + counts[k], i, k)
            for i, role in enumerate(roles)
            for k, other in enumerate(roles)
            if role[:2] == (service, "prefill") and other == (service, "decode", *role[2:])
        ]
        if not pairs:
            continue
        _, prefill, decode = max(pairs, key=lambda pair: pair[0])
        moved = shift * max(1, round(size / 16))
        out[prefill], out[decode] = out[prefill] - moved, out[decode] + moved
        has_moved = True
        if min(out[prefill], out[decode]) < 1:
            raise SiteError(f"service {service!r}: cannot move {abs(moved)} nodes from one stage to the other")
    if not has_moved:
        raise SiteError("no service has one kind of node in both stages")
    return out


def apportion(
    weights: Sequence[int], total: int, at_least: int = 0, tie: Callable[[int, list[int]], Any] = lambda i, shares: i
) -> list[int]:
    """Whole shares of a total in proportion to weights, by largest remainders.

    Args:
        weights: At least one above 0.
        total: What is shared; at least `at_least` times their number.
        at_least: Smallest share.
        tie: Of equal remainders the place whose value is lowest goes first; called with it and the shares so far.
    """
    whole = sum(weights)
    out = [max(w * total // whole, at_least) for w in weights]
    while sum(out) != total:
        # by how far each is from its quota, in parts of `whole`: whole numbers, so that equal remainders are equal
        gap = [w * total - n * whole for w, n in zip(weights, out, strict=True)]
        if sum(out) < total:
            out[min(range(len(out)), key=lambda i: (-gap[i], tie(i, out), i))] += 1
        else:
            out[min((i for i in range(len(out)) if out[i] > at_least), key=lambda i: (gap[i], i))] -= 1
    return out


def fits_floors(fleet: Fleet) -> bool:
    """Whether every node's smallest useful cap fits every limit with the reserve: what the arbiter needs not to park.

    A decode node's is its decode floor, as the arbiter has it; the limit is the lower of `peak_w` and what a mean over
    a window leaves with its bank unspent.
    """
    node, service = fleet.node_static.view(np.recarray), fleet.service_static.view(np.recarray)
    low_w = [max(int(n.cap_min_w), int(decode_floor(n, service))) if n.stage == DECODE else n.cap_min_w for n in node]
    low = np.minimum(np.array(low_w), node.cap_max_w)
    for row in fleet.domain_static:
        inside = slice(int(row["node_start"]), int(row["node_end"]))
        jumps = np.sort(node.cap_max_w[inside] - low[inside])[::-1][: int(row["unknown_reserve"])]
        if row["non_gpu_max_w"] + row["unmanaged_w"] + low[inside].sum() + jumps.sum() > _limit_w(row):
            return False
    return True


def fits_watts(fleet: Fleet, node_w: NodeWatts) -> bool:
    """Whether every node at so many watts fits every limit, without a reserve: they draw no more."""
    watts = np.array([node_w(n) for n in fleet.nodes])
    return all(
        watts[int(row["node_start"]) : int(row["node_end"])].sum() + row["unmanaged_w"] <= _limit_w(row)
        for row in fleet.domain_static
    )


def most_nodes(fleet: Fleet, fits: Callable[[Fleet], bool]) -> int | None:
    """The largest number of nodes, at most `MAX_FACTOR` times the site's own, at which a rule is met; None for none.

    Found by bisection above the smallest number that makes a site: a rule that is met stays so with fewer nodes, but
    for rounding.
    """

    def is_met(nodes: int) -> bool:
        try:
            return fits(scaled(fleet, nodes))
        except SiteError:
            return False

    low = next((n for n in range(1, len(fleet.nodes) + 1) if is_met(n)), None)
    if low is None:
        return None
    high = MAX_FACTOR * len(fleet.nodes) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_met(middle) else (low, middle)
    return low


def most_that_fit(fleet: Fleet) -> int:
    """The largest number of nodes whose floors fit.

    Raises:
        BadInput: if no number does.
    """
    found = most_nodes(fleet, fits_floors)
    if found is None:
        raise BadInput(
            f"site {fleet.name}: not even the fewest nodes that serve it fit with their smallest caps and the "
            "unknown_reserve; raise peak_w or lower unknown_reserve"
        )
    return found


def _limit_w(row: np.void) -> float:
    peak_w, mean_w = float(row["peak_w"]), float(row["mean_w"])
    return min(peak_w, (1 - BANK_FRAC) * mean_w) if mean_w else peak_w


def _below(fleet: Fleet, nodes: Sequence[Node]) -> Counter[str]:
    """Nodes below every domain."""
    return Counter(fleet.domains[d].name for n in nodes for d in fleet.path(fleet.domain_index[n.domain]))


def _check_stages(fleet: Fleet, nodes: Sequence[Node]) -> None:
    """Refuse fewer nodes than a service's stages must keep, where the site's own has them."""
    have = Counter((n.service, n.stage) for n in nodes)
    own = Counter((n.service, n.stage) for n in fleet.nodes)
    for service in fleet.services:
        for stage, least in (("prefill", service.min_prefill_nodes), ("decode", service.min_decode_nodes)):
            count = have[service.name, stage]
            if own[service.name, stage] >= least > count:
                raise SiteError(f"service {service.name!r}: {count} {stage} nodes, at least {least} are needed")
