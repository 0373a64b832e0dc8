"""The results page is made of rows alone, and says where a policy does not win."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from flyball.cli import main
from flyball.experiments.results.page import page, write_page

COMMAND = (
    "evaluate", "--scenario", "bursty", "diurnal", "--policy", "champion", "--policy", "static", "--seeds", "8",
    "--set", "seconds=90", "--set", "warmup_s=30", "--ablate", "--jobs", "1",
)  # fmt: skip


DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page made by the command line: its path, and what the command printed."""
    path = tmp_path_factory.mktemp("docs") / "results.md"
    done = CliRunner().invoke(main, [*COMMAND, "--page", str(path), "--json"])
    assert done.exit_code == 0, done.output
    return path, json.loads(done.stdout)


def test_page_has_a_table_per_scenario_and_the_command_above(made):
    """Every row's goodput stands in the table of its scenario, below the command that made it."""
    path, result = made
    text = path.read_text()
    assert text.index(result["command"]) < text.index("### bursty") < text.index("### diurnal")
    for row in result["rows"]:
        if not row["ablation"]:
            assert f"{row['kpis']['goodput_tok_s_per_mw']['mean']:,.0f}" in text
    assert result["page"] == str(path)


def test_page_shows_its_figure_and_links_its_rows(made):
    """Relative links lead somewhere, and the figure is a picture."""
    path, _ = made
    links = [t for t in re.findall(r"\]\(([^)#]+)\)", path.read_text()) if "://" not in t]
    assert len(links) == 2 and all((path.parent / t).exists() for t in links)
    assert (path.parent / "results" / "forest.png").read_bytes().startswith(b"\x89PNG")


def test_page_comes_again_from_its_rows(made, tmp_path):
    """`python -m flyball.experiments.results` writes the same page from the rows beside it: no hand in it."""
    path, _ = made
    again = tmp_path / "results.md"
    command = [sys.executable, "-m", "flyball.experiments.results", str(path.parent / "results" / "rows.json")]
    subprocess.run([*command, str(again)], check=True, capture_output=True)
    assert again.read_text() == path.read_text()
    for name in ("rows.json", "forest.png"):
        assert (tmp_path / "results" / name).read_bytes() == (path.parent / "results" / name).read_bytes()


def test_page_says_where_the_policy_does_not_win(made):
    """Every comparison of a policy file that is not superior has its line with numbers."""
    path, result = made
    text = path.read_text()
    section = text[text.index("## Where it does not win") :] if "## Where it does not win" in text else ""
    mine = [r for r in result["rows"] if r["is_learned"] and not r["ablation"]]
    lost = [r for r in mine if r["verdict"] != "superior" or r["vs_strongest_baseline"]["diff"] < 0]
    assert section.count("\n- champion in ") == len(lost)


def test_page_marks_families_that_training_never_saw(made):
    """The champion was not trained on `diurnal`: the matrix marks that cell, and no other."""
    path, result = made
    assert "diurnal" not in next(r for r in result["rows"] if r["policy"] == "champion")["trained_on"]
    text = path.read_text()
    matrix = text[text.index("## Across families") : text.index("## Without one bid channel")]
    line = next(x for x in matrix.splitlines() if x.startswith("| champion |"))
    assert [("◇" in cell) for cell in line.split("|")[2:4]] == [False, True]


def test_page_tells_budgets(made):
    """CPU of tuning by baseline, and what the policy file's card says of its training."""
    path, result = made
    text = path.read_text()
    judged = {row["policy"] for row in result["rows"] if not row["is_learned"]}
    assert {t["policy"] for t in result["budgets"]["tuning"]} == judged
    assert f"{result['budgets']['training'][0]['steps']:,}" in text[text.index("## Budgets") :]


def test_page_owns_up_where_another_baseline_did_better(made):
    """The best baseline was chosen on other windows: one that overtook it on these is named."""
    path, result = made
    ahead = {r["scenario"] for r in result["rows"] if r["policy"] == "static" and r["vs_best_baseline"]["diff"] > 0}
    assert set(re.findall(r"static in ([a-z]+)", path.read_text())) == ahead
    strongest = {r["scenario"]: r["vs_strongest_baseline"]["baseline"] for r in result["rows"]}
    assert {s for s, name in strongest.items() if name == "static"} == ahead


def test_page_needs_a_markdown_file():
    """Another suffix is refused before any work."""
    done = CliRunner().invoke(main, [*COMMAND, "--page", "results.html"])
    assert done.exit_code == 2 and "Markdown" in done.stderr


def test_page_of_baselines_alone_is_a_page(tmp_path):
    """Without policy files, and with a single policy, there is less to say and nothing breaks."""
    args = ("evaluate", "--scenario", "bursty", "--policy", "greedy", "--seeds", "1", "--set", "seconds=90", "--json")
    result = json.loads(CliRunner().invoke(main, args).stdout)
    assert "## By scenario" in write_page(result, tmp_path / "alone.md").read_text()
    assert "forest.png" not in page(result, "alone")


def test_the_page_that_ships_is_made_of_its_rows():
    """Nobody edited docs/results.md: it is what its rows give."""
    if not (DOCS / "results.md").exists():
        pytest.skip("docs/results.md is not written yet: flyball evaluate ... --page docs/results.md")
    rows = json.loads((DOCS / "results" / "rows.json").read_text())
    assert (DOCS / "results.md").read_text() == page(rows, "results")
