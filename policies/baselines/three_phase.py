"""Three-phase: requests by priority with the least deviation, then excess to active pools, then to idle ones.

A re-implementation at pool level of what is documented of nvPAX (arXiv 2605.01837). Each phase minimises the sum of
squared relative shortfalls, weighted by watts, under the budget. With one budget that has a closed form, so no solver
is needed: every pool of the phase gets the same share of the way from what it has to what it may have. Limits deeper
in the power tree are the arbiter's, through which every policy goes. Demand is what is requested.
"""

from dataclasses import dataclass

import numpy as np

from ...fleet.tables import DECODE, STAGES
from ...fleet.topology import Fleet
from ..pools import gpu_budget_w, pool_bids, pool_view, split_bids, watt_bids
from ..signals import read_signals


@dataclass(frozen=True)
class ThreePhase:
    """Requests first, then excess.

    Attributes:
        request_frac: What a pool requests / its demand.
        decode_request: The same of decode, relative to prefill's.
        active_above: Utilisation above which a pool counts as active.
        prefill_nodes: Share of a service's nodes that prefill; negative keeps the site's split.
    """

    fleet: Fleet
    request_frac: float = 0.9
    decode_request: float = 1.0
    active_above: float = 0.05
    prefill_nodes: float = -1.0
    name: str = "three-phase"

    def start(self, batch):
        return None

    def bid(self, snapshot, observation, memory):
        view = pool_view(self.fleet, snapshot)
        low_w, high_w = self._range_w(view)
        stage = np.arange(self.fleet.pools) % STAGES
        frac = self.request_frac * np.where(stage == DECODE, self.decode_request, 1.0)
        request_w = np.clip(view.demand_w * frac, low_w, high_w)
        cap_w = low_w.copy()
        left_w = np.maximum(gpu_budget_w(self.fleet, snapshot) - (view.nodes * low_w).sum(-1), 0.0)
        priority = np.repeat(self.fleet.service_static["priority"], STAGES)
        for level in np.unique(priority)[::-1]:
            cap_w, left_w = _raise(cap_w, np.where(priority == level, request_w, cap_w), view.nodes, left_w)
        is_active = self._active(snapshot, observation)
        for here in (is_active, ~is_active):
            cap_w, left_w = _raise(cap_w, np.where(here, high_w, cap_w), view.nodes, left_w)
        nodes = split_bids(self.fleet, view, self.prefill_nodes) if self.prefill_nodes >= 0 else None
        return pool_bids(self.fleet, snapshot, watt_bids(cap_w, view.demand_w), nodes), None

    def _range_w(self, view):
        """Lowest and highest cap per node of every pool, shape (B, P)."""
        static = self.fleet.node_static
        low = np.zeros(self.fleet.pools)
        for pool in range(self.fleet.pools):
            rows = static[static["service"] == pool // STAGES]
            floor = rows["decode_floor_w" if pool % STAGES == DECODE else "cap_min_w"]
            low[pool] = floor.mean() if len(rows) else 1.0
        return np.broadcast_to(low, view.nodes.shape), np.maximum(view.cap_max_w, low)

    def _active(self, snapshot, observation):
        """Pools that work, shape (B, P)."""
        signals = read_signals(self.fleet, snapshot, observation)
        util = np.stack([signals.prefill_util, signals.decode_util], -1)
        return util.reshape(snapshot.batch, -1) > self.active_above


def _raise(cap_w, to_w, nodes, left_w):
    """Lead caps towards `to_w`, all by the same share, as far as the watts go; returns caps and watts left."""
    span_w = np.maximum(to_w - cap_w, 0.0)
    total_w = (nodes * span_w).sum(-1)
    share = np.minimum(left_w / np.maximum(total_w, 1e-9), 1.0)
    return cap_w + share[:, None] * span_w, np.maximum(left_w - total_w, 0.0)
