"""Leaderboard: what a submission is, what the check catches, what a score means."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from flyball.cli import main
from flyball.experiments.leaderboard.board import FIRST_SEED, _overall, rank
from flyball.experiments.leaderboard.card import Card, CardError, read_card
from flyball.experiments.leaderboard.check import check
from flyball.experiments.leaderboard.score import Windows, iqm, score
from flyball.fleet.errors import FlyballError

CARD = """
name = "mine"
authors = "someone"
track = "bids"
policies = [{policies}]
"""

POLICIES = '''
import time

import numpy as np

from flyball.fleet.bids import Bids


class Constant:
    """Bids the same at every decision, after doing something to it."""

    def __init__(self, fleet, spoil=lambda bids: bids):
        self.fleet, self.spoil, self.name = fleet, spoil, "constant"

    def start(self, batch):
        return None

    def bid(self, snapshot, observation, memory):
        bids = Bids.neutral(snapshot.batch, self.fleet.pools, len(self.fleet.nodes))
        return self.spoil(bids), memory


def _nan(bids):
    bids.pool[:] = np.nan
    return bids


def _slow(bids):
    time.sleep(0.02)
    return bids


def _random(bids):
    bids.pool[:] = np.random.default_rng().uniform(-1, 1, bids.pool.shape)
    return bids


def _crash(bids):
    import os

    os._exit(3)


def good(fleet):
    return Constant(fleet)


def not_finite(fleet):
    return Constant(fleet, _nan)


def slow(fleet):
    return Constant(fleet, _slow)


def moody(fleet):
    return Constant(fleet, _random)


def deadly(fleet):
    return Constant(fleet, _crash)
'''


def _card(tmp_path, *policies, **changes):
    text = CARD.format(policies=", ".join(f'"{p}"' for p in policies))
    for key, value in changes.items():
        text = text.replace(f'{key} = "bids"', f"{key} = {value}")
    path = tmp_path / "card.toml"
    path.write_text(text)
    return path


def test_cards_say_what_to_change(tmp_path):
    """Too few seeds, unknown tracks, missing files and malformed entry points are each refused in one line."""
    five = [f"submitted:seed{i}" for i in range(5)]
    assert read_card(_card(tmp_path, *five)).policies == tuple(five)
    for policies, changes, words in (
        (five[:4], {}, "at least 5"),
        (five, {"track": '"oracle"'}, "bids or planner"),
        ([*five[:4], "seed.onnx"], {}, "no file 'seed.onnx'"),
        ([*five[:4], "nothing"], {}, "package.module:make"),
        ([*five, five[0]], {}, "named twice"),
    ):
        with pytest.raises(CardError, match=words):
            read_card(_card(tmp_path, *policies, **changes))


def test_check_tells_good_policies_from_bad_ones(tmp_path):
    """NaN bids, slow decisions, moods and a process that dies are each found, and do not spoil the others."""
    (tmp_path / "submitted.py").write_text(POLICIES)
    names = ("good", "not_finite", "slow", "moody", "deadly")
    card = read_card(_card(tmp_path, *(f"submitted:{n}" for n in names)))
    found = dict(zip(names, check(card, tmp_path), strict=True))
    assert found["good"].failures == ()
    for name, words in (
        ("not_finite", "not finite"),
        ("slow", "limit is 10 ms"),
        ("moody", "differently"),
        ("deadly", "without an answer"),
    ):
        assert any(words in failure for failure in found[name].failures), (name, found[name])


def _windows(goodput, attainment=0.9, violation_ws=0.0):
    goodput = np.atleast_2d(np.asarray(goodput, float))
    return Windows(goodput, np.full_like(goodput, attainment), np.full_like(goodput, violation_ws))


def test_score_is_the_share_of_the_way_to_the_bound():
    """The static table scores 0, the bound 100, half-way 50, and the interval holds the score."""
    rng = np.random.default_rng(0)
    static = 1000.0 + rng.normal(0, 5, 40)
    bound = static + 100.0
    for share in (0.0, 0.5, 1.0):
        policy = _windows(np.stack([static + 100.0 * share] * 5))
        found = score(policy, _windows(static), _windows(bound))
        assert found.score == pytest.approx(100 * share)
        assert found.ci95[0] <= found.score + 1e-9 and found.ci95[1] >= found.score - 1e-9


def test_families_are_lost_for_violations_and_attainment():
    """One window above a limit in force, or a point and more of attainment, leaves no score."""
    static, bound = _windows([1000.0] * 10), _windows([1100.0] * 10)
    assert score(_windows([1090.0] * 10, violation_ws=1.0), static, bound).score is None
    assert "attainment" in score(_windows([1090.0] * 10, attainment=0.88), static, bound).reason
    assert score(_windows([1090.0] * 10), static, _windows([1010.0] * 10)).score is None


def test_interquartile_mean_ignores_the_tails():
    """A quarter of windows at either end does not move it; of four values it is the mean of the middle two."""
    assert iqm(np.array([-1e9, 1.0, 3.0, 1e9])) == pytest.approx(2.0)
    assert iqm(np.arange(10.0)) == pytest.approx(4.5)


def test_submit_answers_in_json_and_by_its_exit_code(tmp_path):
    """`flyball submit --check` exits 0 for what passed, 1 for what did not, 2 for a card it cannot read."""
    (tmp_path / "submitted.py").write_text(POLICIES + "\n\ngood1 = good2 = good3 = good4 = good\n")
    path = _card(tmp_path, "submitted:good", *(f"submitted:good{i}" for i in range(1, 5)))
    done = CliRunner().invoke(main, ["submit", str(path), "--check", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["passed"] is True
    assert CliRunner().invoke(main, ["submit", str(path)]).exit_code == 2
    path.write_text(path.read_text().replace("submitted:good4", "submitted:not_there"))
    assert CliRunner().invoke(main, ["submit", str(path), "--check"]).exit_code == 1


@pytest.fixture(scope="module")
def ranking(tmp_path_factory):
    """Two submissions of entry points in modules of one name: one bids neutrally, one spends on decode alone."""
    cards = []
    for name, watts in (("plain", 0.0), ("lopsided", 1.0)):
        folder = tmp_path_factory.mktemp(name)
        makers = "".join(
            f"\n\ndef seed{i}(fleet):\n    return Constant(fleet, lambda b: (b.pool.__setitem__("
            f"(slice(None), 1, 0), {watts}), b)[1])\n"
            for i in range(5)
        )
        (folder / "submitted.py").write_text(POLICIES + makers)
        path = _card(folder, *(f"submitted:seed{i}" for i in range(5)))
        path.write_text(path.read_text().replace('"mine"', f'"{name}"'))
        cards.append(path)
    short = ("seconds=120", "warmup_s=30")
    return cards, rank(cards, seeds=3, scenarios=("curtailment", "bursty"), overrides=short)


def test_ranking_scores_every_card_in_every_family(ranking):
    """A row per card and family with its score or the reason why not, and one overall line per card, best first."""
    _, result = ranking
    assert [(r["name"], r["scenario"]) for r in result["rows"]] == [
        (name, scenario) for name in ("plain", "lopsided") for scenario in ("curtailment", "bursty")
    ]
    for row in result["rows"]:
        assert row["bound"] >= row["static"] and (row["score"] is None) == bool(row["reason"])
    assert [row["rank"] for row in result["overall"]] == [1, 2]
    assert "clairvoyant" in result["reference"] and result["block"] == "validation"


def test_cards_do_not_see_each_others_modules(ranking):
    """Two submissions may each bring a module `submitted`: each is scored by its own."""
    _, result = ranking
    plain, lopsided = ([r["goodput"] for r in result["rows"] if r["name"] == n] for n in ("plain", "lopsided"))
    assert plain != lopsided


@pytest.mark.parametrize(("maker", "says"), [("raises", "ZeroDivisionError"), ("deadly", "died")])
def test_submitted_code_that_fails_ends_the_ranking_with_one_error(tmp_path, maker, says):
    """An exception of any kind, and the death of its process, are told by the policy's name, not by a traceback."""
    broken = "\n\ndef raises(fleet):\n    return Constant(fleet, lambda bids: 1 / 0)\n"
    good = "\n\ngood1 = good2 = good3 = good4 = good\n"
    (tmp_path / "submitted.py").write_text(POLICIES + broken + good)
    card = _card(tmp_path, f"submitted:{maker}", *(f"submitted:good{i}" for i in range(1, 5)))
    with pytest.raises(FlyballError, match=says):
        rank([card], seeds=1, scenarios=("steady",), overrides=("seconds=60", "warmup_s=10"))


