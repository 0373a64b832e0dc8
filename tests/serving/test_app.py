"""The HTTP face: exchanges, refusals, roles, orders, decisions."""

import json
import math

import msgpack
import numpy as np
import pytest

from flyball.fleet.arbiter import ArbiterState, initial_state, settle
from flyball.fleet.bids import Bids
from flyball.fleet.snapshot import Snapshot
from flyball.policies.base import Policy
from flyball.serving.wire import to_base64

NODE0 = "/v1/nodes/rack0-node0/telemetry"


def test_an_agent_gets_its_lease_in_exchange_for_telemetry(site):
    """The answer holds the lease of the last plan, in the fields that agents read."""
    site.run(3)
    answer = site.call("POST", NODE0, site.AGENT0, json=site.agents.body("rack0-node0")).json()
    assert set(answer["lease"]) == {"epoch", "seq", "ttl_s", "cap_w", "fallback_w"}
    assert answer["lease"]["cap_w"] == site.engine.view.plan.node["cap_w"][0, 0]
    assert {"stage", "clock_frac", "cordoned", "drained", "server_time_s"} <= set(answer)
    assert answer["mode"] == "enforce"


def test_before_the_first_plan_agents_are_told_to_retry_and_their_telemetry_is_kept(site):
    """503 with a Retry-After; the report is in the first snapshot all the same."""
    answer = site.call("POST", NODE0, site.AGENT0, json=site.agents.body("rack0-node0"))
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert site.engine.tick().heard.node["power_w"][0, 0] == 5200.0


def test_leases_are_withheld_when_the_engine_has_stopped_ticking(site):
    """A plan older than the grace of an un-noticed cut is no basis for a lease."""
    site.run(2)
    site.clock.advance(site.fleet.timing.grace_s + 1.0)
    answer = site.call("POST", NODE0, site.AGENT0, json=site.agents.body("rack0-node0"))
    assert answer.status_code == 503 and "plan" in answer.json()["error"]
    assert site.call("GET", "/readyz").status_code == 503


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({}, NODE0, 401),
        ({"Authorization": "Bearer wrong-secret-00000000"}, NODE0, 401),
        ({"Authorization": "Basic operator-secret-0001"}, NODE0, 401),
        ("AGENT0", "/v1/nodes/rack0-node1/telemetry", 403),
        ("OPERATOR", NODE0, 403),
        ("AGENT0", "/v1/domains/feed/telemetry", 403),
        ("PROXY", "/v1/nodes/rack9-node9/telemetry", 404),
        ("PROXY", "/v1/domains/nowhere/telemetry", 404),
        ("PROXY", "/v1/services/nobody/telemetry", 404),
    ],
)
def test_a_wrong_sender_or_address_is_refused_in_one_line(site, headers, path, status):
    """Unknown tokens, foreign nodes and names that the site lacks get their own status."""
    headers = getattr(site, headers) if isinstance(headers, str) else headers
    body = site.agents.body("rack0-node0") | {"meter_w": 1.0}
    answer = site.call("POST", path, headers, json=body)
    assert answer.status_code == status
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "change",
    [
        {"power_w": math.inf},
        {"power_w": -1.0},
        {"power_w": 1e12},
        {"power_w": True},
        {"power_w": "lots"},
        {"temp_c": 5000},
        {"cap_w": 10**9},
        {"cap_w": 0.5},
        {"stage": 7},
        {"sent_at": math.nan},
        {"boot_id": ""},
        {"boot_id": "x" * 1000},
        {"ack_seq": -5},
        {"xid": [1] * 1000},
        {"node": "rack0-node1"},
    ],
)
def test_an_absurd_report_is_refused_and_the_last_good_one_stays(site, change):
    """422 with one line; the row of the node does not change."""
    site.run(2)
    before = site.engine.telemetry.acknowledged()[0][0]
    body = json.dumps(site.agents.body("rack0-node0") | change)
    answer = site.call("POST", NODE0, site.AGENT0, content=body)
    assert answer.status_code == 422 and "\n" not in answer.json()["error"]
    assert site.engine.telemetry.acknowledged()[0][0].tobytes() == before.tobytes()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 10_000])
