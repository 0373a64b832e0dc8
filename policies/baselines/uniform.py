"""Uniform: every node gets the same cap per product, whatever it does. What a site does that caps nothing by stage."""

from dataclasses import dataclass

from ...fleet.topology import Fleet
from ..pools import pool_bids, pool_view, watt_bids


@dataclass(frozen=True)
class Uniform:
    """Bids that cancel demand: caps in the ratio of the products' largest caps."""

    fleet: Fleet
    name: str = "uniform"

    def start(self, batch):
        return None

    def bid(self, snapshot, observation, memory):
        view = pool_view(self.fleet, snapshot)
        return pool_bids(self.fleet, snapshot, watt_bids(view.cap_max_w, view.demand_w)), None
