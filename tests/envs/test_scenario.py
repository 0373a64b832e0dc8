"""Scenarios: what ships is valid, overrides are checked, and events keep above the floors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball.envs.load import generate_load
from flyball.envs.scenario import SCENARIOS, PlantRanges, Scenario, list_scenarios, load_scenario
from flyball.fleet.errors import BadInput, ScenarioError, SiteError


@pytest.mark.parametrize("name", list_scenarios())
def test_every_packaged_scenario_is_valid_and_named_by_its_file(name):
    """Each loads, has a one-line summary, and its load can be drawn for its site."""
    s = load_scenario(name)
    assert s.name == name and s.summary and "\n" not in s.summary
    names = [service.name for service in s.fleet.services]
    load = generate_load(s.load, [10.0] * len(names), 60, 1.0, [0], names)
    assert load.arrivals.shape == (1, 60, len(names))


@pytest.mark.parametrize("name", list_scenarios())
def test_every_packaged_scenario_runs_and_says_what_is_hard(make_core, name):
    """A few ticks of each keep finite books, and its page has something to say."""
    s = load_scenario(name)
    assert s.hard and s.good_controller and s.plant.items()
    core = make_core(name, batch=1, overrides=("seconds=120", "warmup_s=0"))
    for _ in range(4):
        core.step(core.base)
    for table in (core.plant.node, core.plant.domain, core.plant.service):
        for field in table.dtype.names:
            assert np.isfinite(table[field]).all(), field
    assert core.kpis()["budget_violation_ws"] == 0


def test_prose_is_not_part_of_the_hash(tmp_path):
    """What a page says changes nothing that happens."""
    copy = tmp_path / "steady.toml"
    copy.write_text((SCENARIOS / "steady.toml").read_text().replace("Nothing happens", "Little happens"))
    assert load_scenario(copy).hash == load_scenario("steady").hash
    assert load_scenario(copy).hard != load_scenario("steady").hard


def test_the_families_of_the_first_version_are_there():
    """The names that every other part and the command line take."""
    assert set(list_scenarios()) >= {
        "steady", "diurnal", "bursty", "mix-shift", "multi-service", "curtailment", "curtailment-sudden",
        "demo", "faults", "thermal", "small", "feed-loss", "outage", "training-ballast", "maxlps-4v3", "aggregated",
        "factory-mix", "moe",
    }  # fmt: skip


def test_the_demo_cuts_once_with_notice_and_once_without():
    """15 % with a minute's notice, its return before the second cut, then 15 % without notice."""
    first, second = load_scenario("demo").events
    assert (first.limit_frac, first.notice_s) == (0.85, 60) and (second.limit_frac, second.notice_s) == (
        0.85,
        0,
    )
    assert first.t_max_s + first.until_s < second.t_min_s
    assert second.t_max_s < load_scenario("demo").seconds


def test_overrides_change_what_they_name():
    """Dots go down, numbers into lists, bare words are strings, values are TOML."""
    s = load_scenario(
        "demo",
        [
            "load.scale=1",
            "seconds=300",
            "plant.inlet_c=[36, 42]",
            "events.1.limit_frac=0.9",
            "background=uniform",
        ],
    )
    assert (s.load.scale, s.seconds, s.plant["inlet_c"], s.background) == (
        1.0,
        300.0,
        (36.0, 42.0),
        "uniform",
    )
    assert s.events[1].limit_frac == 0.9 and s.events[0] == load_scenario("demo").events[0]
    assert load_scenario("demo", ["events=[]"]).events == ()
    assert load_scenario("small", ["site=demo-16"]).fleet.name == "demo-16"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("load.scal=1", "load.scal: unknown key; did you mean scale"),
        ("racks.budget_w=28000", "racks: unknown key; known: name"),
        ("secnds=3", "did you mean seconds"),
        ("plant.v_mn=[0.6, 0.7]", "did you mean v_min"),
        ("load.target_util=0", "load.target_util: must be greater than 0"),
        ("load.target_util=true", "load.target_util: must be a valid number"),
        ("load.ca2=0.5", "load.ca2: must be greater than or equal to 1"),
        ("load=3", "load: must be a table"),
        ("seconds=nan", "seconds: must be a finite number"),
        ("seconds=60", "warmup_s: 60 s leave nothing"),
        ("plant.inlet_c=[1]", "plant.inlet_c: must have at least 2 items"),
        ("plant.inlet_c=[40, 30]", "40 is above 30"),
        ("plant.non_gpu_frac=[0.9, 1.1]", r"plant.non_gpu_frac\[1\]: must be less than or equal to 1"),
        ("events.0.limit_frac=1.2", "less than or equal to 1"),
        ("events.0.domain=row1", "no power domain 'row1'"),
        ("events.0.t_min_s=900", "is after t_max_s"),
        ("events.9.t_s=1", "has 2 of these"),
        ("events.x.t_s=1", "has 2 of these"),
        ("seconds.x=1", "seconds: must be a valid number"),
        ("site.x=1", "site is not a table"),
        ("load.service=[{name='x'}]", "no service 'x'"),
        ("load.service=[{name='chat'}, {name='chat'}]", "given twice"),
        ("load.scale=a b", "not TOML"),
        ("load.scale=1\nz=2", "give one value"),
        ("nonsense", "key=value"),
        ("a b=3", "key=value"),
    ],
)
def test_a_bad_override_is_refused_in_one_line_that_repeats_it(override, message):
    """The message names the override, the key and what to change."""
    with pytest.raises(ScenarioError, match=f"--set .*{message}") as caught:
        load_scenario("demo", [override])
    assert "\n" not in str(caught.value)


