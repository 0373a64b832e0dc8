"""Bids: what a policy asks for. Zero everywhere is the neutral bid."""

from dataclasses import dataclass

import numpy as np

from .schema import FLEET_BIDS, NODE_BIDS, POOL_BIDS

WATTS_EXPONENT = 1.5
"""A watt bid b gives a pool the weight exp(WATTS_EXPONENT * b) * demand_w: a factor of 4.5 either way, more than
the 3.5 between the lowest and the highest legal cap of an H100, so that bids can express every split."""

NODES_EXPONENT = 0.7
"""A node bid b asks for exp(NODES_EXPONENT * b) times the pool's nodes: twice or half at the ends."""


@dataclass(frozen=True)
class Bids:
    """What a policy asks for, float32 in [-1, 1].

    Attributes:
        pool: (B, P, 3): watts, nodes, clock.
        node: (B, N, 2): drain, receive.
        fleet: (B, 1): spend (+) or save (-) the slack of the windows.
    """

    pool: np.ndarray
    node: np.ndarray
    fleet: np.ndarray

    @classmethod
    def neutral(cls, batch: int, pools: int, nodes: int) -> "Bids":
        return cls(
            np.zeros((batch, pools, len(POOL_BIDS)), np.float32),
            np.zeros((batch, nodes, len(NODE_BIDS)), np.float32),
            np.zeros((batch, len(FLEET_BIDS)), np.float32),
        )

    def clipped(self) -> "Bids":
        """NaN read as neutral, everything else clipped to [-1, 1]."""
        return Bids(
            *(np.clip(np.nan_to_num(a, nan=0.0), -1, 1).astype(np.float32) for a in (self.pool, self.node, self.fleet))
        )
