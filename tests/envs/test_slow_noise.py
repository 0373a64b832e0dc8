"""Slow noise is the recursion it says, for each environment by itself."""

import numpy as np
from numpy.testing import assert_array_equal

from flyball.envs.slow_noise import ornstein_uhlenbeck


def generators(count):
    """One generator per environment."""
    return [np.random.default_rng(seed) for seed in range(count)]


def test_each_value_keeps_a_share_of_the_last_one():
    """Bit for bit x[t] = keep x[t - 1] + fresh z[t], with the numbers of each environment's own generator."""
    shape, keep = (2, 40, 3), np.exp(-1.0 / 30.0)
    found = ornstein_uhlenbeck(generators(2), shape, 1.0, 30.0)
    for rng, rows in zip(generators(2), found, strict=True):
        z = rng.standard_normal((40, 3, 3))
        for t in range(1, 40):
            z[t] = keep * z[t - 1] + np.sqrt(1 - keep**2) * z[t]
        assert_array_equal(rows, z)


def test_noise_is_standard_and_forgets_at_the_rate_asked_for():
    """Variance 1, and a correlation of 1/e after the correlation time."""
    x = ornstein_uhlenbeck(generators(1), (1, 200_000, 1), 1.0, 20.0)[0, :, 0, :]
    assert abs(x.var() - 1.0) < 0.05
    assert abs((x[20:] * x[:-20]).mean() - np.exp(-1)) < 0.05