def test_lost_families_count_nothing_and_small_gaps_do_not_count():
    """Overall is the mean over families with a distance to the bound; what was lost there counts 0 for the card."""
    card = Card("mine", "someone", "bids", ("a.onnx",))
    row = {"name": "mine", "is_counted": True}
    rows = [{**row, "score": 80.0}, {**row, "score": None}, {**row, "score": 70.0, "is_counted": False}]
    assert _overall([(card, None)], rows)[0] | {"score": 40.0, "families": 2} == _overall([(card, None)], rows)[0]


def test_public_windows_are_nobody_elses():
    """Neither tuning nor the gate of training chose by the windows that score."""
    from flyball.experiments.evaluate import TEST_SEED
    from flyball.experiments.tune import VALIDATION_SEED, WINDOWS

    assert VALIDATION_SEED + WINDOWS < FIRST_SEED and FIRST_SEED + 10_000 < TEST_SEED


def test_leaderboard_refuses_what_it_cannot_rank(tmp_path):
    """No windows, or two cards of one name: exit 2 and one line."""
    (tmp_path / "submitted.py").write_text(POLICIES)
    path = str(_card(tmp_path, *(f"submitted:seed{i}" for i in range(5))))
    for args, says in (((path, "--seeds", "0"), "at least 1"), ((path, path), "two cards are named")):
        done = CliRunner().invoke(main, ["leaderboard", *args])
        assert done.exit_code == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1
