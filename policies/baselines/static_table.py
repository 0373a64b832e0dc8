"""Static stage table: one cap per stage and a fixed split of nodes, the strongest simple practice.

A tuned static pair of caps takes most of what dynamic control can take in steady state (MODEL.md section 10): the
baseline to beat.
"""

from dataclasses import dataclass

import numpy as np

from ...fleet.tables import PREFILL, STAGES
from ...fleet.topology import Fleet
from ..pools import pool_bids, pool_view, split_bids, watt_bids


@dataclass(frozen=True)
class StaticTable:
    """Caps in a fixed ratio between the stages, nodes in a fixed split.

    Attributes:
        prefill_watts: Weight of a prefill node's cap relative to a decode node's.
        prefill_nodes: Share of a service's nodes that prefill; negative keeps the site's split.
    """

    fleet: Fleet
    prefill_watts: float = 1.2
    prefill_nodes: float = -1.0
    name: str = "static"

    def start(self, batch):
        return None

    def bid(self, snapshot, observation, memory):
        view = pool_view(self.fleet, snapshot)
        stage = np.arange(self.fleet.pools) % STAGES
        want_w = view.cap_max_w * np.where(stage == PREFILL, self.prefill_watts, 1.0)
        nodes = split_bids(self.fleet, view, self.prefill_nodes) if self.prefill_nodes >= 0 else None
        return pool_bids(self.fleet, snapshot, watt_bids(want_w, view.demand_w), nodes), None
