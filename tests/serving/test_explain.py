"""Explanations: one sentence for any node at any time of a run."""

import pytest

from flyball.fleet.errors import BadInput
from flyball.serving.explain import clock_text, explain, parse_time


def test_the_sentence_names_cap_wish_limit_reason_and_time(site):
    """The binding limit stands there by name and number."""
    site.run(15)
    found = explain(site.store, "rack0-node0", site.clock.now_s())
    since = clock_text(found.since_s, site.clock.now_s())
    assert found.sentence == (
        f"node rack0-node0 is capped at {found.cap_w:,} W (bid asked 5,200 W) because feed is at its limit "
        f"of 50,000 W since {since}; one more watt there would have gone to rack0-node0, worth 1.00 W of demand as the "
        "bids weigh it"
    )
    assert found.cap_w == site.engine.view.plan.node["cap_w"][0, 0] and found.domain == "feed"


def test_an_event_and_its_end_are_in_the_sentence(site):
    """While a budget event rules, the sentence says until when."""
    site.run(10)
    until_s = site.clock.now_s() + 600
    site.call(
        "POST",
        "/v1/load-targets",
        site.OPERATOR,
        json={"id": "c", "domain": "rack0", "limit_w": 20_000, "until_s": until_s},
    )
    site.run(15)
    sentence = explain(site.store, "rack0-node0", site.clock.now_s()).sentence
    assert f"because rack0 is at its limit of 20,000 W until {clock_text(until_s, site.clock.now_s())}" in sentence


def test_a_cut_is_explained_before_it_is_in_force(site):
    """Within the grace and shortly before an announced start, the sentence names both limits."""
    site.run(15)
    site.call("POST", "/v1/load-targets", site.OPERATOR, json={"id": "a", "domain": "feed", "limit_w": 42_000})
    site.run(2)
    sentence = explain(site.store, "rack0-node0", site.clock.now_s()).sentence
    assert "feed is at its limit of 42,000 W (50,000 W stay in force within the grace)" in sentence
    site.run(10)
    ahead = {"id": "b", "domain": "feed", "limit_w": 38_000, "notice_s": 6}
    site.call("POST", "/v1/load-targets", site.OPERATOR, json=ahead)
    site.run(4)
    sentence = explain(site.store, "rack0-node0", site.clock.now_s()).sentence
    assert "feed is at its limit of 38,000 W that starts at" in sentence and "(42,000 W until then)" in sentence


def test_every_node_is_explained_at_every_second_of_a_run(make_site):
    """Through a start, a cut, a drain, a silence and a restart there is always one line with a limit."""
    site = make_site()
    start_s = site.clock.now_s()
    site.run(70)
    site.call("POST", "/v1/load-targets", site.OPERATOR, json={"id": "c", "domain": "feed", "limit_frac": 0.8})
    site.agents.xid = {"rack0-node1": [48]}
    site.agents.mute = {"rack1-node0"}
    site.run(20)
    expected = {site.clock.now_s() - 1.0: site.engine.view.plan.node["cap_w"][0].tolist()}
    site.clock.advance(60.0)
    again = make_site(clock=site.clock)
    again.agents.held, again.agents.stage = site.agents.held, site.agents.stage
    again.run(10)
    for second in range(0, int(site.clock.now_s() - start_s), 7):
        for node in site.fleet.nodes:
            found = explain(again.store, node.name, start_s + second)
            assert found.sentence.startswith(f"node {node.name} ") and "\n" not in found.sentence
            assert f"{found.limit_w:,} W" in found.sentence
    for at_s, caps_w in expected.items():
        assert [explain(again.store, n.name, at_s).cap_w for n in site.fleet.nodes] == caps_w


def test_a_time_without_a_service_is_explained_by_the_fallback(make_site):
    """Between two epochs a node held the smaller of cap and fallback, and the sentence says so."""
    site = make_site()
    site.run(15)
    found = explain(site.store, "rack0-node0", site.clock.now_s() + 100.0)
    assert found.reason == "SERVICE_DOWN" and "without a service" in found.sentence
    assert f"fallback, {found.fallback_w:,} W" in found.sentence


def test_unknown_nodes_and_times_are_bad_input(site):
    """The message says what there is."""
    site.run(1)
    with pytest.raises(BadInput, match="rack0-node0"):
        explain(site.store, "nope", site.clock.now_s())
    with pytest.raises(BadInput, match="not running"):
        explain(site.store, "rack0-node0", 5.0)
    assert site.call("GET", "/v1/explain/nope", site.VIEWER).status_code == 404
    assert site.call("GET", "/v1/explain/rack0-node0?at=soon", site.VIEWER).status_code == 422


def test_times_are_read_as_people_write_them():
    """Unix seconds, ISO, time of day and spans before now."""
    now_s = 1_700_000_000.0
    assert parse_time("1700000000", now_s) == now_s
    assert parse_time("-5m", now_s) == now_s - 300
    assert parse_time("1970-01-02T00:00:00+00:00", now_s) == 86400.0
    assert parse_time(clock_text(now_s, now_s), now_s) == now_s
    for text in ("", "soon", "25:99", "-5 parsecs", "99999999999999999999-01-01"):
        with pytest.raises(BadInput):
            parse_time(text, now_s)
