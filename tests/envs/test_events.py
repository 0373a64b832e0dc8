"""Events that the plant carries out: what they do, when they end, and what of it is told."""

import numpy as np
import pytest

from flyball.envs.delivery import BREAKER_RESET_S
from flyball.envs.event_dynamics import BOOT_S, forget_future
from flyball.envs.scenario import load_scenario
from flyball.fleet.errors import ScenarioError

SHORT = ("seconds=240", "warmup_s=0", "load.target_util=0.5", "plant.dropout_frac=[0, 0]")
QUIET_METER = "plant.meter_bias_frac=[0, 0]"


def ticks(core, count):
    """Advance tick by tick; returns the snapshot of the last."""
    for _ in range(count):
        told = core.plant.step(core.base, ticks=1)
    return told


def test_a_lost_feed_takes_its_breakers_rating_with_it_and_brings_it_back(make_core):
    """The limit falls to what the other feed carries, and so does the rating, until the feed is back."""
    event = "events=[{kind='feed-loss', t_s=20, limit_frac=0.7, until_s=40}]"
    core = make_core("steady", batch=1, overrides=(*SHORT, event))
    full_w = float(core.plant.domain["rating_w"][0, 0])
    ticks(core, 20)
    assert core.plant.domain["rating_w"][0, 0] == full_w
    told = ticks(core, 2)
    assert core.plant.domain["rating_w"][0, 0] == pytest.approx(0.7 * full_w)
    assert told.domain["limit_w"][0, 0] == int(0.7 * core.fleet.domains[0].peak_w)
    ticks(core, 40)
    assert core.plant.domain["rating_w"][0, 0] == full_w


def test_power_held_above_a_lost_feed_trips_what_is_left(make_core):
    """Nobody sheds: the breakers that are left trip, and the fleet goes dark."""
    event = "events=[{kind='feed-loss', t_s=5, limit_frac=0.55}]"
    core = make_core("steady", batch=1, overrides=(*SHORT, "load.target_util=0.9", event))
    caps = core.plant.plan.node.copy()
    caps["cap_w"], caps["stage"] = core.fleet.node_static["cap_max_w"], core.plant.node["stage"]
    caps["clock_frac"] = 1.0
    caps["seq"] = core.plant.node["ack_seq"] + 1
    for _ in range(200):
        caps["seq"] += 1
        core.plant.tick_under(caps)
    assert core.plant.kpis(0)["breaker_trips"] > 0
    assert (core.plant.node["down_s"][0] > 0).any()


def test_a_tripped_breaker_stays_open_until_a_person_resets_it(make_core):
    """Nothing below it draws and its nodes are silent; once it is closed, cold, they boot and serve again."""
    event = "events=[{kind='feed-loss', t_s=5, limit_frac=0.55}]"
    core = make_core("steady", batch=1, overrides=(*SHORT, "load.target_util=0.9", event))
    plant, static = core.plant, core.fleet.domain_static
    caps = plant.plan.node.copy()
    caps["cap_w"], caps["stage"] = core.fleet.node_static["cap_max_w"], plant.node["stage"]
    caps["clock_frac"] = 1.0
    caps["seq"] = plant.node["ack_seq"] + 1

    def tick():
        caps["seq"] += 1
        return plant.tick_under(caps)

    for _ in range(300):
        tick()
        if plant.domain["is_tripped"][0].any():
            break
    plant.domain["rating_w"] = 0.0  # no other breaker follows
    d = int(np.flatnonzero(plant.domain["is_tripped"][0])[0])
    inside = slice(static["node_start"][d], static["node_end"][d])
    for _ in range(60):
        tick()
    is_below = (static["node_start"] >= inside.start) & (static["node_end"] <= inside.stop)
    assert (plant.domain["power_w"][0, is_below] == 0.0).all() and is_below[d]
    assert (plant.node["gpu_w"][0, inside] == 0.0).all()
    assert (plant.snapshot.node["is_silent"][0, inside] == 1).all()
    for _ in range(int(BREAKER_RESET_S) - 70):
        tick()
    assert plant.domain["is_tripped"][0, d] == 1 and plant.domain["power_w"][0, d] == 0.0
    for _ in range(20):
        tick()
    assert plant.domain["is_tripped"][0, d] == 0 and plant.domain["heat"][0, d] == 0.0
    assert plant.domain["power_w"][0, d] > 0.0 and (plant.node["down_s"][0, inside] > 0.0).all()
    for _ in range(int(BOOT_S) + 10):
        tick()
    assert (plant.node["down_s"][0, inside] == 0.0).all()
    assert (plant.snapshot.node["is_silent"][0, inside] == 0).all()


def test_an_outage_takes_the_nodes_of_its_domain_until_they_have_started(make_core):
    """They draw nothing, are not heard, and serve again when power is back and they have booted."""
    event = "events=[{kind='outage', domain='rack-2', t_s=10, until_s=30}]"
    core = make_core("steady", batch=1, overrides=(*SHORT, "seconds=900", event))
    row = core.fleet.domain_static[core.fleet.domain_index["rack-2"]]
    inside = slice(row["node_start"], row["node_end"])
    told = ticks(core, 20)
    node = core.plant.node[0]
    assert (node["gpu_w"][inside] == 0).all() and (told.node["is_silent"][0, inside] == 1).all()
    assert (np.delete(node["down_s"], np.arange(16)[inside]) == 0).all()
    ticks(core, 20 + int(BOOT_S) - 5)
    assert (node["down_s"][inside] > 0).all()
    ticks(core, 10)
    assert (node["down_s"][inside] == 0).all() and (node["agent_down"][inside] == 0).all()


