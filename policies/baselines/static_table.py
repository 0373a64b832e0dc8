"""Static stage table: one cap per stage and a fixed split of nodes, the strongest simple practice.

A tuned static pair of caps takes most of what dynamic control can take in steady state (MODEL.md section 10): the
baseline to beat.
"""

from dataclasses import dataclass

import numpy as np

from ...fleet.bids import NODES_EXPONENT
from ...fleet.tables import DECODE, PREFILL, STAGES
from ...fleet.topology import Fleet
from ..pools import pool_bids, pool_view, watt_bids


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
        nodes = split_bids(view, self.prefill_nodes) if self.prefill_nodes >= 0 else None
        return pool_bids(self.fleet, snapshot, watt_bids(want_w, view.demand_w), nodes), None


def split_bids(view, prefill_share, gain: float = 1.0, deadband_nodes: float = 0.6) -> np.ndarray:
    """Node bids that move each service's split towards `prefill_share` of its serving and loading nodes.

    Args:
        view: A `PoolView`.
        prefill_share: Scalar, or shape (B, S).
        gain: 1 asks for the whole distance at once.
        deadband_nodes: Distances below this many nodes ask for nothing.

    Returns:
        Shape (B, P), in [-1, 1].
    """
    count = view.nodes + view.coming
    prefill, decode = count[:, PREFILL::STAGES], count[:, DECODE::STAGES]
    total = prefill + decode
    want = np.clip(np.asarray(prefill_share) * total, np.minimum(1.0, total), np.maximum(total - 1.0, 0.0))
    shift = np.where(np.abs(want - prefill) >= deadband_nodes, want - prefill, 0.0) * gain
    out = np.zeros_like(count)
    out[:, PREFILL::STAGES] = _log_bid(prefill, prefill + shift)
    out[:, DECODE::STAGES] = _log_bid(decode, decode - shift)
    return out


def _log_bid(have: np.ndarray, want: np.ndarray) -> np.ndarray:
    return np.clip(np.log(np.maximum(want, 0.5) / np.maximum(have, 0.5)) / NODES_EXPONENT, -1.0, 1.0)
