"""Clairvoyant: the rollout with the true future, true parameters and every fault to come.

Rolls are exact here. Where they reach the end of the episode, which is what they are judged by, the plan in force is
only ever left for one that ends better: the clairvoyant is never worse than the best member of its portfolio, picked
in hindsight. A reference for the headroom that is left, not a policy that can exist. It searches few plans, so that
what it reaches is a lower bound of the true optimum: nothing proves that it cannot be beaten.
"""

from dataclasses import dataclass

import numpy as np

from .rollout import Rollout


@dataclass(frozen=True)
class Clairvoyant(Rollout):
    """The best of a portfolio and of perturbations around it over what will really happen; constants as in `Rollout`.

    Tokens in flight count for nothing where a roll ends with the episode: they will never be served.
    """

    horizon_s: float = 1800.0
    hold_s: float = 30.0
    sweep_s: float = 240.0
    screen_s: float = 120.0
    rounds: float = 2
    margin: float = 0.0
    name: str = "clairvoyant"

    def _futures(self, time_s, heard, work, steps):
        return None

    def _value(self, outcome):
        return outcome.judged_tok + np.where(outcome.is_over, 0.0, self.terminal * outcome.flight_tok)
