"""Generated sites of any size: benchmarks and tests of scale need fleets that no site file describes."""

from dataclasses import replace

from ...envs.scenario import Scenario
from ...fleet.skus import SKUS
from ...fleet.topology import Fleet, Node, PowerDomain, Service

SKU, GPUS, NON_GPU_MAX_W = "H100-SXM", 8, 2800
"""Servers of `envs/sites/demo-16.toml`."""

PREFILL_OF_16 = 12
"""Of every 16 servers, as prefill: that site's split."""

LEVELS = (("site", 1.5, 0), ("hall", 1.46, 512), ("row", 1.4, 64), ("rack", 1.3, 8), ("shelf", 1.2, 4))
"""Names of the levels of `five_levels`, how much less than nameplate each may take, and its nodes (0: all)."""


def _node(i: int, domain: str, failure_domain: str) -> Node:
    # spread like demo-16's: losing one rack takes a part of either stage
    stage = "prefill" if (i * PREFILL_OF_16) % 16 < PREFILL_OF_16 else "decode"
    return Node(f"node{i:05d}", domain, SKU, GPUS, NON_GPU_MAX_W, "chat", stage, failure_domain)


def _services() -> list[Service]:
    return [Service("chat", "llama-70b-bf16")]


def five_levels(nodes: int) -> Fleet:
    """A fleet below five levels of limits: site, hall, row, rack, shelf.

    Four nodes to a shelf, eight to a rack, 64 to a row, 512 to a hall, the last ones ragged. Every second rack may take
    4 % less, so that different limits bind in different places.

    Args:
        nodes: At least 1.
    """
    nameplate_w = SKUS[SKU].nameplate_node_w
    domains, parents = [], [("", 0, nodes)]
    for depth, (level, oversubscription, size) in enumerate(LEVELS):
        made: list[tuple[str, int, int]] = []
        for parent, start, end in parents:
            for at in range(start, end, size or nodes):
                stop = min(at + (size or nodes), end)
                name = f"{level}{len(made):04d}"
                tighter = 0.96 if level == "rack" and len(made) % 2 else 1.0
                peak_w = int((stop - at) * nameplate_w / oversubscription * tighter)
                reserve = 1 if depth == 0 and nodes >= 16 else 0
                domains.append(PowerDomain(name, peak_w, parent or None, unknown_reserve=reserve))
                made.append((name, at, stop))
        parents = made
    leaves = [_node(i, name, name) for name, start, end in parents for i in range(start, end)]
    return Fleet.build(f"five-levels-{nodes}", domains, leaves, _services())


def rows_of_racks(nodes: int) -> Fleet:
    """The tree of `envs/sites/demo-16.toml`, larger: utility, rows of two racks, racks of four nodes.

    Args:
        nodes: A multiple of 8, at least 16.
    """
    nameplate_w = SKUS[SKU].nameplate_node_w
    domains = [PowerDomain("utility", int(nodes * nameplate_w / 1.5), unknown_reserve=1)]
    leaves = []
    for row in range(nodes // 8):
        domains.append(PowerDomain(f"row-{row}", int(8 * nameplate_w / 1.4), "utility"))
        for rack in (2 * row, 2 * row + 1):
            name = f"rack-{rack}"
            domains.append(PowerDomain(name, int(4 * nameplate_w / 1.3), f"row-{row}"))
            leaves += [_node(i, name, name) for i in range(4 * rack, 4 * rack + 4)]
    return Fleet.build(f"rows-of-racks-{nodes}", domains, leaves, _services())


def scenario_on(fleet: Fleet, scenario: Scenario) -> Scenario:
    """A scenario on another fleet than its site file's, with everything else as it is."""
    moved = replace(scenario, site=fleet.name)
    # `Scenario.fleet` is a cached property that would read a site file: here is its value
    moved.__dict__["fleet"] = fleet
    return moved
