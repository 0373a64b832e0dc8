"""Every snippet of the environments' quickstart runs."""

import re
import warnings
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "envs" / "index.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(), flags=re.M)[1:]
SNIPPETS = {s.split("\n")[0]: re.findall(r"^```python\n(.*?)^```", s, re.M | re.S) for s in SECTIONS}
NEEDS = {"Stable-Baselines3, unchanged": "stable_baselines3", "Datasets": "minari"}


@pytest.mark.parametrize("title", [t for t, s in SNIPPETS.items() if s])
def test_snippets_run(title, tmp_path, monkeypatch):
    """The snippets of a section run one after another in a fresh folder, with nothing imported but what they import."""
    if title in NEEDS:
        pytest.importorskip(NEEDS[title], reason="needs an extra")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec("import gymnasium as gym", names)  # the first snippet's import, which the page does not repeat
    with warnings.catch_warnings():
        # Gymnasium's passive checker: our box is [-5, 5] although no feature reaches its ends
        warnings.filterwarnings("ignore", message=".*Box.*", category=UserWarning)
        for snippet in SNIPPETS[title]:
            exec(compile(snippet, f"{PAGE.name}: {title}", "exec"), names)


def test_every_section_is_covered():
    """The page shows what a newcomer looks for."""
    shown = " ".join(SNIPPETS)
    for word in ("Make", "Bids", "Stable", "Vector", "Seeds", "Wrappers", "Pictures", "ahead", "Datasets"):
        assert word in shown


@pytest.mark.parametrize("page", sorted(PAGE.parent.glob("*.md")), ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    """Every relative link and picture of the environments' pages exists."""
    links = [t for t in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in t]
    assert not [t for t in links if not (page.parent / t).exists()]
