"""Clairvoyant: the rollout with the true future, true parameters and every fault to come.

A reference for the headroom that is left, not a policy that can exist. It searches few plans, so that what it reaches
is a lower bound of the true optimum: nothing proves that it cannot be beaten.
"""

from dataclasses import dataclass

from .rollout import Rollout


@dataclass(frozen=True)
class Clairvoyant(Rollout):
    """The best of a few perturbed greedy plans over what will really happen; constants as in `Rollout`."""

    horizon_s: float = 150.0
    rounds: int = 3
    margin: float = 0.0
    name: str = "clairvoyant"

    def _futures(self, time_s, heard, work):
        return None
