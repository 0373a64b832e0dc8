"""Three-band: cap above one threshold down to a target, release below another; Facebook's Dynamo.

A re-implementation of behaviour documented in Wu et al., "Dynamo: Facebook's Data Center-Wide Power Management
System", ISCA 2016, section III: a controller per power device caps when the device's power passes the capping
threshold, by as much as leads it to the capping target; it cuts the lowest priority first and, among equals, those
that draw most; it uncaps when power falls below the uncapping threshold, and in between it leaves caps alone. Here
the devices are the site's power domains, the fullest of which decides, and the servers are pools. Flyball's arbiter
keeps every domain below its limit whatever is bid, so that the bands lie lower than with breakers alone.
"""

from dataclasses import dataclass

import numpy as np

from ...fleet.tables import DECODE, STAGES
from ...fleet.topology import Fleet
from ..pools import pool_bids, pool_view, split_bids, watt_bids


@dataclass(frozen=True)
class ThreeBand:
    """Caps by three thresholds of the fullest domain.

    Attributes:
        cap_above: Power / limit above which pools are capped.
        cap_to: Power / limit that capping aims at.
        release_below: Power / limit below which every cap is released.
        floor_frac: Lowest cap / largest cap: how far a pool is cut before the next one is.
        decode_first: Above 0.5, decode counts as the lower priority of a service's two pools, else prefill.
        prefill_nodes: Share of a service's nodes that prefill; negative keeps the site's split.
    """

    fleet: Fleet
    cap_above: float = 0.95
    cap_to: float = 0.90
    release_below: float = 0.80
    floor_frac: float = 0.55
    decode_first: float = 1.0
    prefill_nodes: float = -1.0
    name: str = "three-band"

    def start(self, batch):
        """Caps held per node of every pool / their largest, 1 for uncapped; shape (B, P)."""
        return np.ones((batch, self.fleet.pools))

    def bid(self, snapshot, observation, memory):
        view = pool_view(self.fleet, snapshot)
        fullness = self._fullness(snapshot)
        budget_w = snapshot.domain["limit_w"][:, 0].astype(float)
        cut_w = np.where(fullness > self.cap_above, (fullness - min(self.cap_to, self.cap_above)) * budget_w, 0.0)
        held = self._cut(memory, view, cut_w)
        held = np.where((fullness < min(self.release_below, self.cap_to))[:, None], 1.0, held)
        watts = watt_bids(view.cap_max_w * held, view.demand_w)
        nodes = split_bids(self.fleet, view, self.prefill_nodes) if self.prefill_nodes >= 0 else None
        return pool_bids(self.fleet, snapshot, watts, nodes), held

    def _fullness(self, snapshot):
        """Metered power / limit of the fullest domain, shape (B,); between the bands where no meter was heard."""
        domain = snapshot.domain
        share = domain["meter_w"] / np.maximum(domain["limit_w"], 1)
        known = np.isfinite(share)
        between = 0.5 * (self.cap_above + min(self.release_below, self.cap_to))
        return np.where(known.any(-1), np.where(known, share, -np.inf).max(-1), between)

    def _cut(self, held, view, cut_w):
        """Lower held caps by `cut_w` in all: lowest priority first, and among equals those that hold most."""
        stage = np.arange(self.fleet.pools) % STAGES
        is_first = (stage == DECODE) == (self.decode_first > 0.5)
        priority = STAGES * np.repeat(self.fleet.service_static["priority"], STAGES) + ~is_first
        out, left_w = held.copy(), cut_w.copy()
        for level in np.unique(priority):
            here = priority == level
            room_w = np.where(here, np.maximum(out - self.floor_frac, 0.0) * view.cap_max_w * view.nodes, 0.0)
            total_w = room_w.sum(-1)
            share = np.minimum(left_w / np.maximum(total_w, 1e-9), 1.0)[:, None]
            out = np.where(here, out - share * np.maximum(out - self.floor_frac, 0.0), out)
            left_w = np.maximum(left_w - total_w, 0.0)
        return out
