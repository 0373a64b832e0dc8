"""Budget events as limits: what is demanded, in force and told."""

import numpy as np
import pytest

from flyball.envs.events import Event, event_times
from flyball.envs.limits import DEMANDED, IN_FORCE, NEXT, NEXT_IN_S, TOLD, budget_series
from flyball.envs.scenario import load_scenario
from flyball.fleet.tables import NEVER_S


@pytest.fixture(scope="module")
def fleet():
    return load_scenario("steady").fleet


def series(fleet, *events, ticks=100):
    return budget_series(fleet, events, [e.t_s for e in events], ticks)


def test_an_unnoticed_cut_is_in_force_after_the_grace(fleet):
    """The demanded limit falls at once, is told a tick later, and is in force `grace_s` after the fall."""
    limits, told = series(fleet, Event(limit_frac=0.85, t_s=50))
    peak_w, cut_w = fleet.domains[0].peak_w, int(0.85 * fleet.domains[0].peak_w)
    assert limits[49, 0, DEMANDED] == peak_w and limits[50, 0, DEMANDED] == cut_w
    grace = round(fleet.timing.grace_s)
    assert limits[50 + grace - 1, 0, IN_FORCE] == peak_w and limits[50 + grace, 0, IN_FORCE] == cut_w
    assert told[50, 0, TOLD] == peak_w and told[51, 0, TOLD] == cut_w
    assert (told[:, 0, NEXT_IN_S] == NEVER_S).all()


def test_an_announced_cut_is_in_force_from_its_start(fleet):
    """With notice there is no grace, and the change is told from the notice on with the time left."""
    limits, told = series(fleet, Event(limit_frac=0.85, t_s=50, notice_s=20))
    cut_w = int(0.85 * fleet.domains[0].peak_w)
    assert limits[50, 0, IN_FORCE] == cut_w and limits[49, 0, IN_FORCE] == fleet.domains[0].peak_w
    assert told[29, 0, NEXT_IN_S] == NEVER_S
    assert told[30, 0, NEXT] == cut_w and told[30, 0, NEXT_IN_S] == 20.0
    assert told[49, 0, NEXT_IN_S] == 1.0


def test_limits_return_and_other_domains_stay(fleet):
    """After `until_s` the nominal limit is back, and only the domain of the event ever changed."""
    limits, _ = series(fleet, Event(limit_frac=0.9, t_s=20, domain=fleet.domains[1].name, until_s=30))
    nominal = fleet.domain_static["peak_w"]
    assert limits[20, 1, DEMANDED] == int(0.9 * nominal[1]) and limits[50, 1, DEMANDED] == nominal[1]
    others = np.arange(len(nominal)) != 1
    assert (limits[:, others, DEMANDED] == nominal[others]).all()
    assert (limits[:, others, IN_FORCE] == nominal[others]).all()


@pytest.mark.parametrize("start_s", [0, 99, 100, 101, 5000])
def test_events_at_the_edges_of_an_episode_are_taken_or_left(fleet, start_s):
    """An event in the last tick or after the end neither fails nor changes what comes before it."""
    limits, _ = series(fleet, Event(limit_frac=0.85, t_s=start_s))
    assert (limits[: min(start_s, 101), 0, DEMANDED] == fleet.domains[0].peak_w).all()


def test_a_later_event_supersedes_an_earlier_one(fleet):
    """From its start the later one rules alone: the earlier one's end no longer matters."""
    limits, _ = series(fleet, Event(0.9, 10, until_s=60), Event(0.8, 30, until_s=20, notice_s=5))
    peak_w = fleet.domains[0].peak_w
    at = {t: limits[t, 0, DEMANDED] for t in (20, 29, 30, 49, 50, 69)}
    cut = int(0.9 * peak_w), int(0.8 * peak_w)
    assert at == {20: cut[0], 29: cut[0], 30: cut[1], 49: cut[1], 50: peak_w, 69: peak_w}


def test_a_second_cut_does_not_shorten_the_grace_of_the_first(fleet):
    """Within the first grace the old limit is still in force, then the first cut's, then the second's."""
    grace = round(fleet.timing.grace_s)
    limits, _ = series(fleet, Event(0.9, 50), Event(0.8, 51))
    peak_w = fleet.domains[0].peak_w
    expected = [peak_w] * grace + [int(0.9 * peak_w)] + [int(0.8 * peak_w)] * 3
    assert limits[50 : 54 + grace, 0, IN_FORCE].tolist() == expected


def test_of_two_announcements_the_nearer_is_told(fleet):
    """The farther one is told once the nearer has started."""
    _, told = series(fleet, Event(0.9, 40, notice_s=20), Event(0.8, 60, notice_s=40))
    peak_w = fleet.domains[0].peak_w
    assert told[39, 0, NEXT] == int(0.9 * peak_w) and told[39, 0, NEXT_IN_S] == 1
    assert told[40, 0, NEXT] == int(0.8 * peak_w) and told[40, 0, NEXT_IN_S] == 20


def test_a_lost_feed_is_an_unannounced_cut(fleet):
    """Its limit is in force after the grace, as any cut without notice."""
    a, told_a = series(fleet, Event(kind="feed-loss", limit_frac=0.7, t_s=30, until_s=20))
    b, told_b = series(fleet, Event(limit_frac=0.7, t_s=30, until_s=20))
    assert (a == b).all() and (told_a == told_b).all()


def test_a_drawn_start_lies_in_its_range():
    """Events with a range start within it."""
    event = Event(limit_frac=0.85, t_min_s=10, t_max_s=20)
    starts = [event_times((event,), np.random.default_rng(s))[0] for s in range(50)]
    assert min(starts) >= 10 and max(starts) <= 20 and len(set(starts)) == 50
