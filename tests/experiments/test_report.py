"""The report says what its story holds, needs nothing else, and says where the learned policy does not win."""

import re
from dataclasses import replace

import pytest

from flyball.experiments import charts, report
from flyball.experiments.story import load_story, save_story
from flyball.fleet.errors import BadInput
from flyball.fleet.plan import Reason


@pytest.fixture(scope="module")
def rendered(story_of) -> str:
    return report.render(story_of({"demo": 0.03}))


def test_report_is_one_file_without_scripts_or_outside_references(story_of, tmp_path):
    """Nothing is loaded from anywhere: no script, font, image, link or style sheet of its own."""
    report.write_report(tmp_path / "r.html", story_of({"demo": 0.03}))
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in text and "<link" not in text and "<img" not in text and "@import" not in text
    outside = re.findall(r'(?:href|src)="(?!#)([^"]+)"', text)
    assert outside == []
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_report_has_every_section(story_of, rendered):
    """All charts and the table are there, the learning curve only where something was trained."""
    text = rendered
    for title in (
        "Power against the limit",
        "What the watts bought",
        "Latency against the targets",
        "Caps and servers by stage",
        "What the arbiter refused",
        "The honest table",
        "How it learned",
        "How this was made",
    ):
        assert f"<h2>{title}</h2>" in text
    assert text.count("<svg") == 7
    assert "How it learned" not in report.render(story_of({"demo": 0.03}, training=None))


def test_report_says_that_it_was_measured_in_the_plant(rendered):
    """Nobody may take a simulated figure for a measured one; hashes and commands stand beside it."""
    text = rendered
    assert "Measured in the plant" in text and "not on hardware" in text
    assert "flyball demo --out out/demo" in text and "0123456789abcdef" in text


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ({"demo": 0.03, "bursty": 0.05}, "served 3.0 to 5.0 % more tokens per megawatt"),
        ({"demo": 0.03, "bursty": -0.05}, "in 1 of 2 scenarios, fewer in 1"),
        ({"demo": 0.03, "bursty": 0.0}, "no clear difference in 1"),
        (
            {"demo": -0.03, "bursty": -0.05},
            "did worse than the best tuned baseline in all 2 scenarios: keep the baseline",
        ),
        ({"demo": -0.03, "bursty": 0.001}, "did not clearly beat the best tuned baseline"),
    ],
)
def test_headline_follows_the_intervals(story_of, gains, said):
    """A gain counts only where its interval excludes zero, and a loss is said as plainly as a gain."""
    assert said in report.headline(story_of(gains))


def test_baselines_are_called_tuned_only_where_they_are(story_of):
    """Without tuned constants the comparison is with defaults, and says so."""
    story = story_of({"demo": 0.03})
    assert "best tuned baseline" in report.headline(story)
    assert "(not tuned)" in report.headline(replace(story, made={**story.made, "is_tuned": False}))


def test_table_section_names_the_scenarios_that_are_lost(story_of):
    """Where the learned policy does not win, the report says so in words."""
    text = report.render(story_of({"demo": 0.03, "bursty": -0.05, "steady": 0.0}))
    assert "wins in demo; shows no clear difference in steady; loses in bursty" in text


def test_policy_that_failed_its_gate_is_labelled(story_of):
    """A policy that would not be shipped is shown with a warning."""
    story = story_of({"demo": -0.03})
    failed = replace(story, card={**story.card, "run": {"passed": False, "validation_gain": -0.01}})
    assert "failed its gate" in report.render(failed)
    assert report.warnings(story) == []


def test_baseline_that_beats_the_chosen_one_is_named(story_of, evaluation_row):
    """The baseline was chosen on validation; where another one is better on this load, the first lines say so."""
    story = story_of({"demo": 0.03})
    rows = [*story.evaluation["rows"], evaluation_row("demo", "proportional", 0.05)]
    assert "proportional in demo (+5.0 %)" in " ".join(report.warnings(replace(story, evaluation={"rows": rows})))


