"""Reactive: on pressure, first watts and then nodes move between prefill and decode; after RAPID.

A re-implementation of the behaviour that RAPID documents (arXiv 2601.12241): GPUs of a disaggregated server have
roles and power shares, and a controller answers to TTFT or ITL pressure in one stage and slack in the other by moving
power in steps, and by moving a GPU's role once power alone no longer helps. Here roles are those of nodes, and the
arbiter's dwell and rate limits hold for them. A long TTFT counts as prefill's where prefill is the busier stage, and
as decode's where requests wait for a decode slot.
"""

from dataclasses import dataclass

import numpy as np

from ...fleet.tables import DECODE, PREFILL, STAGES
from ...fleet.topology import Fleet
from ..pools import pool_bids, pool_view, split_bids, watt_bids
from ..signals import read_signals

SHIFT, STUCK_S, BUSY_S, TARGET = range(4)
"""Columns of the memory: watts moved towards prefill (log ratio), time for which the shift has stood at its end,
time until the next move may start (the first half of it asks for the last one), share of prefill asked for (0: no move
yet)."""


@dataclass(frozen=True)
class Reactive:
    """Watts in steps, then nodes one at a time.

    Attributes:
        high: Pressure (latency / target) above which a stage asks for help.
        low: Pressure below which the other stage can give it.
        step: Logarithm of the ratio of caps that one decision moves.
        largest_shift: Where moving watts ends and moving nodes begins.
        patience_s: How long pressure stands at that end before a node moves.
        move_s: How long a move is asked for, and then none.
        prefill_bias: Logarithm of the ratio of caps, prefill to decode, before anything moved.
        is_moving: Above 0.5, nodes move too.
        prefill_nodes: Share of a service's nodes that prefill until the first move; negative keeps the site's split.
    """

    fleet: Fleet
    high: float = 0.8
    low: float = 0.6
    step: float = 0.1
    largest_shift: float = 0.5
    patience_s: float = 20.0
    move_s: float = 40.0
    prefill_bias: float = 0.2
    is_moving: float = 1.0
    prefill_nodes: float = -1.0
    name: str = "reactive"

    def start(self, batch):
        """Shape (B, S, 4); see the columns above."""
        return np.zeros((batch, len(self.fleet.services), 4))

    def bid(self, snapshot, observation, memory):
        view = pool_view(self.fleet, snapshot)
        side = self._side(snapshot, observation)
        memory = self._react(memory, side, view)
        shift = self.prefill_bias + memory[..., SHIFT]
        want_w = view.cap_max_w.copy()
        want_w[:, PREFILL::STAGES] *= np.exp(0.5 * shift)
        want_w[:, DECODE::STAGES] *= np.exp(-0.5 * shift)
        target = memory[..., TARGET]
        is_asking = memory[..., BUSY_S] > self.move_s
        if self.prefill_nodes >= 0:
            is_asking |= target == 0
            target = np.where(target == 0, self.prefill_nodes, target)
        nodes = np.where(np.repeat(is_asking, STAGES, axis=1), split_bids(self.fleet, view, target), 0.0)
        return pool_bids(self.fleet, snapshot, watt_bids(want_w, view.demand_w), nodes), memory

    def _side(self, snapshot, observation):
        """Where help is needed: 1 for prefill, -1 for decode, 0 for neither or both; shape (B, S)."""
        signals = read_signals(self.fleet, snapshot, observation)
        waiting = signals.ttft + signals.rejected
        is_prefill = signals.prefill_util >= signals.decode_util
        prefill = np.where(is_prefill, waiting, 0.0)
        decode = np.maximum(signals.itl * signals.decode_util, np.where(is_prefill, 0.0, waiting))
        helps_prefill = (prefill > self.high) & (decode < self.low)
        helps_decode = (decode > self.high) & (prefill < self.low)
        return helps_prefill.astype(float) - helps_decode

    def _react(self, memory, side, view):
        dt_s = self.fleet.timing.control_s
        out = memory.copy()
        moved = memory[..., SHIFT] + self.step * side
        out[..., SHIFT] = np.clip(moved, -self.largest_shift, self.largest_shift)
        is_stuck = np.abs(moved) > self.largest_shift
        out[..., STUCK_S] = np.where(is_stuck, memory[..., STUCK_S] + dt_s, 0.0)
        busy_s = np.maximum(memory[..., BUSY_S] - dt_s, 0.0)
        starts = is_stuck & (out[..., STUCK_S] >= self.patience_s) & (busy_s == 0) & (self.is_moving > 0.5)
        count = view.nodes + view.coming
        prefill, decode = count[:, PREFILL::STAGES], count[:, DECODE::STAGES]
        out[..., TARGET] = np.where(starts, (prefill + side) / np.maximum(prefill + decode, 1.0), memory[..., TARGET])
        out[..., BUSY_S] = np.where(starts, 2.0 * self.move_s, busy_s)
        out[..., STUCK_S] = np.where(starts, 0.0, out[..., STUCK_S])
        return out
