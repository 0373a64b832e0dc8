"""The static site: what `Fleet.build` sorts, refuses and tabulates."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball.fleet.errors import SiteError
from flyball.fleet.skus import SKUS
from flyball.fleet.topology import Fleet, Node, PowerDomain, Service

CHAT = Service("chat", "llama-70b-bf16")


def a_node(name: str, domain: str, stage: str = "prefill") -> Node:
    return Node(name, domain, "H100-SXM", 8, 2800, "chat", stage, domain)


def build(domains, nodes=None, services=(CHAT,), **settings) -> Fleet:
    if nodes is None:
        nodes = [a_node("a", domains[-1].name), a_node("b", domains[-1].name, "decode")]
    return Fleet.build("test", domains, nodes, services, **settings)


ROOT = PowerDomain("root", 100_000)


def test_a_domain_without_its_parent_is_refused():
    """An orphan is named, and so is the parent it lacks."""
    with pytest.raises(SiteError, match="'rack': no parent domain 'row'"):
        build([ROOT, PowerDomain("rack", 50_000, "row")])


def test_a_cycle_in_the_power_tree_is_refused():
    """A cycle is written out, so that one sees where to cut it."""
    with pytest.raises(SiteError, match="cycle: a -> b -> a"):
        build([ROOT, PowerDomain("a", 50_000, "b"), PowerDomain("b", 50_000, "a")])


@pytest.mark.parametrize("roots", [0, 2])
def test_the_power_tree_has_exactly_one_root(roots):
    """No root (the only domain feeds itself) and two roots are refused."""
    domains = [PowerDomain("x", 50_000, "x")] if roots == 0 else [ROOT, PowerDomain("other", 50_000)]
    with pytest.raises(SiteError, match=r"root|cycle"):
        build(domains)


@pytest.mark.parametrize("kind", ["domain", "node", "service"])
def test_duplicate_names_are_refused(kind):
    """Names identify entries: two alike would make one of them unreachable."""
    domains, nodes, services = (
        [ROOT],
        [a_node("a", "root"), a_node("b", "root", "decode")],
        [Service("chat", "m")],
    )
    {"domain": domains, "node": nodes, "service": services}[kind].append(
        {"domain": PowerDomain("root", 1, "root"), "node": nodes[0], "service": services[0]}[kind]
    )
    with pytest.raises(SiteError, match=f"two entries of kind {kind}"):
        build(domains, nodes, services)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domain": "nowhere"}, "no power domain 'nowhere'"),
        ({"sku": "H900"}, "unknown sku 'H900'"),
        ({"service": "other"}, "no service 'other'"),
        ({"stage": "both"}, "use prefill or decode"),
        ({"gpus": 0}, "gpus must be at least 1"),
        ({"non_gpu_max_w": -1}, "non_gpu_max_w at least 0"),
    ],
)
def test_a_node_that_does_not_make_sense_is_refused_by_name(changes, message):
    """Each bad reference or number names the node and the value."""
    with pytest.raises(SiteError, match=f"node 'a': .*{message}"):
        build([ROOT], [replace(a_node("a", "root"), **changes), a_node("b", "root", "decode")])


def test_a_limit_below_what_the_nodes_draw_parked_is_refused():
    """A limit that no command can meet is an error of the site, and the message gives the floor."""
    floor_w = 2 * (2800 + 8 * SKUS["H100-SXM"].parked_max_w)
    build([replace(ROOT, peak_w=floor_w)])
    with pytest.raises(SiteError, match=f"below the {floor_w} W"):
        build([replace(ROOT, peak_w=floor_w - 1)])


def test_a_mean_limit_lies_between_the_floor_and_the_peak():
    """A window's mean cannot exceed the instantaneous limit nor undercut the floor."""
    for mean_w in (1000, 100_001):
        with pytest.raises(SiteError, match="mean_w must lie between"):
            build([replace(ROOT, mean_w=mean_w)])


def test_a_site_needs_nodes_and_a_service():
    """An empty site is refused."""
    with pytest.raises(SiteError, match="no nodes"):
        build([ROOT], [])
    with pytest.raises(SiteError, match="no service"):
        build([ROOT], [a_node("a", "root")], [])


@given(st.data())
def test_every_domain_owns_one_range_of_nodes(data):
    """Whatever the tree and the order of the file, a domain's descendants are node_start .. node_end - 1."""
    count = data.draw(st.integers(1, 7))
    parents = [None] + [f"d{data.draw(st.integers(0, i - 1))}" for i in range(1, count)]
    domains = [PowerDomain(f"d{i}", 10**6, p) for i, p in enumerate(parents)]
    homes = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=12))
    nodes = [a_node(f"n{k}", f"d{h}", "prefill" if k else "decode") for k, h in enumerate(homes)]
    fleet = build(data.draw(st.permutations(domains)), nodes)
    parent_of = {d.name: d.parent for d in domains}
    for i, d in enumerate(fleet.domains):
        row = fleet.domain_static[i]
        assert row["parent"] < i
        inside = set()
        for n in fleet.nodes:
            walk = n.domain
            while walk is not None:
                if walk == d.name:
                    inside.add(n.name)
                walk = parent_of[walk]
        assert {n.name for n in fleet.nodes[row["node_start"] : row["node_end"]]} == inside


def test_tables_hold_whole_watts_of_all_gpus_of_a_node():
    """Caps and floors of a node are those of its product times its GPUs."""
    row = build([ROOT]).node_static[0]
    assert (row["cap_min_w"], row["cap_max_w"], row["decode_floor_w"]) == (1600, 5600, 2400)
    assert row["parked_max_w"] == 8 * 83 and row["cap_max_w"].dtype == np.int64


def test_the_hash_follows_the_content_and_not_the_source():
    """Two files that say the same have the same hash; a watt more gives another."""
    fleet = build([ROOT])
    assert fleet.hash == build([ROOT], source="elsewhere.toml").hash
    assert fleet.hash != build([replace(ROOT, peak_w=100_001)]).hash
