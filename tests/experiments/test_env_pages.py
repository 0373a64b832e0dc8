"""The environments' pages: current, and true of the real spaces."""

import inspect
import re
from pathlib import Path

import pytest

from flyball.envs.environments import ENVIRONMENTS
from flyball.experiments import env_pages
from flyball.fleet.schema import KINDS
from flyball.registry import make_env

DOCS = Path(__file__).resolve().parents[2] / "docs" / "envs"
SECTIONS = (
    "Description", "Action space", "Observation space", "Rewards", "Starting state", "Episode end", "Information",
    "Arguments", "Version history",
)  # fmt: skip


def tables(text):
    """Every table of a page as (head, rows)."""
    out = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.M):
        lines = [[c.strip() for c in line.strip().strip("|").split(" | ")] for line in block.strip().split("\n")]
        out.append((lines[0], lines[2:]))
    return out


def test_pages_are_what_the_classes_say():
    """Pages are current; if not: python -m flyball.experiments.env_pages docs/envs."""
    for name, text in env_pages.pages().items():
        message = f"{name} is out of date; run: python -m flyball.experiments.env_pages docs/envs"
        assert (DOCS / name).read_text() == text, message


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_a_class_docstring_is_its_page(env_id):
    """`help(env)` has every section with its marks filled, and the page has it whole."""
    text = inspect.getdoc(ENVIRONMENTS[env_id])
    assert re.findall(r"^## (.*)$", text, re.M) == list(SECTIONS)
    assert "<<" not in text
    assert text in env_pages.page(env_id)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_tables_match_the_real_spaces(env_id):
    """Features and ranges are the schema's, keys and shapes the Dict's, indices and sizes the boxes'."""
    text = env_pages.page(env_id)
    flat = make_env(env_id, scenario=env_pages.scenario_of(env_id))
    tokens = make_env(env_id, scenario=env_pages.scenario_of(env_id), obs="tokens")
    found = tables(text)
    kinds = ["pool", "node", "fleet"] if flat.core.has_nodes else ["pool", "fleet"]
    features = [rows for head, rows in found if head[0] == "column"]
    for kind, rows in zip(kinds, features, strict=True):
        want = [[str(i), f"`{f.name}`", f.unit, f"{f.low:g} to {f.high:g}"] for i, f in enumerate(KINDS[kind][0])]
        assert [r[:4] for r in rows] == want
    counts = {"P": flat.core.fleet.pools, "N": len(flat.core.fleet.nodes)}
    keys = next(rows for head, rows in found if head[0] == "key" and "shape" in head[1])
    assert {r[0].strip("`") for r in keys} == set(tokens.observation_space.spaces)
    for key, shape, _ in keys:
        words = re.match(r"\((.*)\) (\w+)", shape)
        sizes = tuple(counts.get(w) or int(w) for w in re.split(r", ?", words[1]) if w)
        space = tokens.observation_space[key.strip("`")]
        assert (sizes, words[2]) == (space.shape, space.dtype.name)
    ends = [rows[-1][0].split(" to ")[-1] for head, rows in found if head[0] == "index"]
    assert [int(e) + 1 for e in ends] == [flat.action_space.shape[0], flat.observation_space.shape[0]]
    for box, size in zip(
        re.findall(r"Box\(.*?\((.*?),\), float32\)", text), (flat.action_space, flat.observation_space), strict=True
    ):
        total = 0
        for term in box.split(" + "):
            number, _, letter = term.rpartition(" ")
            total += int(term) if term.isdigit() else int(number or 1) * counts[letter]
        assert (total,) == size.shape
    channels = next(rows for head, rows in found if head[1] == "channel")
    assert [r[1].strip("`") for r in channels] == list(dict.fromkeys(s.field.name for s in flat.action_slots()))


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_information_keys_are_those_of_a_step(env_id):
    """The keys that the page promises are those that reset, a step and the last step give."""
    rows = next(rows for head, rows in tables(env_pages.page(env_id)) if head[:2] == ["key", "when"])
    env = make_env(env_id, scenario="steady", overrides=("seconds=10", "warmup_s=0"))
    _, at_reset = env.reset(seed=1)
    *_, first = env.step(env.action_space.sample())
    *_, last = env.step(env.action_space.sample())
    promised = {when: {r[0].strip("`") for r in rows if r[1] == when} for when in ("step", "last step", "reset")}
    assert set(at_reset) == promised["reset"]
    assert set(first) == promised["step"]
    assert set(last) == promised["step"] | promised["last step"]
