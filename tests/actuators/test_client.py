"""The agent's connection to the service."""

from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball.actuators.client import Backoff, ServiceClient, Unanswered
from flyball.actuators.errors import AgentRefused
from flyball.actuators.telemetry import Reply, Telemetry
from flyball.fleet.errors import BadInput

TELEMETRY = Telemetry("n0", "boot", 1.0, 7, 2000.0, 2060.0, 0.5, 1.0, float("nan"), 5600, -1, -1, -1)


@given(st.integers(0, 100_000), st.booleans(), st.floats(0.0, 1.0, exclude_max=True))
def test_waits_grow_to_their_cap_and_no_further(failures, has_lease, draw):
    """Under 2 s while a lease lives, so that several tries fit into its time to live; 5 s otherwise."""
    wait_s = Backoff(failures=failures).wait_s(has_lease, draw)
    assert 0.0 <= wait_s <= (2.0 if has_lease else 5.0)
    assert (wait_s == 0.0) == (failures == 0)


def test_waits_are_jittered_and_reset_by_success():
    """Two agents that failed together do not return together, and one success ends the waiting."""
    later = Backoff(failures=3)
    assert later.wait_s(True, 0.0) == pytest.approx(0.2) and later.wait_s(True, 0.5) == pytest.approx(0.3)
    assert later.succeeded().wait_s(True, 0.5) == 0.0


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x", "http://", "http://x:99999", "http://x:port"])
def test_a_url_that_cannot_be_used_says_so(url):
    """A wrong --server is bad input, before anything is sent."""
    with pytest.raises(BadInput, match="--server"):
        ServiceClient(url, "n0")


def test_an_exchange_carries_telemetry_up_and_a_lease_down(service):
    """The body is the telemetry as JSON, NaN as null; the answer's lease names the request."""
    client = ServiceClient(service.url, "n0", "token")
    reply = client.exchange(TELEMETRY)
    assert reply.lease is not None and reply.lease.cap_w == 4000 and reply.lease.request == 7
    assert service.received[0]["temp_c"] is None and service.received[0]["sent_at"] == 1.0
    assert "sent_at_s" not in service.received[0]
    assert service.received[0]["power_w"] == 2000.0
    assert service.authorization == ["Bearer token"]
    client.close()


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "FLYBALL_TOKEN"), (403, "FLYBALL_TOKEN"), (404, "has no node 'n0'"), (422, "same version")],
)
def test_a_refusal_says_what_to_change(service, status, words):
    """A wrong token, an unknown node and another version are refusals that name the fix."""
    service.status = status
    with (
        closing(ServiceClient(service.url, "n0")) as client,
        pytest.raises(AgentRefused, match=words) as caught,
    ):
        client.exchange(TELEMETRY)
    assert caught.value.status == status


@pytest.mark.parametrize(("status", "words"), [(409, "in charge"), (500, "HTTP 500"), (503, "HTTP 503")])
def test_what_may_pass_is_not_a_refusal(service, status, words):
    """An old epoch and a failing service are tried again."""
    service.status = status
    with closing(ServiceClient(service.url, "n0")) as client, pytest.raises(Unanswered, match=words):
        client.exchange(TELEMETRY)


def test_a_service_that_is_not_there_is_unanswered(service):
    """A refused connection names the server."""
    service.stop()
    with (
        closing(ServiceClient(service.url, "n0")) as client,
        pytest.raises(Unanswered, match=f"127.0.0.1:{service.port} does not answer"),
    ):
        client.exchange(TELEMETRY)


def test_a_connection_that_the_service_dropped_is_opened_again(service):
    """A restart of the service between two messages costs no message."""
    client = ServiceClient(service.url, "n0")
    client.exchange(TELEMETRY)
    client._connection.sock.close()
    client._connection.sock = None
    assert client.exchange(TELEMETRY).lease is not None
    client.close()


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"lease": 3},
        {"lease": {"epoch": 1, "seq": 1, "ttl_s": 5, "cap_w": 4000.5, "fallback_w": 1}},
        {"lease": {"epoch": 1, "seq": 1, "cap_w": 4000, "fallback_w": 1}},
        {"lease": {"epoch": True, "seq": 1, "ttl_s": 5, "cap_w": 4000, "fallback_w": 1}},
        {"stage": "decode"},
    ],
)
def test_an_answer_that_cannot_be_read_is_refused_whole(content):
    """Watts that are not whole, missing and mistyped values never become a lease."""
    with pytest.raises(ValueError):
        Reply.from_dict(content, 1)


def test_unknown_keys_of_an_answer_are_left_alone():
    """A newer service may say more than this agent understands."""
    assert Reply.from_dict({"lease": None, "weather": "fine"}, 1).lease is None
