"""Site files: what is read, what is refused, and in which words."""

import copy
import subprocess
import sys
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball.fleet.errors import SiteError
from flyball.fleet.site_file import SITES, fleet_from_dict, list_sites, load_site
from flyball.fleet.tables import DECODE
from flyball.fleet.topology import Fleet

TWO_NODES = """
name = "two"
[[service]]
name = "chat"
model = "llama-70b-bf16"
[[domain]]
name = "feed"
breaker_w = 15001
[[nodes]]
prefix = "n"
count = 2
domain = "feed"
sku = "H100-SXM"
gpus = 8
non_gpu_max_w = 2800
service = "chat"
prefill = 1
"""


def changed(*steps) -> dict:
    """The site above with values set at key paths; `...` removes the key."""
    data = copy.deepcopy(tomllib.loads(TWO_NODES))
    for *place, last, value in steps:
        inside = data
        for part in place:
            inside = inside[part]
        if value is ...:
            del inside[last]
        else:
            inside[last] = value
    return data


@pytest.mark.parametrize("name", list_sites())
def test_every_packaged_site_is_valid_and_named_by_its_file(name):
    """Each site loads, starts with every stage of every service, and is oversubscribed."""
    fleet = load_site(name)
    assert fleet.name == name
    for s in fleet.services:
        stages = {"prefill", "decode"} if s.kind == "disaggregated" else {"decode"}
        assert {n.stage for n in fleet.nodes if n.service == s.name} == stages
    most_w = int((fleet.node_static["cap_max_w"] + fleet.node_static["non_gpu_max_w"]).sum())
    assert fleet.domains[0].peak_w < most_w
    assert all(d.unknown_reserve == 0 for d in fleet.domains[1:])


def test_demo_16_is_the_worked_example():
    """16 servers of 8 H100 at 1.5x nameplate: 500 W per GPU, 372 W after a 15 % cut (MODEL.md section 8)."""
    fleet = load_site("demo-16")
    non_gpu_w = int(fleet.node_static["non_gpu_max_w"].sum())
    gpus = int(fleet.node_static["gpus"].sum())
    peak_w = fleet.domains[0].peak_w
    assert (len(fleet.nodes), gpus, peak_w) == (16, 128, round(16 * 10_200 / 1.5))
    assert (peak_w - non_gpu_w) / gpus == 500
    assert (0.85 * peak_w - non_gpu_w) / gpus == pytest.approx(372.5)
    assert sum(n.stage == "prefill" for n in fleet.nodes) == 12
    assert fleet.domain_static["unknown_reserve"][0] == 1


def test_a_breaker_gives_four_fifths_of_its_rating():
    """Without peak_w, the limit is 80 % of the rating, rounded down to a whole watt."""
    assert fleet_from_dict(changed(), "x.toml").domains[0].peak_w == 12_000


def test_prefix_and_count_make_numbered_nodes():
    """`prefill` says how many of a group start as prefill; the failure domain defaults to the domain."""
    nodes = fleet_from_dict(changed(), "x.toml").nodes
    assert [(n.name, n.stage, n.failure_domain) for n in nodes] == [
        ("n0", "prefill", "feed"),
        ("n1", "decode", "feed"),
    ]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([("nodes", 0, "gpu", 8)], r"nodes\[0\].gpu: unknown key; did you mean gpus?"),
        ([("timing", {"contrl_s": 3.0})], "timing.contrl_s: unknown key; did you mean control_s?"),
        ([("racks", 3)], "racks: unknown key; known: name"),
        ([("nodes", 0, "sku", ...)], r"nodes\[0\].sku: missing"),
        ([("nodes", 0, "gpus", 0)], r"nodes\[0\].gpus: must be greater than or equal to 1, got 0"),
        ([("nodes", 0, "gpus", True)], r"nodes\[0\].gpus: must be a valid integer, got True"),
        ([("nodes", 0, "gpus", "8")], r"nodes\[0\].gpus: must be a valid integer, got '8'"),
        ([("domain", 0, "peak_w", 1.5)], r"domain\[0\].peak_w: must be a valid integer"),
        ([("domain", 0, "breaker_w", ...)], "give peak_w, or breaker_w"),
        ([("domain", 0, "peak_w", 15_002)], "above the breaker's rating"),
        ([("domain", 0, "breaker_kind", "row")], "use rack or main"),
        ([("deepest_cut_frac", float("nan"))], "deepest_cut_frac: must be a finite number"),
        ([("deepest_cut_frac", True)], "deepest_cut_frac: must be a valid number, got True"),
        ([("nodes", 0, "name", "x")], "either name .* or prefix"),
        ([("nodes", 0, "prefix", ...), ("nodes", 0, "name", "x")], "cannot share the name"),
        ([("nodes", 0, "stage", "decode")], "either stage or prefill"),
        ([("nodes", 0, "prefill", ...)], "either stage or prefill"),
        ([("nodes", 0, "prefill", 3)], "must not exceed count"),
        ([("nodes", 0, "prefill", 2)], "service 'chat': 0 nodes start as decode"),
        ([("nodes", 0, "count", 10**9)], "count: must be less than"),
        ([("timing", {"control_s": 2.5})], "not a whole number of ticks"),
        ([("domain", 0, "parent", "feed")], "cycle"),
        ([("domain", 0, "parent", "grid")], "no parent domain 'grid'"),
        ([("domain", 0, "peak_w", 5000)], "below the 6928 W that its nodes may draw"),
        ([("nodes", 3)], "nodes: must be a valid list"),
        ([("service", [])], "no service"),
        ([("service", 0, 3)], r"service\[0\]: must be a table"),
    ],
)
def test_a_bad_site_is_refused_in_one_line_that_names_file_and_key(steps, message):
    """Unknown keys, wrong types, impossible numbers, broken trees: one line each that says what to change."""
    with pytest.raises(SiteError, match=f"^x.toml: .*{message}") as caught:
        fleet_from_dict(changed(*steps), "x.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe\x00", b"a" * 3 + b"\x00", b"= 3\nname", b"[" * 50_000])
