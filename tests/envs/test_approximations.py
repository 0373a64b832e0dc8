"""Exponentials and logarithms without a call keep the errors that they state."""

import numpy as np

from flyball.envs.approximations import exp_of, log_of
from flyball.envs.compiled import kernel


@kernel
def _each(x, exps, logs):
    for i in range(len(x)):
        exps[i] = exp_of(x[i])
        logs[i] = log_of(exps[i])


def both(x):
    """exp_of(x), and log_of of that."""
    exps, logs = np.empty_like(x), np.empty_like(x)
    _each(x, exps, logs)
    return exps, logs


def test_exponentials_and_logarithms_are_within_their_errors():
    """Over all that a double holds: 1e-11 relative for exp, 2e-12 relative or 1e-12 for log."""
    x = np.concatenate([np.linspace(-699.0, 699.0, 20_001), np.linspace(-1.0, 1.0, 20_001)])
    exps, logs = both(x)
    assert (np.abs(exps / np.exp(x) - 1.0) < 1e-11).all()
    assert (np.abs(logs - np.log(exps)) < np.maximum(2e-12 * np.abs(np.log(exps)), 1e-12)).all()


def test_beyond_the_range_of_doubles_an_exponential_stays_finite():
    """No overflow and no zero: a density far below its peak is small, never a division by nothing."""
    exps, _ = both(np.array([-1e6, 1e6, -np.inf, np.inf]))
    assert (exps > 0.0).all() and np.isfinite(exps).all() and exps[0] < 1e-300 and exps[1] > 1e300
