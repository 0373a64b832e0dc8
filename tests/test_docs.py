"""What the documents promise exists."""

import re
from pathlib import Path

import pytest

from flyball.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_paths_and_links_lead_somewhere(document):
    """Every relative link and every path of ours that a document names exists."""
    text = document.read_text()
    links = [t for t in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in t]
    missing = [t for t in links if not (document.parent / t).exists()]
    named = re.findall(r"`((?:tests|envs|fleet|policies|training|serving|actuators|experiments|docs)/[\w./-]+)`", text)
    missing += [t for t in named if not (ROOT / t).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_commands_are_real(document):
    """Every `flyball VERB` that a document shows is a verb of the command line."""
    shown = set(re.findall(r"^flyball ([a-z]+)", document.read_text(), re.M))
    shown |= set(re.findall(r"`flyball ([a-z]+)", document.read_text()))
    assert shown <= set(main.commands)


def test_no_document_or_code_names_this_machine():
    """Nothing in the tree carries a path of the machine it was written on."""
    pattern = re.compile(r"(^|[^A-Za-z0-9_.])/(w" + r"ork|opt/wh" + r"eels|ro" + r"ot/)")
    folders = ("fleet", "envs", "policies", "training", "serving", "actuators", "experiments", "docs", "tests")
    files = [f for d in folders for f in (ROOT / d).rglob("*") if f.suffix in (".py", ".md", ".toml", ".j2", ".html")]
    bad = [str(f.relative_to(ROOT)) for f in [*files, ROOT / "README.md"] if pattern.search(f.read_text())]
    assert not bad


def test_reference_pages_are_what_the_code_says():
    """Generated pages are current; if not: make docs."""
    from flyball.experiments.reference import pages

    for name, text in pages().items():
        assert (ROOT / "docs" / "reference" / name).read_text() == text, f"{name} is out of date; run: make docs"
