"""Leaderboard: what a submission is, what the check catches, what a score means."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from flyball.cli import main
from flyball.experiments.leaderboard.card import CardError, read_card
from flyball.experiments.leaderboard.check import check
from flyball.experiments.leaderboard.score import Windows, iqm, score

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
