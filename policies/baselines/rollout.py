"""Rollout: closed-loop model-predictive control around the greedy, with a terminal value.

At every decision the greedy's bids, and the same with a small perturbation held over the horizon, are rolled forward
on copies of the plant over sampled futures; the greedy goes on deciding inside each copy. A future repeats what was
heard lately, its level that of now and its noise resampled. Scores are tokens in time, less 0.3 of those spoilt, plus
the tokens in flight at the end, each valued by the chance that its request still meets its targets: without that term
even rollouts over the true future lose to a static table (RL.md lesson 6). State is taken from the plant itself, so
that this is a comparator for the simulator; parameters, faults and unannounced changes are not.
"""

from dataclasses import dataclass

import numpy as np

from ...fleet.bids import Bids
from ...fleet.tables import DECODE, PREFILL, STAGES
from ...fleet.topology import Fleet
from ..base import Policy, Simulator
from ..work import OUTPUT, PROMPT, REQUESTS, WORK

HISTORY = 24
"""Decisions that a future's noise is resampled from: two minutes at the default interval."""

SPOILT_WEIGHT = 0.3
"""What a spoilt token costs, relative to a good one (RL.md, recipe)."""

WATTS, NODES = 0, 1
"""Columns of a perturbation, as of pool bids."""


@dataclass(frozen=True)
class Rollout:
    """The best of a few perturbed greedy plans over sampled futures.

    Attributes:
        base: The policy that is perturbed, whose memory starts with `work` averages per service.
        simulator: Makes copies of the plant.
        horizon_s: How far ahead.
        futures: Sampled futures per candidate.
        rounds: Searches in a row, each around the best so far.
        watts_step: Perturbation of watt bids.
        nodes_step: Perturbation of node bids; 0 leaves nodes to the base.
        noise: How much of the noise heard lately is in the futures, as an exponent of its ratios.
        terminal: Value of a token in flight that will be in time, relative to one that was.
        margin: Gain, as a share of the base's score, below which the base's own bids stand.
    """

    fleet: Fleet
    base: Policy
    simulator: Simulator
    horizon_s: float = 60.0
    futures: int = 3
    rounds: int = 1
    watts_step: float = 0.15
    nodes_step: float = 0.4
    noise: float = 0.5
    terminal: float = 1.0
    margin: float = 0.001
    name: str = "rollout"

    def start(self, batch):
        """The base's memory, then what was heard lately, newest first; shape (B, S * WORK + S * HISTORY)."""
        services = len(self.fleet.services)
        return np.concatenate(
            [self.base.start(batch).reshape(batch, -1), np.full((batch, services * HISTORY), np.nan)], -1
        )

    def bid(self, snapshot, observation, memory):
        services, cut = len(self.fleet.services), len(self.fleet.services) * WORK
        inner = np.ascontiguousarray(memory[:, :cut]).reshape(-1, services, WORK)
        bids, after = self.base.bid(snapshot, observation, inner)
        heard = memory[:, cut:].reshape(-1, services, HISTORY)
        heard = np.concatenate([snapshot.service["arrival_rps"][..., None], heard[..., :-1]], -1)
        for row in range(snapshot.batch):
            future = self._futures(float(snapshot.time_s[row]), heard[row], after[row])
            best = self._search(row, inner[row], future)
            perturb(bids, best[None], slice(row, row + 1))
        return bids, np.concatenate([after.reshape(len(after), -1), heard.reshape(len(heard), -1)], -1)

    def _search(self, row, inner, future):
        """The perturbation, shape (P, 2), that scores best from here."""
        best = np.zeros((self.fleet.pools, 2))
        for _ in range(int(self.rounds)):
            tried = best + perturbations(len(self.fleet.services), self.watts_step, self.nodes_step)
            scores = self._scores(row, inner, tried, future)
            top = int(scores.argmax())
            if top == 0 or scores[top] - scores[0] <= self.margin * abs(scores[0]):
                break
            best = tried[top]
        return best

    def _scores(self, row, inner, tried, future):
        """Mean score of each perturbation, shape (K,)."""
        each = 1 if future is None else len(future)
        copies = len(tried) * each
        held = np.repeat(tried, each, axis=0)
        steps = max(round(self.horizon_s / self.fleet.timing.control_s), 1)
        futures = None if future is None else np.tile(future, (len(tried), 1, 1, 1))
        roll = self.simulator.branch(row, copies, steps, futures)
        memory = np.repeat(inner[None], copies, axis=0)
        for _ in range(roll.steps):
            bids, memory = self.base.bid(roll.snapshot, None, memory)
            perturb(bids, held)
            roll.step(bids)
        good_tok, spoilt_tok, flight_tok = roll.score()
        scores = good_tok - SPOILT_WEIGHT * spoilt_tok + self.terminal * flight_tok
        return scores.reshape(len(tried), each).mean(-1)

    def _futures(self, time_s, heard, work):
        """Futures of one environment, shape (futures, ticks, S, 3): requests per tick, prompt and output tokens.

        The first has no noise; the others repeat stretches of the noise heard lately from a random place on.
        """
        timing = self.fleet.timing
        steps = max(round(self.horizon_s / timing.control_s), 1)
        ticks = round(timing.control_s / timing.tick_s)
        rng = np.random.default_rng([int(time_s * 1000), 7])
        rate = np.maximum(work[:, REQUESTS], 1e-6)
        known = np.isfinite(heard)
        mean = np.where(known, heard, 0.0).sum(-1) / np.maximum(known.sum(-1), 1)
        ratio = np.where(known, heard, mean[:, None])[:, ::-1] / np.maximum(mean, 1e-6)[:, None]
        ratio = np.clip(ratio, 0.1, 10.0) ** self.noise
        ratio /= ratio.mean(-1, keepdims=True)
        out = np.empty((int(self.futures), steps, len(rate), 3))
        for m in range(len(out)):
            at = (rng.integers(HISTORY) + np.arange(steps)) % HISTORY
            out[m, ..., 0] = rate * timing.tick_s * (ratio[:, at].T if m else 1.0)
        out[..., 1] = np.maximum(work[:, PROMPT] / rate, 1.0)
        out[..., 2] = np.maximum(work[:, OUTPUT] / rate, 1.0)
        return out.repeat(ticks, axis=1)


def perturbations(services: int, watts: float, nodes: float) -> np.ndarray:
    """Nothing, then one move at a time: watts between a service's stages, between services, nodes between stages.

    Returns:
        Shape (K, P, 2), columns watts and nodes.
    """
    moves = [np.zeros((STAGES * services, 2))]
    for s in range(services):
        for sign in (1.0, -1.0):
            for column, step in ((WATTS, watts), (NODES, nodes)):
                if step > 0:
                    move = np.zeros((STAGES * services, 2))
                    move[STAGES * s + PREFILL, column], move[STAGES * s + DECODE, column] = sign * step, -sign * step
                    moves.append(move)
            if services > 1:
                move = np.zeros((STAGES * services, 2))
                move[STAGES * s : STAGES * s + STAGES, WATTS] = sign * watts
                moves.append(move)
    return np.stack(moves)


def perturb(bids: Bids, held: np.ndarray, rows: slice = slice(None)) -> None:
    """Add perturbations, shape (rows, P, 2), to the pool bids of some rows, in place."""
    part = bids.pool[rows, :, :2]
    part += held
    np.clip(part, -1.0, 1.0, out=part)
