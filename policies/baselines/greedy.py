"""Greedy: water-filling by marginal utility, seeing the decode batch.

Each pool's utility is a concave function of how far its capacity at a cap exceeds what is asked of it; watts go to
whichever pool gains most from the next one, until the budget is spent. Nodes follow the slow mix of prefill and
decode work. A model of the hardware gives capacities (RL.md lesson 6: greedy with the decode batch is the strongest
simple heuristic).
"""

from dataclasses import dataclass

import numpy as np

from ...fleet.tables import DECODE, PREFILL, STAGES
from ...fleet.topology import Fleet
from ..base import Model
from ..pools import gpu_budget_w, pool_bids, pool_view, watt_bids
from .static_table import split_bids

SEGMENTS = 24
"""Pieces of each pool's cap range between which marginal utilities are compared."""


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
        return np.zeros((batch, len(self.fleet.services), 6))

    def bid(self, snapshot, observation, memory):
        memory = self._average(snapshot, memory)
        view = pool_view(self.fleet, snapshot)
        budget_w = gpu_budget_w(self.fleet, snapshot)
        caps_w = self._caps(snapshot, view, budget_w, memory)
        watts = watt_bids(caps_w * self._gpus_per_node, view.demand_w)
        nodes = None
        if self.role_gain > 0:
            share = self._prefill_share(view, budget_w, memory)
            nodes = split_bids(view, share, self.role_gain, self.role_deadband_nodes)
        return pool_bids(self.fleet, snapshot, watts, nodes), memory

    @property
    def _gpus_per_node(self) -> np.ndarray:
        """Mean GPUs per node of each pool's service, shape (P,)."""
        static = self.fleet.node_static
        return np.array([static["gpus"][static["service"] == p // STAGES].mean() for p in range(self.fleet.pools)])

    def _sku(self, service: int) -> int:
        """The service's most common GPU product."""
        static = self.fleet.node_static
        return int(np.bincount(static["sku"][static["service"] == service]).argmax())

    def _cap_range_w(self, pool: int) -> tuple[float, float]:
        static = self.fleet.node_static
        rows = static[(static["service"] == pool // STAGES) & (static["sku"] == self._sku(pool // STAGES))]
        low = rows["decode_floor_w" if pool % STAGES == DECODE else "cap_min_w"] / rows["gpus"]
        return float(low[0]), float((rows["cap_max_w"] / rows["gpus"])[0])

    def _average(self, snapshot, memory):
        """Follow each service's work; values that are missing leave the averages as they are."""
        heard = snapshot.service
        rate = np.nan_to_num(heard["arrival_rps"], nan=0.0)
        now = np.stack(
            [
                rate,
                rate * np.nan_to_num(heard["prompt_tokens"], nan=0.0),
                rate * np.nan_to_num(heard["output_tokens"], nan=0.0),
            ],
            -1,
        )
        known = (np.isfinite(heard["arrival_rps"]) & np.isfinite(heard["prompt_tokens"]))[..., None]
        dt_s = self.fleet.timing.control_s
        out = memory.copy()
        for part, tau_s in ((slice(0, 3), self.fast_s), (slice(3, 6), self.slow_s)):
            old = memory[..., part]
            blend = np.where(old[..., :1] > 0, 1.0 - np.exp(-dt_s / tau_s), 1.0)
            out[..., part] = np.where(known, old + blend * (now - old), old)
        return out

    def _caps(self, snapshot, view, budget_w, memory):
        """Caps per GPU, shape (B, P), that spend the budget by marginal utility."""
        batch, pools = view.nodes.shape
        slopes = np.zeros((batch, pools, SEGMENTS))
        widths = np.zeros((batch, pools, SEGMENTS))
        floors = np.zeros((batch, pools))
        for pool in range(pools):
            low_w, high_w = self._cap_range_w(pool)
            caps = np.linspace(low_w, high_w, SEGMENTS + 1)
            ratio = self._coverage(snapshot, view, memory, pool, caps)
            value = memory[:, pool // STAGES, 1:3].sum(-1, keepdims=True)
            if pool % STAGES == DECODE:
                value = value * self.decode_value
            utility = value * (1.0 - np.exp(-self.sharpness * ratio))
            width_w = np.maximum(view.gpus[:, pool : pool + 1], 1.0) * (caps[1] - caps[0])
            gain = np.diff(utility, axis=-1) / width_w
            slopes[:, pool] = np.minimum.accumulate(gain, axis=-1)  # concave: cheap watts first
            widths[:, pool] = width_w
            floors[:, pool] = low_w
        spare_w = np.maximum(budget_w - (floors * view.gpus).sum(-1), 0.0)
        # ties go to the pool and the segment that stand first, whatever the batch
        order = np.argsort(-slopes.reshape(batch, -1), axis=-1, kind="stable")
        taken = np.take_along_axis(widths.reshape(batch, -1), order, -1)
        share = np.clip((spare_w[:, None] - (np.cumsum(taken, -1) - taken)) / taken, 0.0, 1.0)
        back = np.zeros_like(share)
        np.put_along_axis(back, order, share, -1)
        filled = back.reshape(batch, pools, SEGMENTS).sum(-1) / SEGMENTS
        high = np.array([self._cap_range_w(p)[1] for p in range(pools)])
        return floors + filled * (high - floors)

    def _coverage(self, snapshot, view, memory, pool, caps_w):
        """Capacity at each cap over what is asked of the pool, shape (B, caps)."""
        s, stage = pool // STAGES, pool % STAGES
        sku = self._sku(s)
        asked = np.maximum(memory[:, s, 1 + stage], 1e-3)[:, None]
        if stage == PREFILL:
            backlog_s = np.nan_to_num(snapshot.service["backlog_s"][:, s], nan=0.0)[:, None]
            asked = asked * self.prefill_margin * (1.0 + np.maximum(backlog_s, 0.0) / self.horizon_s)
            capacity = view.gpus[:, pool : pool + 1] * self.model.prefill_tok_s(s, sku, caps_w)[None]
            return capacity / asked
        context = self._context(memory, s)[:, None]
        itl_s = float(self.fleet.service_static["itl_s"][s])
        replicas = view.nodes[:, pool : pool + 1] * self.model.replicas(s, sku, round(float(self._gpus_per_node[pool])))
        slots = self.model.decode_slots(s, sku, caps_w[None], itl_s, context)
        step_s = self.model.decode_step_s(s, sku, caps_w[None], slots, context)
        by_rate = replicas * slots / step_s / asked
        active = np.maximum(np.nan_to_num(snapshot.service["active"][:, s], nan=0.0), 1.0)[:, None]
        # the batch in flight must be decoded within the ITL target whatever arrives next
        return np.minimum(by_rate, replicas * slots / active)

    def _context(self, memory, s):
        """Mean context of decoding requests, tokens, shape (B,)."""
        rate = np.maximum(memory[:, s, 0], 1e-6)
        return np.maximum(memory[:, s, 1] / rate + 0.5 * memory[:, s, 2] / rate, 16.0)

    def _prefill_share(self, view, budget_w, memory):
        """Share of each service's nodes that its slow work asks to prefill, shape (B, S)."""
        shares = []
        mean_cap_w = budget_w / max(float(self.fleet.node_static["gpus"].sum()), 1.0)
        for s in range(len(self.fleet.services)):
            sku = self._sku(s)
            low_w, high_w = self._cap_range_w(STAGES * s + DECODE)
            cap_w = np.clip(mean_cap_w, low_w, high_w)
            gpus = float(self._gpus_per_node[STAGES * s])
            rate = np.maximum(memory[:, s, 3], 1e-6)
            context = np.maximum((memory[:, s, 4] + 0.5 * memory[:, s, 5]) / rate, 16.0)
            itl_s = float(self.fleet.service_static["itl_s"][s])
            slots = self.model.decode_slots(s, sku, cap_w, itl_s, context)
            decode_node = (
                self.model.replicas(s, sku, round(gpus))
                * slots
                / self.model.decode_step_s(s, sku, cap_w, slots, context)
            )
            prefill_node = gpus * self.model.prefill_tok_s(s, sku, cap_w)
            prefill = self.prefill_margin * memory[:, s, 4] / prefill_node
            decode = memory[:, s, 5] / decode_node
            shares.append(prefill / np.maximum(prefill + decode, 1e-9))
        return np.stack(shares, -1)
