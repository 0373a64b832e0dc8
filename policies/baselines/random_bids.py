"""Random: uniform bids on every channel. What the arbiter must survive, and the floor of every comparison."""

from dataclasses import dataclass

import numpy as np

from ...fleet.bids import Bids
from ...fleet.topology import Fleet


@dataclass(frozen=True)
class Random:
    """Independent uniform bids; memory is the generators' counter per environment."""

    fleet: Fleet
    name: str = "random"
    seed: int = 0

    def start(self, batch):
        return np.zeros(batch, np.int64)

    def bid(self, snapshot, observation, memory):
        bids = Bids.neutral(snapshot.batch, self.fleet.pools, len(self.fleet.nodes))
        for b in range(snapshot.batch):
            # one generator per environment and decision: a row's bids do not depend on the batch it is in
            rng = np.random.default_rng([self.seed, int(memory[b]), int(snapshot.time_s[b] * 1000)])
            for array in (bids.pool, bids.node, bids.fleet):
                array[b] = rng.uniform(-1, 1, array[b].shape)
        return bids, memory + 1
