"""Run-time assurance: failing policies are replaced at once and earn their place back."""

import threading

import numpy as np
import pytest

from flyball.fleet.bids import Bids
from flyball.fleet.snapshot import Snapshot
from flyball.serving.assurance import FIRST_HOLDOFF, PROBATION, AssuredPolicy, NeutralPolicy


class Moody:
    """A policy that does what its script says: "ok", or one of the ways to fail."""

    name = "moody"

    def __init__(self, fleet, script) -> None:
        self._fleet, self._script, self.calls = fleet, list(script), 0
        self.release = threading.Event()

    def start(self, batch):
        return 0

    def bid(self, snapshot, observation, memory):
        self.calls += 1
        mood = self._script.pop(0) if self._script else "ok"
        bids = Bids.neutral(1, self._fleet.pools, len(self._fleet.nodes))
        bids.pool[:] = 0.5
        if mood == "raise":
            raise RuntimeError("out of memory")
        if mood == "nan":
            bids.pool[0, 0, 0] = np.nan
        if mood == "shape":
            return Bids(bids.pool[:, :1], bids.node, bids.fleet), memory
        if mood == "none":
            return None
        if mood == "hang":
            self.release.wait(10.0)
        return bids, memory + 1


@pytest.mark.parametrize(
    ("mood", "says"),
    [
        ("raise", "RuntimeError: out of memory"),
        ("nan", "NaN"),
        ("shape", "shape"),
        ("none", "did not return"),
        ("hang", "no answer"),
    ],
)
def test_a_failing_policy_is_replaced_within_the_same_decision(fleet, mood, says):
    """Whatever goes wrong, the decision has bids, the fallback's name and the reason."""
    policy = Moody(fleet, [mood])
    assured = AssuredPolicy(fleet, policy, deadline_s=0.1)
    decision = assured.decide(snapshot_of(fleet), None)
    policy.release.set()
    assert decision.source == "neutral" and says in decision.failure
    assert not decision.bids.pool.any() and not assured.is_trusted
    assert "moody failed" in decision.changed


def snapshot_of(fleet):
    """A snapshot in which nothing is known."""
    return Snapshot.unknown(fleet)


def test_a_policy_returns_only_after_hold_off_and_probation(fleet):
    """It is left alone first, then has to decide well several times in a row before its bids count."""
    policy = Moody(fleet, ["ok", "raise"])
    assured = AssuredPolicy(fleet, policy, deadline_s=None)
    snapshot = snapshot_of(fleet)
    sources = [assured.decide(snapshot, None).source for _ in range(2 + FIRST_HOLDOFF + PROBATION)]
    assert sources == ["moody"] + ["neutral"] * (FIRST_HOLDOFF + PROBATION) + ["moody"]
    assert policy.calls == 2 + PROBATION


def test_failing_again_doubles_the_hold_off(fleet):
    """A policy that keeps failing is asked ever more rarely."""
    policy = Moody(fleet, ["raise"] * 100)
    assured = AssuredPolicy(fleet, policy, deadline_s=None)
    snapshot = snapshot_of(fleet)
    for _ in range(1 + FIRST_HOLDOFF + 1 + 2 * FIRST_HOLDOFF + 1):
        assert assured.decide(snapshot, None).source == "neutral"
    assert policy.calls == 3


def test_a_fallback_that_fails_too_ends_in_neutral_bids(fleet):
    """There are always bids."""
    assured = AssuredPolicy(fleet, Moody(fleet, ["raise"]), Moody(fleet, ["nan"]), deadline_s=None)
    assert assured.decide(snapshot_of(fleet), None).source == "neutral"


def test_the_service_says_who_decides(make_site, fleet):
    """A replaced policy shows in the fleet view, the notes and the metrics, and caps go on being issued."""
    site = make_site(policy=Moody(fleet, ["nan"]))
    site.run(3)
    shown = site.call("GET", "/v1/fleet", site.VIEWER).json()
    assert shown["policy"] == {"chosen": "moody", "in_use": "neutral", "trusted": False}
    assert any(note["kind"] == "policy" for note in shown["notes"])
    assert "flyball_policy_failures_total 1.0" in site.call("GET", "/metrics", site.VIEWER).text
    assert site.agents.caps_w()["rack0-node0"] > 0


def test_the_neutral_policy_bids_nothing(fleet):
    """Its bids are zero in every table."""
    bids, _ = NeutralPolicy(fleet).bid(snapshot_of(fleet), None, None)
    assert not bids.pool.any() and not bids.node.any() and not bids.fleet.any()
