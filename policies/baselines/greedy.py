"""Greedy: water-filling by marginal utility, seeing the decode batch.

Each pool's utility is a concave function of how far its capacity at a cap exceeds what is asked of it; watts go to
whichever pool gains most from the next one, until the budget is spent. Nodes follow the slow mix of prefill and
decode work. A model of the hardware gives capacities. What is asked of decode is also the batch in flight, which
must be decoded within the ITL target whatever arrives next (RL.md lesson 6: greedy with the decode batch is the
strongest simple heuristic).
"""

from dataclasses import dataclass

import numpy as np

from ...fleet.bids import Bids
from ...fleet.topology import Fleet
from ..base import Model
from ..pools import SOON_S, pool_view, static_of
from ..work import SHORTEST_TOK, follow_work, no_work


@dataclass(frozen=True)
class Greedy:
    """Watts by marginal utility, nodes by the slow mix.

    Attributes:
        sharpness: How fast utility saturates once capacity covers what is asked.
        horizon_s: A prefill backlog of this length doubles what is asked of prefill.
        decode_value: Utility of decode relative to prefill.
        prefill_margin: What prefill is sized for, relative to its mean work.
        fast_s: Averaging time of the work that watts follow.
        slow_s: Averaging time of the work that nodes follow.
        role_gain: Share of the distance to the wanted split that is asked for at once; 0 never moves a node.
        role_deadband_nodes: Distances below this ask for no move.
    """

    fleet: Fleet
    model: Model
    sharpness: float = 2.5
    horizon_s: float = 1.0
    decode_value: float = 1.0
    prefill_margin: float = 1.1
    fast_s: float = 10.0
    slow_s: float = 90.0
    role_gain: float = 1.0
    role_deadband_nodes: float = 1.0
    name: str = "greedy"

    def start(self, batch):
        """Averages per service: requests/s, prompt and output tokens/s, fast then slow; shape (B, S, 6)."""
        return no_work(batch, len(self.fleet.services))

    def bid(self, snapshot, observation, memory):
        from ...fleet.arbiter.work import ask_of_pools, write_bids  # numba is loaded by who bids, not by who imports

        fleet, static = self.fleet, static_of(self.fleet)
        memory = follow_work(snapshot, memory, fleet.timing.control_s, self.fast_s, self.slow_s)
        view = pool_view(fleet, snapshot)
        domain = snapshot.domain
        if not (domain.flags.c_contiguous and domain.flags.writeable):
            domain = domain.copy(order="C")
        budget_w = np.empty(snapshot.batch)
        asked, value, mean_caps_w, work = np.empty((4, *view.nodes.shape))
        active, prompt, context, slow_prompt, slow_context, share = np.empty((6, *memory.shape[:2]))
        ask_of_pools(
            domain, snapshot.service, static.fixed_w, SOON_S, static.gpus, self.model.cap_range_w, memory, SHORTEST_TOK,
            float(self.prefill_margin), float(self.horizon_s), float(self.decode_value), budget_w, asked, value, active,
            prompt, context, slow_prompt, slow_context, mean_caps_w,
        )  # fmt: skip
        caps_w = self.model.marginal_caps(
            view.nodes, view.gpus, asked, value, active, prompt, context, self.sharpness, budget_w
        )
        # nodes follow what the slow mix asks of each stage at the mean cap
        rates = mean_caps_w
        if self.role_gain > 0:
            rates, _ = self.model.node_tok_s(mean_caps_w, slow_prompt, slow_context)
        bids = Bids.neutral(snapshot.batch, fleet.pools, len(fleet.nodes))
        write_bids(
            fleet.service_static, static.gpus_per_node, view.nodes, view.coming, view.demand_w, memory, rates,
            float(self.prefill_margin), float(self.role_gain), float(self.role_deadband_nodes), caps_w, share, work,
            bids.pool,
        )  # fmt: skip
        return bids, memory