def test_a_body_that_is_no_report_is_refused(site, body):
    """Bytes that are no JSON object are the sender's fault, not the service's."""
    assert site.call("POST", NODE0, site.AGENT0, content=body).status_code == 422


def test_nan_and_null_mean_missing(site):
    """A value that could not be read is missing in the snapshot, and the others count."""
    body = site.agents.body("rack0-node0") | {
        "power_w": math.nan,
        "temp_c": None,
        "cap_w": None,
        "stage": None,
    }
    site.call("POST", NODE0, site.AGENT0, content=json.dumps(body))
    row = site.engine.tick().heard.node[0, 0]
    assert np.isnan(row["power_w"]) and np.isnan(row["temp_c"])
    assert row["cap_w"] == -1 and row["demand_w"] == 5200.0
    assert row["stage"] == site.fleet.node_static["stage"][0]


def test_an_oversized_body_is_refused_before_it_is_read(site):
    """413 for a report beyond any node's size."""
    answer = site.call("POST", NODE0, site.AGENT0, content=b" " * 300_000)
    assert answer.status_code == 413 and "split" in answer.json()["error"]


def test_a_bad_report_in_a_batch_loses_no_other(site):
    """Each entry of a batch is judged on its own and answered by name."""
    site.run(1)
    bad = site.agents.body("rack0-node1") | {"power_w": -5}
    entries = [site.agents.body("rack0-node0"), bad, {"node": "rack9-node9"}, site.agents.body("rack1-node0")]
    answers = site.call("POST", "/v1/telemetry", site.PROXY, json={"nodes": entries}).json()["nodes"]
    assert answers["rack0-node0"]["lease"] and answers["rack1-node0"]["lease"]
    assert answers["rack0-node1"]["status"] == 422 and answers["rack9-node9"]["status"] in (404, 422)


def test_meters_and_services_are_heard(site):
    """A meter and a model server reach the snapshot; an overtaken reading does not."""
    service = {"sent_at": 5.0, "arrival_rps": 12.5, "ttft_s": None}
    assert site.call("POST", "/v1/domains/feed/telemetry", site.PROXY, json={"meter_w": 4.2e4, "sent_at": 5.0}).json()
    late = site.call("POST", "/v1/domains/feed/telemetry", site.PROXY, json={"meter_w": 1.0, "sent_at": 4.0})
    assert late.json() == {"taken": False}
    site.call("POST", "/v1/services/chat/telemetry", site.PROXY, json=service)
    heard = site.engine.tick().heard
    assert heard.domain["meter_w"][0, 0] == 4.2e4
    assert heard.service["arrival_rps"][0, 0] == 12.5 and np.isnan(heard.service["ttft_s"][0, 0])


def test_roles_bound_what_a_token_may_do(site):
    """Viewers look, operators order, agents do neither."""
    site.run(1)
    assert site.call("GET", "/v1/fleet", site.VIEWER).status_code == 200
    assert site.call("GET", "/v1/fleet", site.AGENT0).status_code == 403
    assert site.call("GET", "/v1/fleet").status_code == 401
    assert site.call("GET", "/metrics").status_code == 401
    assert site.call("POST", "/v1/nodes/rack0-node0:drain", site.VIEWER).status_code == 403
    assert site.call("POST", "/v1/load-targets", site.VIEWER, json={}).status_code == 403


