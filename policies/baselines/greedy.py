"""Greedy: water-filling by marginal utility, seeing the decode batch.

Each pool's utility is a concave function of how far its capacity at a cap exceeds what is asked of it; watts go to
whichever pool gains most from the next one, until the budget is spent. Nodes follow the slow mix of prefill and
decode work. A model of the hardware gives capacities. What is asked of decode is also the batch in flight, which
must be decoded within the ITL target whatever arrives next (RL.md lesson 6: greedy with the decode batch is the
strongest simple heuristic).
"""

from dataclasses import dataclass

import numpy as np

from ...fleet.tables import DECODE, PREFILL, STAGES
from ...fleet.topology import Fleet
from ..base import Model
from ..pools import gpu_budget_w, pool_bids, pool_view, split_bids, static_of, watt_bids
from ..work import OUTPUT, PROMPT, follow_work, lengths, no_work


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
        memory = follow_work(snapshot, memory, self.fleet.timing.control_s, self.fast_s, self.slow_s)
        view = pool_view(self.fleet, snapshot)
        budget_w = gpu_budget_w(self.fleet, snapshot)
        caps_w = self._caps_w(snapshot, view, budget_w, memory[..., :3])
        watts = watt_bids(caps_w * static_of(self.fleet).gpus_per_node, view.demand_w)
        nodes = None
        if self.role_gain > 0:
            share = self.prefill_share(budget_w, memory[..., 3:])
            nodes = split_bids(self.fleet, view, share, self.role_gain, self.role_deadband_nodes)
        return pool_bids(self.fleet, snapshot, watts, nodes), memory

    def _caps_w(self, snapshot, view, budget_w, work):
        """Caps per GPU, shape (B, P), that spend the budget by marginal utility."""
        prompt, context = lengths(work)
        asked = np.maximum(work[..., PROMPT:].reshape(len(work), -1), 1e-3)  # prefill, decode of every service
        backlog_s = _known(snapshot.service["backlog_s"])
        asked[:, PREFILL::STAGES] *= self.prefill_margin * (1.0 + np.maximum(backlog_s, 0.0) / self.horizon_s)
        value = np.empty_like(asked)
        value[:, PREFILL::STAGES] = work[..., PROMPT] + work[..., OUTPUT]
        value[:, DECODE::STAGES] = value[:, PREFILL::STAGES] * self.decode_value
        return self.model.marginal_caps(
            view.nodes, view.gpus, asked, value, _known(snapshot.service["active"]), prompt, context, self.sharpness,
            budget_w,
        )  # fmt: skip

    def prefill_share(self, budget_w, work):
        """Share of each service's nodes that its work asks to prefill at the mean cap, shape (B, S)."""
        ranges_w = self.model.cap_range_w[DECODE::STAGES]
        mean_w = (budget_w / static_of(self.fleet).gpus)[:, None]
        caps_w = np.minimum(np.maximum(mean_w, ranges_w[:, 0]), ranges_w[:, 1]).repeat(STAGES, axis=1)
        rates, _ = self.model.node_tok_s(caps_w, *lengths(work))
        need = work[..., PROMPT:].reshape(len(work), -1) / np.maximum(rates, 1e-9)  # nodes of every pool
        prefill, decode = self.prefill_margin * need[:, PREFILL::STAGES], need[:, DECODE::STAGES]
        return prefill / np.maximum(prefill + decode, 1e-9)


def _known(values: np.ndarray) -> np.ndarray:
    """Values with 0 for what is missing, contiguous."""
    return np.where(np.isfinite(values), values, 0.0)
