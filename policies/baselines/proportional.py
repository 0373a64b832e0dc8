"""Proportional: watts in proportion to estimated demand; the neutral bid."""

from dataclasses import dataclass

from ...fleet.bids import Bids
from ...fleet.topology import Fleet


@dataclass(frozen=True)
class Proportional:
    """Bids nothing: the arbiter's own weights are demands."""

    fleet: Fleet
    name: str = "proportional"

    def start(self, batch):
        return None

    def bid(self, snapshot, observation, memory):
        return Bids.neutral(snapshot.batch, self.fleet.pools, len(self.fleet.nodes)), None
