"""Intervals, bounds and tests say what they should of values made by hand."""

import math

import numpy as np
import pytest

from flyball.experiments.statistics import bounds, holm, interval, paired, resampled_means, share_of_gap, sign_flip


def test_interval_covers_the_mean_and_leaves_out_nan():
    """The bootstrap interval holds the mean, shrinks with windows, and NaN windows do not poison it."""
    values = np.random.default_rng(0).normal(10, 2, 64)
    mean, (low, high) = interval(values)
    assert low < mean < high and high - low < np.ptp(values)
    assert interval(np.append(values, np.nan)) == (mean, [low, high])
    assert all(math.isnan(v) for v in (interval([])[0], *interval([])[1]))
    assert interval([3.0]) == (3.0, [3.0, 3.0])


def test_interval_is_as_wide_as_theory_says():
    """Of many normal windows it is 2 x 1.96 standard errors wide, within the noise of the draws."""
    values = np.random.default_rng(1).normal(0, 1, 400)
    _, (low, high) = interval(values)
    assert (high - low) / (2 * 1.96 * values.std() / 20) == pytest.approx(1, abs=0.1)


def test_paired_difference_ignores_what_windows_have_in_common():
    """A constant gain over very different windows has a narrow interval around it."""
    base = np.array([1.0, 100.0, 1000.0, 5000.0])
    diff, (low, high) = paired(base + 10, base)
    assert math.isclose(diff, 10 / base.mean()) and math.isclose(low, diff) and math.isclose(high, diff)
    assert math.isnan(paired([1.0], [0.0])[0])


def test_training_seeds_widen_the_interval():
    """Where training seeds differ and windows do not, windows alone would see nothing: seeds are drawn too."""
    base = np.full((1, 40), 100.0)
    alike = np.full((5, 40), 110.0)
    apart = alike + np.array([-8.0, -4.0, 0.0, 4.0, 8.0])[:, None]
    assert paired(alike, base) == (pytest.approx(0.1), [pytest.approx(0.1)] * 2)
    diff, (low, high) = paired(apart, base)
    assert diff == pytest.approx(0.1) and low < 0.07 and high > 0.13
    pooled = paired(apart.mean(0), base[0])[1]
    assert pooled[1] - pooled[0] < 1e-9 < high - low


def test_what_is_drawn_together_stays_paired():
    """Tables in leading axes meet the same windows and seeds in every draw."""
    table = np.random.default_rng(2).normal(size=(3, 20))
    a, b = resampled_means(np.stack([table, 2 * table + 1]))
    assert np.allclose(b, 2 * a + 1) and a.std() > 0


def test_holm_on_known_p_values():
    """The example of Holm's step-down: each p times the number of hypotheses left, never decreasing, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03] and holm([]) == []


def test_sign_flips_of_few_windows_are_counted_exactly():
    """Of four gains one pattern of sixteen is as good; of 40 the p-value is as small as the patterns tried allow."""
    assert sign_flip([1.0, 2.0, 3.0, 4.0]) == 1 / 16
    assert sign_flip([-1.0, -2.0]) == 1.0
    assert sign_flip([1.0, -1.0]) == 0.75
    assert sign_flip(np.ones(40)) == pytest.approx(1 / 8193)


def test_two_lucky_windows_prove_nothing():
    """A bootstrap of two equal gains is certain; the p-value is not, for sign flips count windows."""
    found = bounds([11.0, 11.0], [10.0, 10.0], is_relative=True)
    assert found.mean == pytest.approx(0.1) and found.p == 0.25


def test_false_alarms_are_as_rare_as_promised():
    """Where nothing differs, about one in twenty p-values lies below 0.05."""
    rng = np.random.default_rng(3)
    alarms = [bounds(rng.normal(0, 1, 40), np.zeros(40), False, i).p < 0.05 for i in range(120)]
    assert 0 < np.mean(alarms) < 0.1


def test_share_of_gap_is_a_ratio_of_means():
    """Half-way in every window is 0.5 with no width; the base is at 0, the reference at 1, and no gap has no share."""
    base = np.random.default_rng(4).uniform(50, 150, 40)
    reference = base + np.random.default_rng(5).uniform(1, 20, 40)
    for share in (0.0, 0.5, 1.0):
        value, ci = share_of_gap(base + share * (reference - base), base, reference)
        assert value == pytest.approx(share) and ci == [pytest.approx(share)] * 2
    assert math.isnan(share_of_gap(base + 1, base, base)[0])
