"""Pages of scenarios: current, complete, and light."""

import re
from pathlib import Path

import pytest

from flyball.envs.scenario import list_scenarios, load_scenario
from flyball.experiments.scenario_pages import index_page, pages, scenario_page, write
from flyball.experiments.scenario_pictures import MAX_BYTES, draw

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "scenarios"


def test_pages_are_what_the_scenario_files_say():
    """Text is compared, pictures are not; if it fails: python -m flyball.experiments.scenario_pages docs/scenarios."""
    for name, text in pages(FOLDER).items():
        assert (FOLDER / name).read_text() == text, f"{name} is out of date"
    assert {p.stem for p in FOLDER.glob("*.md")} == {"README", *list_scenarios()}


def test_pictures_are_of_scenarios_and_light():
    """No picture is left over from a scenario that is gone, and none is above 60 kB."""
    for path in FOLDER.glob("*.png"):
        assert path.stem in list_scenarios() and path.stat().st_size < MAX_BYTES


@pytest.mark.parametrize("name", list_scenarios())
def test_a_page_says_what_happens_and_what_is_hard(name):
    """Prose, every event, every range and every service of the scenario are on its page."""
    s = load_scenario(name)
    text = scenario_page(s)
    assert s.hard in text and s.good_controller in text and s.summary in text
    assert all(f"`{parameter}`" in text for parameter in s.plant)
    assert all(f"| {service.name} |" in text for service in s.fleet.services)
    assert len(re.findall(r"^\| [\d.]+ (?:to [\d.]+ )?s \|", text, re.M)) == len(s.events)
    assert "None" not in text


def test_the_index_links_every_page():
    """Families and one line each."""
    text = index_page([load_scenario(name) for name in list_scenarios()])
    assert set(re.findall(r"\]\((.+?)\.md\)", text)) == set(list_scenarios())


def test_a_picture_is_drawn_and_its_page_shows_it(tmp_path):
    """A page links its picture only where there is one."""
    scenario = load_scenario("training-ballast")
    assert "png" not in scenario_page(scenario)
    path = draw(scenario, tmp_path / "training-ballast.png")
    assert 5_000 < path.stat().st_size < MAX_BYTES
    write(tmp_path)
    assert "training-ballast.png" in (tmp_path / "training-ballast.md").read_text()
    assert "png" not in (tmp_path / "steady.md").read_text()
