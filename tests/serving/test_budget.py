"""Budget events: start, notice, end, supersession, and the limits that follow."""

import pytest

from flyball.fleet.tables import NEVER_S
from flyball.serving.budget import BudgetEvent, domain_limit

NOW = 1000.0


def event(name: str, start_s: float, limit_w: int, until_s: float = NEVER_S) -> BudgetEvent:
    """An event of the domain under test."""
    return BudgetEvent(name, "feed", start_s, until_s, limit_w, NOW)


def test_without_events_the_site_file_rules():
    """The peak is the limit and nothing is announced."""
    assert domain_limit(100, [], NOW, 8.0) == (100, 100, NEVER_S, "", NEVER_S)


def test_a_cut_is_announced_until_it_starts_and_then_applies():
    """Before its start a lower limit is the next one; from its start it is the limit, until its end."""
    cut = event("cut", NOW + 60, 80, NOW + 120)
    assert domain_limit(100, [cut], NOW, 8.0)[:3] == (100, 80, 60.0)
    during = domain_limit(100, [cut], NOW + 60, 8.0)
    assert during == (80, 100, 60.0, "cut", NOW + 120)
    assert domain_limit(100, [cut], NOW + 120, 8.0).limit_w == 100


def test_the_lowest_of_overlapping_events_rules():
    """Events do not cancel each other by overlapping."""
    events = [event("a", NOW, 90), event("b", NOW, 70, NOW + 10), event("c", NOW, 80)]
    limit = domain_limit(100, events, NOW, 8.0)
    assert limit.limit_w == 70 and limit.event_id == "b" and limit.next_limit_w == 80


def test_a_lowering_is_announced_before_an_earlier_raise():
    """A raise needs no warning; a cut below today's limit does."""
    events = [event("now", NOW, 80, NOW + 10), event("later", NOW + 30, 60)]
    assert domain_limit(100, events, NOW, 8.0)[:3] == (80, 60, 30.0)


def test_a_ramp_in_steps_is_announced_at_its_lowest():
    """Cuts that follow each other within a lease's life are met as one."""
    ramp = [event("r1", NOW + 20, 90), event("r2", NOW + 24, 80), event("r3", NOW + 60, 50)]
    assert domain_limit(100, ramp, NOW, 8.0)[:3] == (100, 80, 20.0)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"id": "x", "domain": "feed"}, 422, "limit_w"),
        ({"id": "x", "domain": "feed", "limit_w": 1000, "limit_frac": 0.5}, 422, "limit_w"),
        ({"id": "x", "domain": "feed", "limit_frac": 1.5}, 422, "limit_frac"),
        ({"id": "x", "domain": "feed", "limit_w": 60_000}, 422, "above"),
        ({"id": "x", "domain": "feed", "limit_w": 0}, 422, "limit_w"),
        ({"id": "x", "domain": "feed", "limit_w": 40_000, "start_s": 5.0}, 422, "past"),
        ({"id": "x", "domain": "feed", "limit_w": 40_000, "until_s": 5.0}, 422, "until_s"),
        ({"id": "x", "domain": "feed", "limit_w": 40_000, "supersedes": ["gone"]}, 422, "gone"),
        ({"id": "x", "domain": "attic", "limit_w": 40_000}, 404, "attic"),
    ],
)
def test_a_load_target_that_makes_no_sense_is_refused(site, body, status, says):
    """One line that names the field at fault."""
    answer = site.call("POST", "/v1/load-targets", site.OPERATOR, json=body)
    assert answer.status_code == status and says in answer.json()["error"]


def test_load_targets_are_superseded_by_id_and_withdrawn(site):
    """The same id replaces, `supersedes` withdraws others, DELETE takes back; all of it is durable."""
    for body in (
        {"id": "a", "domain": "feed", "limit_w": 45_000},
        {"id": "b", "feed": "rack0", "limit_frac": 0.9, "notice_s": 60},
        {"id": "a", "domain": "feed", "limit_w": 44_000},
    ):
        assert site.call("POST", "/v1/load-targets", site.OPERATOR, json=body).status_code == 201
    view = site.engine.tick()
    assert view.limits[0].limit_w == 44_000 and view.limits[1].next_limit_w == int(0.9 * 26_500)
    body = {"id": "c", "domain": "feed", "limit_w": 46_000, "supersedes": ["a"]}
    site.call("POST", "/v1/load-targets", site.OPERATOR, json=body)
    assert site.engine.tick().limits[0].limit_w == 46_000
    assert site.call("DELETE", "/v1/load-targets/c", site.OPERATOR).status_code == 200
    assert site.call("DELETE", "/v1/load-targets/c", site.OPERATOR).status_code == 422
    standing = [e["id"] for e in site.call("GET", "/v1/load-targets", site.VIEWER).json()]
    assert standing == ["b"] == [e.id for e in site.store.budget_events(0.0)]


def test_a_limit_below_the_parked_floor_is_taken_with_a_warning(site):
    """The operator is told that caps alone cannot meet it."""
    body = {"id": "deep", "domain": "feed", "limit_w": 5_000}
    assert "parked" in site.call("POST", "/v1/load-targets", site.OPERATOR, json=body).json()["warning"]


def test_a_noticed_cut_is_met_before_it_starts(site):
    """When the cut applies, the possible draw is already below it."""
    site.run(20)
    site.call(
        "POST",
        "/v1/load-targets",
        site.OPERATOR,
        json={"id": "n", "domain": "feed", "limit_w": 42_000, "notice_s": 15},
    )
    start_s = site.clock.now_s() + 15
    while site.clock.now_s() < start_s:
        site.beat()
    assert site.engine.view.domain_possible_w[0] <= 42_000