def test_everything_a_viewer_can_ask_answers(site):
    """Fleet, node, plan, interventions, metrics, probes and the page."""
    site.run(4)
    fleet = site.call("GET", "/v1/fleet", site.VIEWER).json()
    assert len(fleet["nodes"]["name"]) == 8 and fleet["domains"][0]["name"] == "feed"
    node = site.call("GET", "/v1/nodes/rack1-node2", site.VIEWER).json()
    assert node["boot_id"] == "boot-1" and len(node["gpu_uuids"]) == 8 and node["why"].startswith("node rack1-node2")
    plan = site.call("GET", "/v1/plans/latest", site.VIEWER).json()
    again = site.call("GET", f"/v1/plans/{plan['id']}", site.VIEWER).json()
    assert plan == again
    assert plan["nodes"]["rack0-node0"]["cap_w"] == site.engine.view.plan.node["cap_w"][0, 0]
    assert site.call("GET", "/v1/plans/77-1", site.VIEWER).status_code == 404
    assert site.call("GET", "/v1/plans/x", site.VIEWER).status_code == 422
    seen = site.call("GET", "/v1/interventions", site.VIEWER).json()
    assert seen["now"] and seen["notes"]
    stored = site.call("GET", "/v1/interventions?since=-1h", site.VIEWER).json()
    assert stored["notes"] == seen["notes"]
    metrics = site.call("GET", "/metrics", site.VIEWER).text
    assert 'flyball_domain_in_force_watts{domain="feed"} 50000.0' in metrics and "flyball_ticks_total 4.0" in metrics
    assert site.call("GET", "/healthz").status_code == 200 and site.call("GET", "/readyz").status_code == 200
    page = site.call("GET", "/")
    assert "Flyball" in page.text and "http://" not in page.text.replace("http://www.w3.org", "")


def test_a_drained_node_gives_its_watts_away_and_comes_back(site):
    """An operator's drain reaches the plan, its watts go to others, and an uncordon undoes it."""
    site.run(12)
    before = site.agents.caps_w()["rack0-node1"]
    order = site.call("POST", "/v1/nodes/rack1-node0:drain", site.OPERATOR, json={"reason": "fan"}).json()
    assert order["order"]["reason"] == "fan"
    site.run(15)
    assert site.beat()["rack1-node0"]["drained"]
    assert site.agents.caps_w()["rack0-node1"] > before
    site.call("POST", "/v1/nodes/rack1-node0:uncordon", site.OPERATOR)
    site.run(5)
    assert not site.beat()["rack1-node0"]["drained"]
    assert site.call("POST", "/v1/nodes/rack1-node0:explode", site.OPERATOR).status_code == 404


def test_a_fatal_xid_ends_in_a_drain_and_throttling_in_nothing(site):
    """XID 79 takes the node out; an application error and a power throttle do not; releasing it forgives."""
    site.run(5)
    site.agents.xid = {"rack0-node1": [79], "rack0-node3": [31]}
    site.run(2)
    site.agents.xid = {}
    site.run(2)
    answers = site.beat()
    assert answers["rack0-node1"]["drained"] and answers["rack0-node1"]["cordoned"]
    assert not answers["rack0-node3"]["cordoned"]
    event = {"nodeName": "rack1-node1", "isFatal": True, "errorCode": ["DCGM_FR_CLOCK_THROTTLE_POWER"]}
    assert site.call("POST", "/v1/health-events", site.OPERATOR, json=event).json()["action"] == "none"
    healthy = {"nodeName": "rack0-node1", "isHealthy": True, "agent": "nvsentinel"}
    assert site.call("POST", "/v1/health-events", site.OPERATOR, json=healthy).json()["action"] == "restore"
    site.run(3)
    assert not site.beat()["rack0-node1"]["drained"]


def test_a_fatal_health_event_is_kept_and_drains_its_node(site):
    """Other agents' events act like an operator's order, unless they opt out."""
    site.run(3)
    event = {
        "nodeName": "rack1-node1",
        "isFatal": True,
        "errorCode": ["48"],
        "recommendedAction": "COMPONENT_RESET",
    }
    skipped = event | {"quarantineOverrides": {"skip": True}}
    assert site.call("POST", "/v1/health-events", site.OPERATOR, json=skipped).json()["action"] == "none"
    assert site.call("POST", "/v1/health-events", site.AGENT0, json=event).status_code == 403
    assert site.call("POST", "/v1/health-events", site.OPERATOR, json=event).json()["action"] == "drain"
    site.run(2)
    assert site.beat()["rack1-node1"]["drained"]


