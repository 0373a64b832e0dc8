"""PI: a proportional-integral controller per pool, from latency slack to watts, with anti-windup.

The textbook controller that an operator would write first. The error of a prefill pool is the logarithm of TTFT over
its set point, plus what was rejected; that of a decode pool the logarithm of ITL over its own. Only ratios of watts
matter to the arbiter, so that integrators are kept centred. Outputs saturate where the ratio of legal caps ends, and
the excess is fed back into the integrators (back-calculation: Aström and Hägglund, Advanced PID Control, 2006,
section 3.5), or a long overload would have to be unlearned before the controller could answer to its end.
"""

from dataclasses import dataclass

import numpy as np

from ...fleet.tables import DECODE, PREFILL, STAGES
from ...fleet.topology import Fleet
from ..pools import pool_bids, pool_view, split_bids, watt_bids
from ..signals import read_signals

LARGEST_ERROR = 1.5
"""Errors are clipped here: a factor of 4.5 off the set point is far off, however far it is."""

LARGEST_OUTPUT = 0.7
"""Output, the logarithm of a cap's weight, at which a pool saturates: a factor of 4 between two pools, which is more
than the 3.5 between the lowest and the highest legal cap of an H100."""


@dataclass(frozen=True)
class ProportionalIntegral:
    """Watts by latency slack.

    Attributes:
        ttft_setpoint: TTFT aimed at / its target.
        itl_setpoint: ITL aimed at / its target.
        gain: Output per unit of error.
        integral_s: Time in which the integral doubles the proportional part of a constant error.
        tracking_s: Time in which a saturated integrator is led back.
        reject_weight: Error of a pool that rejects everything.
        prefill_bias: Output of a prefill pool without error, relative to decode.
        prefill_nodes: Share of a service's nodes that prefill; negative keeps the site's split.
    """

    fleet: Fleet
    ttft_setpoint: float = 0.4
    itl_setpoint: float = 0.9
    gain: float = 0.1
    integral_s: float = 60.0
    tracking_s: float = 20.0
    reject_weight: float = 2.0
    prefill_bias: float = 0.2
    prefill_nodes: float = -1.0
    name: str = "pi"

    def start(self, batch):
        """Integrators, shape (B, P)."""
        return np.zeros((batch, self.fleet.pools))

    def bid(self, snapshot, observation, memory):
        view = pool_view(self.fleet, snapshot)
        error = self._errors(snapshot, observation)
        bias = np.where(np.arange(self.fleet.pools) % STAGES == PREFILL, self.prefill_bias, 0.0)
        output = bias + self.gain * error + memory
        output -= output.mean(-1, keepdims=True)
        within = np.clip(output, -LARGEST_OUTPUT, LARGEST_OUTPUT)
        dt_s = self.fleet.timing.control_s
        integral = memory + dt_s * (self.gain / self.integral_s * error + (within - output) / self.tracking_s)
        integral -= integral.mean(-1, keepdims=True)
        watts = watt_bids(view.cap_max_w * np.exp(within), view.demand_w)
        nodes = split_bids(self.fleet, view, self.prefill_nodes) if self.prefill_nodes >= 0 else None
        return pool_bids(self.fleet, snapshot, watts, nodes), integral

    def _errors(self, snapshot, observation):
        """How far each pool is from its set point, positive where it needs watts, shape (B, P)."""
        signals = read_signals(self.fleet, snapshot, observation)
        out = np.empty((snapshot.batch, self.fleet.pools))
        out[:, PREFILL::STAGES] = np.log(np.maximum(signals.ttft / self.ttft_setpoint, 1e-3))
        out[:, PREFILL::STAGES] += self.reject_weight * signals.rejected
        out[:, DECODE::STAGES] = np.log(np.maximum(signals.itl / self.itl_setpoint, 1e-3))
        return np.clip(out, -LARGEST_ERROR, LARGEST_ERROR)
