"""Shadow and advise mode: nothing is commanded, both sides are on record."""

import numpy as np
import pytest

from flyball.fleet.errors import BadInput
from flyball.serving.explain import explain
from flyball.serving.shadow import read_shadow_log


@pytest.mark.parametrize("mode", ["shadow", "advise"])
def test_no_lease_ever_leaves(make_site, mode):
    """Agents get neither a lease nor a stage, a clock ceiling, a cordon or a drain to act on."""
    site = make_site(mode=mode)
    site.call("POST", "/v1/nodes/rack0-node0:drain", site.OPERATOR)
    for _ in range(15):
        for answer in site.beat().values():
            if "status" in answer:
                assert answer["status"] == 503
                continue
            assert answer["lease"] is None and answer["mode"] == mode
            assert (answer["clock_frac"], answer["cordoned"], answer["drained"]) == (1.0, False, False)
    assert site.agents.held == {} and site.store.leases() == {}


def test_both_sides_are_logged_per_control_interval(make_site):
    """The incumbent's caps as read back stand beside what would have been commanded."""
    site = make_site(mode="shadow")
    site.run(31)
    log = read_shadow_log(site.url)
    assert len(log) == 7 and np.allclose(np.diff(log.time_s), site.fleet.timing.control_s)
    assert (log.incumbent_cap_w[1:] == 5600).all()
    assert (log.proposed_cap_w[2:] < 5600).all() and (log.proposed_cap_w[2:] > 1600).all()
    assert (log.known_frac[1:] == 1.0).all() and not log.is_fallback.any()
    assert log.node_names[0] == "rack0-node0" and log.policy == "neutral"
    assert log.snapshot(3).node["power_w"][0, 0] == 5200.0
    assert log.fleet_hash == site.fleet.hash


def test_proposals_would_have_fitted(make_site):
    """The proposed caps keep guarantee 1 had they been obeyed."""
    site = make_site(mode="shadow")
    site.run(30)
    log = read_shadow_log(site.url)
    assert (log.proposed_cap_w[2:].sum(axis=1) + 8 * 1500 <= 50_000).all()


def test_a_range_without_rows_is_bad_input(make_site, tmp_path):
    """An enforcing service leaves no shadow rows, and a missing database is named."""
    site = make_site()
    site.run(6)
    with pytest.raises(BadInput, match="no rows"):
        read_shadow_log(site.url)
    with pytest.raises(BadInput, match="no database"):
        read_shadow_log(f"sqlite:///{tmp_path}/absent.db")


def test_explanations_say_that_nothing_was_applied(make_site):
    """A plan that nobody applied is told in the conditional."""
    site = make_site(mode="shadow")
    site.run(12)
    sentence = explain(site.store, "rack0-node0", site.clock.now_s()).sentence
    assert sentence.startswith("node rack0-node0 would be capped at ")


def test_a_time_range_selects_rows(make_site):
    """From is included, to is not."""
    site = make_site(mode="shadow")
    start_s = site.clock.now_s()
    site.run(30)
    log = read_shadow_log(site.url, start_s + 5.0, start_s + 15.0)
    assert log.time_s.tolist() == [start_s + 5.0, start_s + 10.0]