def test_registration_checks_the_node_against_the_site(site):
    """An agent learns the timing, and a wrong count of GPUs is refused with both numbers."""
    body = {"boot_id": "b", "gpus": [f"GPU-{g}" for g in range(8)]}
    answer = site.call("POST", "/v1/nodes/rack0-node0:register", site.AGENT0, json=body).json()
    assert answer["gpus"] == 8 and answer["lease_ttl_s"] == 5.0 and answer["cap_max_w"] == 5600
    few = site.call("POST", "/v1/nodes/rack0-node0:register", site.AGENT0, json=body | {"gpus": ["GPU-0"]})
    assert few.status_code == 409 and "sees 1 GPUs" in few.json()["error"] and "says 8" in few.json()["error"]


def _recorded(site) -> tuple[Snapshot, ArbiterState]:
    site.run(6)
    return site.engine.view.heard, site.engine.view.state


def test_decide_gives_the_bytes_of_a_direct_settlement(site):
    """One recorded snapshot through the service and through `settle` gives identical plans and states."""
    snapshot, state = _recorded(site)
    bids = Bids.neutral(1, site.fleet.pools, len(site.fleet.nodes))
    want_state, want_plan = settle(site.fleet, state, snapshot, bids)
    body = {"snapshot": to_base64(snapshot.to_bytes()), "state": to_base64(state.to_bytes())}
    answer = site.call("POST", "/v1/decide", site.VIEWER, json=body).json()
    assert answer["plan_bytes"] == to_base64(want_plan.to_bytes())
    assert answer["state"] == to_base64(want_state.to_bytes())
    assert answer["plan"]["node"]["cap_w"] == want_plan.node["cap_w"][0].tolist()
    packed = msgpack.packb({"snapshot": snapshot.to_bytes(), "state": state.to_bytes()})
    headers = site.VIEWER | {"Content-Type": "application/msgpack"}
    unpacked = msgpack.unpackb(site.call("POST", "/v1/decide", headers, content=packed).content)
    assert unpacked == {"plan": want_plan.to_bytes(), "state": want_state.to_bytes()}


def test_decide_takes_columns_and_starts_afresh_without_a_state(site):
    """JSON columns with nulls make the snapshot that they describe."""
    snapshot = Snapshot.unknown(site.fleet, time_s=7.0)
    snapshot.node["power_w"][0, :3] = [100.0, 200.0, np.nan]
    state = initial_state(site.fleet, 1, 7.0, 0)
    _, want = settle(site.fleet, state, snapshot, Bids.neutral(1, site.fleet.pools, 8))
    body = {"snapshot": {"time_s": 7.0, "node": {"power_w": [100, 200] + [None] * 6}}}
    answer = site.call("POST", "/v1/decide", site.VIEWER, json=body).json()
    assert answer["plan_bytes"] == to_base64(want.to_bytes())


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"snapshot": 5},
        {"snapshot": "###"},
        {"snapshot": "AAAA"},
        {"snapshot": {"node": {"power_w": [1]}}},
        {"snapshot": {"node": {"nonsense": [1] * 8}}},
        {"snapshot": {"node": {"stage": [9] * 8}}},
        {"snapshot": {"node": {"cap_w": [1e300] * 8}}},
        {"snapshot": {"time_s": "soon"}},
        {"snapshot": {"elsewhere": {}}},
        {"snapshot": {}, "state": "AAAA"},
    ],
)
def test_decide_refuses_what_no_arbiter_should_see(site, body):
    """Wrong lengths, names and values end in one line, never in a compiled kernel."""
    answer = site.call("POST", "/v1/decide", site.VIEWER, json=body)
    assert answer.status_code == 422 and answer.json()["error"]


def test_the_test_policy_is_a_policy(site):
    """What the engine is given satisfies the protocol."""
    policy: Policy = site.engine.policy
    assert policy.name == "neutral"
