"""Operators' orders: held, refused, recorded, ended; and breaches and prices in words."""

import numpy as np
import pytest

from flyball.serving.explain import explain
from flyball.serving.store import Store


def order(site, **message):
    return site.call("POST", "/v1/overrides", site.OPERATOR, json={"reason": "test", **message})


def test_a_pin_holds_a_cap_until_it_is_released(make_site):
    """A pinned node gets exactly its pin, says why, and is free again after the release."""
    site = make_site()
    site.run(15)
    assert order(site, node="rack0-node1", kind="pin", cap_w=2400).status_code == 201
    site.run(10)
    assert site.agents.caps_w()["rack0-node1"] == 2400
    node = site.call("GET", "/v1/nodes/rack0-node1", site.VIEWER).json()
    assert node["reason"] == "ORDERED" and "pinned" in node["why"] and not node["cordoned"]
    assert order(site, node="rack0-node1", kind="release").status_code == 200
    site.run(15)
    assert site.agents.caps_w()["rack0-node1"] > 2400
    assert site.call("GET", "/v1/overrides", site.VIEWER).json() == []


def test_an_order_that_would_break_a_limit_is_refused_by_name(make_site):
    """Pins fit a rack one by one until it is full; the refusal names the domain, and nothing changes."""
    site = make_site()
    site.run(10)
    for k in range(4):
        answer = order(site, node=f"rack0-node{k}", kind="pin", cap_w=5600)
        if answer.status_code != 201:
            break
    assert answer.status_code in (400, 422)
    assert "rack0 cannot carry it" in answer.text and "W" in answer.text
    assert f"rack0-node{k}" not in site.engine.orders
    assert order(site, node="rack1-node0", kind="pin", cap_w=99_999).status_code == answer.status_code
    site.run(10)
    assert (site.engine.view.domain_possible_w <= site.engine.view.in_force_w).all()


def test_pins_give_way_to_a_cut(make_site):
    """A cut that pins no longer fit lowers them too: limits come first."""
    site = make_site()
    site.run(10)
    assert order(site, node="rack0-node0", kind="pin", cap_w=5000).status_code == 201
    site.run(10)
    assert site.agents.caps_w()["rack0-node0"] == 5000
    target = {"id": "cut", "domain": "rack0", "limit_w": 15_500}
    assert site.call("POST", "/v1/load-targets", site.OPERATOR, json=target).status_code == 201
    site.run(12)
    assert site.agents.caps_w()["rack0-node0"] < 5000
    assert (site.engine.view.domain_possible_w <= site.engine.view.in_force_w).all()


def test_a_frozen_node_keeps_cap_and_stage(make_site):
    """A freeze holds what is in force."""
    site = make_site()
    site.run(15)
    cap_w = site.agents.caps_w()["rack1-node2"]
    answer = order(site, node="rack1-node2", kind="freeze")
    assert answer.status_code == 201 and answer.json()["order"]["cap_w"] == cap_w
    site.agents.demand_w = 2000.0
    site.run(15)
    assert site.agents.caps_w()["rack1-node2"] == cap_w


def test_an_excluded_node_counts_at_its_maximum_and_gets_no_lease(make_site):
    """Somebody else may run it at will: the others make room."""
    site = make_site()
    site.run(15)
    answer = order(site, node="rack0-node3", kind="exclude")
    assert answer.status_code == 201, answer.text
    answers = site.beat()
    site.run(8)
    assert site.beat()["rack0-node3"].get("lease") is None
    assert answers["rack0-node0"].get("lease")
    assert site.engine.view.node_possible_w[3] == 5600 + 1500
    assert (site.engine.view.domain_possible_w <= site.engine.view.in_force_w).all()


def test_orders_end_by_themselves_and_survive_a_restart(make_site):
    """Author, reason and end are durable; past its end an order is released, and the audit says so."""
    first = make_site()
    first.run(5)
    assert order(first, node="rack0-node1", kind="pin", cap_w=2400, for_s=60).status_code == 201
    first.run(3)
    second = make_site(clock=first.clock)
    standing = second.engine.orders["rack0-node1"]
    assert (standing.kind, standing.cap_w, standing.author, standing.reason) == ("pin", 2400, "op", "test")
    second.run(10)
    assert "rack0-node1" in second.engine.orders
    second.clock.advance(60.0)
    second.run(3)
    assert second.engine.orders == {}
    assert Store(second.url, create=False).overrides() == {}
    assert any("released by its expiry" in note.text for note in second.engine.notes)