@pytest.mark.parametrize("fault", ["dead", "frozen", "biased"])
def test_a_meter_lies_as_its_fault_says_and_then_tells_the_truth_again(make_core, fault):
    """Dead: no value and a growing age; frozen: the last value as new; biased: off by its share."""
    bias = ", bias_frac=0.2" if fault == "biased" else ""
    event = f"events=[{{kind='meter', domain='row-1', fault='{fault}'{bias}, t_s=20, until_s=30}}]"
    core = make_core("bursty", batch=1, overrides=(*SHORT, QUIET_METER, event))
    d = core.fleet.domain_index["row-1"]
    before_w = float(ticks(core, 20).domain["meter_w"][0, d])
    assert before_w > 0
    meters = []
    for _ in range(10):
        told = ticks(core, 1).domain[0, d]
        meters.append((float(told["meter_w"]), float(told["meter_age_s"]), float(core.plant.domain["power_w"][0, d])))
    values, ages, truth = np.array(meters).T
    if fault == "dead":
        assert np.isnan(values).all() and (np.diff(ages) == 1).all()
    elif fault == "frozen":
        assert (values == before_w).all() and (ages == 0).all()
    else:
        np.testing.assert_allclose(values / truth, 1.2, rtol=0.05)
    told = ticks(core, 25).domain[0, d]
    assert told["meter_w"] == pytest.approx(float(core.plant.domain["power_w"][0, d]), rel=0.1)
    assert told["meter_age_s"] == 0


def test_a_dropout_burst_loses_the_telemetry_of_its_domain_alone(make_core):
    """With every sample lost the rack's nodes age, and the others do not."""
    event = "events=[{kind='dropout', domain='rack-4', lost_frac=1.0, t_s=10, until_s=20}]"
    core = make_core("steady", batch=1, overrides=(*SHORT, event))
    told = ticks(core, 25)
    assert (told.node["age_s"][0, 12:] == 15).all() and (told.node["age_s"][0, :12] == 0).all()
    assert (ticks(core, 10).node["age_s"][0] == 0).all()


def test_a_later_event_of_a_kind_supersedes_the_earlier(make_core):
    """The second bias replaces the first at its start, and at its end the meter is right."""
    event = (
        "events=[{kind='meter', fault='biased', bias_frac=0.5, t_s=10, until_s=100},"
        " {kind='meter', fault='biased', bias_frac=-0.5, t_s=30, until_s=20}]"
    )
    core = make_core("steady", batch=1, overrides=(*SHORT, QUIET_METER, event))
    seen = []
    for at in (20, 40, 60):
        ticks(core, at - int(core.plant.tick[0]))
        seen.append(float(core.plant.domain["meter_bias"][0, 0]))
    assert seen == [0.5, -0.5, 0.0]


def test_forgetting_the_future_leaves_what_is_under_way(make_core):
    """A meter that froze stays frozen, and an outage to come does not."""
    event = (
        "events=[{kind='meter', fault='frozen', t_s=10, until_s=20}, {kind='outage', domain='rack-2', t_s=40,"
        " until_s=30}]"
    )
    core = make_core("steady", batch=1, overrides=(*SHORT, event))
    ticks(core, 20)
    forget_future(core.plant.params, int(core.plant.tick[0]))
    ticks(core, 60)
    assert core.plant.domain["meter_state"][0, 0] != 0 and (core.plant.node["down_s"] == 0).all()


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ("{t_s=5}", r"events\[0\].limit_frac: missing; budget events need it"),
        ("{kind='blackout', t_s=5}", "'blackout'; use budget, feed-loss, outage, meter, dropout"),
        (
            "{kind='feed-loss', limit_frac=0.7, notice_s=9}",
            "notice_s: feed-loss events have none; give kind = 'budget'",
        ),
        ("{kind='outage', t_s=5}", "until_s: missing; outage events need it"),
        ("{kind='outage', until_s=5, limit_frac=0.5}", "limit_frac: outage events have none; remove it"),
        ("{kind='meter', fault='broken'}", "fault: 'broken'; use dead, frozen, biased"),
        ("{kind='meter', fault='biased'}", "bias_frac: a biased meter needs one"),
        ("{kind='meter', fault='dead', bias_frac=0.1}", "bias_frac: a biased meter needs one"),
        ("{kind='dropout', lost_frac=0}", "lost_frac: 0 loses nothing"),
        ("{kind='dropout', lost_frac=0.5, domain='rack-9'}", "no power domain 'rack-9'"),
        ("{kind='feed-loss', limit_frac=0.2}", "every GPU parked; use at least"),
    ],
)
def test_a_bad_event_is_refused_with_what_to_change(event, message):
    """One line that names the event, the key and the fix."""
    with pytest.raises(ScenarioError, match=message) as caught:
        load_scenario("steady", [f"events=[{event}]"])
    assert "\n" not in str(caught.value)


def test_more_events_than_the_plant_holds_are_refused():
    """The seventeenth is too many, and the message says how many are allowed."""
    one = "{kind='dropout', lost_frac=0.1, t_s=5}"
    load_scenario("steady", [f"events=[{', '.join([one] * 16)}]"])
    with pytest.raises(ScenarioError, match="17 beside budgets, at most 16"):
        load_scenario("steady", [f"events=[{', '.join([one] * 17)}]"])