def test_violation_is_never_hidden(story_of, evaluation_row):
    """One watt-second above a limit in force, of any policy, is in the warnings; the policy's own in the headline."""
    story = story_of({"demo": 0.03})
    rows = [*story.evaluation["rows"], evaluation_row("demo", "uniform", -0.1, budget_violation_ws=1.0)]
    assert "limit in force was exceeded" in " ".join(report.warnings(replace(story, evaluation={"rows": rows})))
    rows[2] = evaluation_row("demo", story.policy, 0.03, budget_violation_ws=1.0)
    assert "were exceeded" in report.headline(replace(story, evaluation={"rows": rows}))


def test_report_without_a_learned_policy_shows_the_baseline(story_of):
    """A build that ships no policy still reports, with a note."""
    story = story_of({"demo": 0.03})
    bare = replace(
        story,
        policy="greedy",
        label="greedy baseline",
        is_learned=False,
        note="No learned policy",
        card=None,
        training=None,
        replays=story.replays[1:],
    )
    text = report.render(bare)
    assert "No learned policy" in text and "greedy" in report.headline(bare)


def test_names_from_files_are_escaped(story_of):
    """A load file's name cannot put markup into the report."""
    text = report.render(story_of({"demo": 0.03}, load="<b onload=x>.csv", load_scale=3.0))
    assert "<b onload" not in text and "&lt;b onload=x&gt;" in text


def test_file_loads_are_said_to_overlap(story_of):
    """Windows of one file are not independent, and the report says so with the scale."""
    text = report.render(story_of({"demo": 0.03}, load="trace.csv", load_scale=41.53))
    assert "overlap" in text and "superposed 41.5 times" in text


def test_every_reason_has_words_and_a_colour():
    """A reason that is added to the arbiter cannot be left out of the report."""
    assert set(charts.REASON_WORDS) == set(charts.REASON_COLOUR) == set(Reason) - {Reason.GRANTED}


def test_missing_values_are_dashes():
    """NaN, infinity and None are never printed as numbers."""
    assert {report.number(v) for v in (None, float("nan"), float("inf"))} == {"–"}
    assert report.signed(float("nan")) == report.percent(None) == "–"
    assert report.number(1234567.0) == "1,234,567" and report.number(0.012345) == "0.0123" and report.number(0) == "0"
    assert report.signed(-0.0123) == "−1.2 %"


def test_no_line_ends_between_a_number_and_its_unit():
    """Units are tied to the number before them, and nothing else is."""
    assert report.tied("85 % in 3 s, 20.1 kW s above 5 nodes") == "85\u00a0% in 3\u00a0s, 20.1\u00a0kW s above 5 nodes"


def test_same_story_gives_the_same_bytes(story_of, rendered):
    """A report can be compared: nothing in it depends on the clock or on chance."""
    assert report.render(story_of({"demo": 0.03})) == rendered


def test_story_survives_the_disk(story_of, rendered, tmp_path):
    """A report drawn anew from its story equals the first."""
    story = story_of({"demo": 0.03})
    save_story(story, tmp_path / "story.json")
    assert report.render(load_story(tmp_path / "story.json")) == rendered


def test_story_of_another_version_is_refused(tmp_path):
    """A file that is no story is one clear line."""
    (tmp_path / "story.json").write_text('{"format": "other"}')
    with pytest.raises(BadInput, match="not a story of this version"):
        load_story(tmp_path / "story.json")
    with pytest.raises(BadInput, match="make it with"):
        load_story(tmp_path / "missing.json")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_picture_is_made_by_a_command(story_of, tmp_path, suffix):
    """The README's figure and the report come from a finished demo by one command."""
    save_story(story_of({"demo": 0.03}), tmp_path / "story.json")
    picture = tmp_path / f"demo{suffix}"
    assert report.main([str(tmp_path), "--picture", str(picture)]) == 0
    assert picture.stat().st_size > 1000 and (tmp_path / "report.html").exists()
    assert report.main([str(tmp_path / "missing")]) == 2