def test_a_file_that_is_not_toml_is_refused(tmp_path, content):
    """Broken TOML and binary junk give one line with the file's name."""
    path = tmp_path / "site.toml"
    path.write_bytes(content)
    with pytest.raises(SiteError, match=r"site\.toml") as caught:
        load_site(path)
    assert "\n" not in str(caught.value)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    """Editors that write one are not punished."""
    path = tmp_path / "site.toml"
    path.write_bytes(b"\xef\xbb\xbf" + TWO_NODES.encode())
    assert load_site(path).source == str(path)


def test_a_missing_file_and_an_unknown_name_are_refused(tmp_path):
    """Names come with near matches, paths with the names that exist."""
    with pytest.raises(SiteError, match="no such file"):
        load_site(tmp_path / "none.toml")
    with pytest.raises(SiteError, match="no site 'demo16'; did you mean demo-16"):
        load_site("demo16")
    assert (SITES / "demo-16.toml").is_file()


def test_importing_the_nouns_does_not_load_pydantic():
    """An agent imports `flyball.fleet`; pydantic is loaded with the first file."""
    code = "import sys, flyball.fleet.site_file; print('pydantic' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


KEYS = [
    "name",
    "service",
    "domain",
    "nodes",
    "timing",
    "prefix",
    "count",
    "gpus",
    "peak_w",
    "parent",
    "prefill",
    "x",
]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.lists(st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["", "service", "domain", "nodes"]), st.sampled_from(KEYS), VALUES)
def test_any_change_of_a_value_gives_a_fleet_or_one_line(table, key, value):
    """Whatever stands in a key, the answer is a valid fleet or a SiteError of one line."""
    data = changed((table, 0, key, value) if table else (key, value))
    try:
        assert isinstance(fleet_from_dict(data, "x.toml"), Fleet)
    except SiteError as e:
        assert str(e).startswith("x.toml: ") and "\n" not in str(e)


def test_one_stage_services_start_as_decode(tmp_path):
    """An aggregated service needs no prefill nodes and refuses them; an unknown kind is named."""
    path, text = tmp_path / "site.toml", (SITES / "small-8.toml").read_text()
    path.write_text(text.replace('name = "chat"', 'name = "chat"\nkind = "mixed"'))
    with pytest.raises(SiteError, match="disaggregated, aggregated, training"):
        load_site(str(path))
    path.write_text(text.replace('name = "chat"', 'name = "chat"\nkind = "aggregated"'))
    with pytest.raises(SiteError, match="prefill = 0"):
        load_site(str(path))
    path.write_text(path.read_text().replace("prefill = 1", "prefill = 0"))
    assert set(load_site(str(path)).node_static["stage"]) == {DECODE}


def test_only_services_that_never_split_may_be_shed_to_the_last_node():
    """`min_decode_nodes = 0` is taken for aggregated and training services, and refused with the fix elsewhere."""
    least = ("service", 0, "min_decode_nodes", 0)
    with pytest.raises(SiteError, match="min_decode_nodes: 0; a disaggregated service keeps at least 1"):
        fleet_from_dict(changed(least), "two.toml")
    for kind in ("aggregated", "training"):
        fleet = fleet_from_dict(changed(least, ("service", 0, "kind", kind), ("nodes", 0, "prefill", 0)), "two.toml")
        assert fleet.services[0].min_decode_nodes == 0


def test_loosening_by_meters_is_asked_for_and_changes_no_other_sites_hash():
    """A site that does not say `meters_loosen` is the site that it was; one that does is another."""
    plain = fleet_from_dict(changed(), "test")
    loosened = fleet_from_dict(changed(("meters_loosen", True)), "test")
    assert not plain.meters_loosen and loosened.static["meters_loosen"][0] == 1
    assert fleet_from_dict(changed(("meters_loosen", False)), "test").hash == plain.hash != loosened.hash