@pytest.mark.parametrize(
    "message",
    [
        {"node": "rack0-node0", "kind": "pin"},
        {"node": "rack0-node0", "kind": "freeze", "cap_w": 3000},
        {"node": "rack0-node0", "kind": "pin", "cap_w": 3000, "until_s": 1.0},
        {"node": "rack0-node0", "kind": "pin", "cap_w": 3000, "until_s": 1e11, "for_s": 5},
        {"node": "nobody", "kind": "freeze"},
        {"node": "rack0-node0", "kind": "release"},
        {"node": "rack0-node0", "kind": "explode"},
        {"node": "rack0-node0", "kind": "freeze", "reason": ""},
    ],
)
def test_orders_that_make_no_sense_are_refused(make_site, message):
    """Each with a line, none with a change."""
    site = make_site()
    site.run(3)
    assert 400 <= order(site, **message).status_code < 500
    assert site.engine.orders == {}


def test_only_operators_order(make_site):
    """A viewer may look, and no more."""
    site = make_site()
    site.run(2)
    body = {"node": "rack0-node0", "kind": "freeze", "reason": "x"}
    assert site.call("POST", "/v1/overrides", site.VIEWER, json=body).status_code == 403
    assert site.call("POST", "/v1/cordon-breaker:reset", site.VIEWER).status_code == 403
    assert site.call("GET", "/v1/overrides", site.VIEWER).status_code == 200


def test_an_ordered_drain_passes_while_the_cordon_breaker_is_open(make_site):
    """Faults trip the breaker; an operator's drain still goes through, and the operator can reset it."""
    site = make_site()
    site.run(10)
    state = site.engine._state.copy()
    state.fleet["is_tripped"] = 1
    site.engine._state = state
    assert order(site, node="rack0-node2", kind="drain").status_code == 201
    site.run(3)
    assert site.engine.view.plan.fleet["is_tripped"][0] == 1
    assert site.engine.view.drained[site.fleet.node_index["rack0-node2"]]
    assert site.call("POST", "/v1/cordon-breaker:reset", site.OPERATOR).status_code == 200
    site.run(2)
    assert site.engine.view.plan.fleet["is_tripped"][0] == 0


def test_the_explanation_says_what_one_more_watt_was_worth(make_site):
    """Where a limit binds, the sentence names the node that is next and its price: 1 under neutral bids."""
    site = make_site()
    site.run(15)
    rows = site.engine.view.plan.node[0]
    i = int(np.flatnonzero(rows["bound_domain"] >= 0)[0])
    sentence = explain(site.store, site.fleet.nodes[i].name, site.clock.now_s()).sentence
    assert "one more watt there would have gone to rack" in sentence and "worth 1.00 W of demand" in sentence
    fed = site.call("GET", "/v1/fleet", site.VIEWER).json()["domains"]
    assert max(d["watt_price"] for d in fed) == pytest.approx(1.0)


def test_a_breach_is_told_of(make_site):
    """A meter above a limit shows in the picture, the metrics and the notes."""
    site = make_site()
    site.run(10)
    over_w = 1.05 * site.engine.view.in_force_w[0]
    site.call("POST", "/v1/domains/feed/telemetry", site.PROXY, json={"meter_w": over_w, "sent_at": site.clock.now_s()})
    site.run(2)
    feed = site.call("GET", "/v1/fleet", site.VIEWER).json()["domains"][0]
    assert feed["breach"] == "active" and feed["excursion_w"] > 0
    assert 'flyball_domain_breach{domain="feed"} 1.0' in site.call("GET", "/metrics", site.VIEWER).text
    assert any("breach active (warning" in note.text for note in site.engine.notes)


def test_shadow_mode_does_not_blame_the_plan_for_what_the_incumbent_draws(make_site):
    """Nobody applied the plan: a meter above the limit takes nothing back from it."""
    site = make_site(mode="shadow")
    site.run(10)
    over_w = 1.3 * site.engine.view.in_force_w[0]
    for _ in range(5):
        body = {"meter_w": over_w, "sent_at": site.clock.now_s()}
        site.call("POST", "/v1/domains/feed/telemetry", site.PROXY, json=body)
        site.run(3)
    assert site.engine.view.is_metered[0]
    assert (site.engine.view.plan.domain["excursion_w"] == 0).all()