def test_a_limit_below_the_floors_is_refused_with_the_number():
    """Less than the nodes draw with every GPU parked cannot be met; the message says how low one may go."""
    floor_w = 16 * (2800 + 8 * 83)
    with pytest.raises(ScenarioError, match=f"below the {floor_w} W .* use at least 0.51"):
        load_scenario("demo", ["events.0.limit_frac=0.5"])
    load_scenario("demo", ["events.0.limit_frac=0.51"])
    with pytest.raises(ScenarioError, match="'rack-2' is 12560 W, below the 13856 W"):
        load_scenario("demo", ["events.0.limit_frac=0.4", "events.0.domain=rack-2"])


def test_files_are_refused_as_overrides_are(tmp_path):
    """Unknown keys, half a range, unknown sites and broken files: one line with the file's name."""
    good = (SCENARIOS / "curtailment.toml").read_text()
    path = tmp_path / "mine.toml"
    for content, message in (
        (good.replace("notice_s", "notce_s"), r"events\[0\].notce_s: unknown key; did you mean notice_s"),
        (good.replace("t_max_s = 420\n", ""), "t_min_s and t_max_s go together"),
        (good.replace('site = "demo-16"\n', ""), "site: missing"),
        (good.replace("demo-16", "demo-61"), "site: no site 'demo-61'; did you mean demo-16"),
        (good + "x = [", "not valid TOML"),
    ):
        path.write_text(content)
        with pytest.raises((ScenarioError, SiteError), match=f"mine.toml.*{message}") as caught:
            load_scenario(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ScenarioError, match="no scenario 'demoo'; did you mean demo"):
        load_scenario("demoo")


def test_a_site_file_is_found_beside_its_scenario(tmp_path):
    """A path in a scenario is relative to the scenario."""
    (tmp_path / "site.toml").write_text((SCENARIOS.parent / "sites" / "small-8.toml").read_text())
    (tmp_path / "mine.toml").write_text((SCENARIOS / "small.toml").read_text().replace('"small-8"', '"site.toml"'))
    assert load_scenario(tmp_path / "mine.toml").fleet.name == "small-8"


def test_the_hash_follows_the_content_and_the_site(tmp_path):
    """Same content, same hash wherever it lies; any change of the scenario or its site gives another."""
    copy = tmp_path / "elsewhere.toml"
    copy.write_text((SCENARIOS / "steady.toml").read_text())
    base = load_scenario("steady")
    assert load_scenario(copy).hash == base.hash
    others = {load_scenario("steady", [o]).hash for o in ("seconds=600", "load.ca2=3", "site=mixed", "fault_scale=1")}
    assert len(others | {base.hash}) == 5


def test_plant_ranges_read_like_a_mapping():
    """The plant walks names and bounds; every range is low to high."""
    ranges = PlantRanges()
    assert set(ranges) == {name for name, _ in ranges.items()}
    assert all(ranges[name] == bounds and bounds[0] <= bounds[1] for name, bounds in ranges.items())


KEYS = st.sampled_from(["seconds", "load", "events", "plant", "scale", "0", "1", "site", "v_min", "limit_frac", "x"])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(KEYS, min_size=1, max_size=3).map(".".join),
    st.one_of(st.text(max_size=12), st.floats().map(str)),
)
def test_any_override_gives_a_scenario_or_one_line(key, value):
    """Whatever follows --set, the answer is a valid scenario or a BadInput of one line."""
    try:
        assert isinstance(load_scenario("demo", [f"{key}={value}"]), Scenario)
    except BadInput as e:
        assert "\n" not in str(e)
