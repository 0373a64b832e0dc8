"""Rollout: closed-loop model-predictive control over a portfolio of complete policies, with a terminal value.

Every few decisions each member of a portfolio (the tuned baselines) is rolled forward in closed loop on copies of the
plant over sampled futures, and so are small perturbations of the best plan, held for some time; the best plan is
followed until the next search. Taking at every search whichever member would do best from here is parallel rollout
(Chang, Givan and Chong, Discrete Event Dynamic Systems 14, 2004): where rolls are exact and reach the end it is never
worse than the best member. A future repeats what was heard lately, its level that of now and its noise resampled.
Scores are tokens in time, less 0.3 of those spoilt, plus the tokens in flight at the end, each valued by the chance
that its request still meets its targets: without that term even rollouts over the true future lose to a static table
(RL.md lesson 6). State is taken from the plant itself, so that this is a comparator for the simulator; parameters,
faults and unannounced changes are not.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...fleet.topology import Fleet
from ..base import Policy, Simulator
from ..work import WORK, follow_work, no_work
from .futures import HISTORY, remember, sample_futures
from .plans import FIELDS, FOREVER, Plans, around, join, perturb, single_moves, stand_in
from .portfolio import Portfolio

SPOILT_WEIGHT = 0.3
"""What a spoilt token costs, relative to a good one (RL.md, recipe)."""

FAST_S, SLOW_S = 10.0, 90.0
"""Averaging times of the work that futures repeat."""

FINALISTS = 2
"""Perturbed plans of a round that are rolled to the horizon."""

LARGEST_ROLL = 650_000
"""Copies x control intervals x domains that are rolled at once: limits per tick are most of what a copy holds, so
that this is some 150 MB: 512 copies of a quarter of an hour of 16 nodes under 7 domains."""


@dataclass(frozen=True)
class Rollout:
    """The best of a portfolio and of perturbations around it over sampled futures.

    Attributes:
        members: The portfolio; the first is in charge until the first search.
        simulator: Makes copies of the plant.
        horizon_s: How far ahead; rolls end with the episode.
        hold_s: Time between two searches.
        sweep_s: Time between two searches that try every member; others try the best of the last sweep.
        shortlist: How many those are.
        futures: Sampled futures per plan.
        screen_s: How far ahead perturbations are rolled first; the best of them are rolled as far as members.
        rounds: Searches in a row around the best plan so far, the step halved after each.
        watts_step: Perturbation of watt bids.
        nodes_step: Perturbation of node bids; 0 leaves nodes to the members.
        noise: How much of the noise heard lately is in the futures, as an exponent of its ratios.
        terminal: Value of a token in flight that will be in time, relative to one that was.
        margin: Gain, as a share of its score, below which the plan in force stands.
    """

    fleet: Fleet
    members: tuple[Policy, ...]
    simulator: Simulator
    horizon_s: float = 60.0
    hold_s: float = 10.0
    sweep_s: float = 60.0
    shortlist: float = 4
    futures: float = 2
    screen_s: float = 60.0
    rounds: float = 1
    watts_step: float = 0.15
    nodes_step: float = 0.4
    noise: float = 0.5
    terminal: float = 1.0
    margin: float = 0.01
    name: str = "rollout"

    def start(self, batch):
        """Members' memories, averages of work, what was heard lately, plan, waits and last scores; shape (B, M)."""
        services = len(self.fleet.services)
        plan = Plans.of(np.zeros(batch, np.int64), self.fleet.pools)
        parts = (
            self._portfolio.start(batch), no_work(batch, services).reshape(batch, -1),
            np.full((batch, services * HISTORY), np.nan), plan.to_array(), np.zeros((batch, 2)),
            np.zeros((batch, len(self.members))),
        )  # fmt: skip
        return np.concatenate(parts, -1)

    def bid(self, snapshot, observation, memory):
        return self._decide(snapshot, observation, memory, is_searching=True)

    def watch(self, snapshot, observation, memory):
        """The memory after a decision that somebody else made."""
        return self._decide(snapshot, observation, memory, is_searching=False)[1]

    @cached_property
    def _portfolio(self) -> Portfolio:
        return Portfolio(self.fleet, self.members)

    def _decide(self, snapshot, observation, memory, is_searching):
        parts = _Parts(self, memory)
        parts.work = follow_work(snapshot, parts.work, self.fleet.timing.control_s, FAST_S, SLOW_S)
        parts.heard = remember(parts.heard, snapshot.service["arrival_rps"])
        if is_searching:
            due = np.flatnonzero(parts.waits[:, 0] <= 0)
            for rows, steps, is_sweep in self._groups(due, parts.waits[due, 1] <= 0):
                self._search(snapshot, rows, steps, is_sweep, parts)
            parts.waits[due, 0] = self._steps(self.hold_s)
        bids = self._portfolio.bid(snapshot, observation, parts.members, parts.plan.in_charge)
        perturb(bids, parts.plan.held_now)
        parts.plan = parts.plan.after()
        parts.waits -= 1
        return bids, parts.joined()

    def _steps(self, seconds: float) -> int:
        return max(round(seconds / self.fleet.timing.control_s), 1)

    def _groups(self, rows, is_sweep):
        """Rows that can be searched together: how far they can be rolled, and whether every member is due."""
        steps = np.minimum(self.simulator.steps_left(rows), self._steps(self.horizon_s))
        for length in np.unique(steps[steps > 0]):
            for every in (False, True):
                here = (steps == length) & (is_sweep == every)
                if here.any():
                    yield rows[here], int(length), every

    def _search(self, snapshot, rows, steps, is_sweep, parts):
        """Replace the plans of some rows, who can be rolled `steps` ahead, by the best found."""
        score = _Scorer(self, snapshot, rows, steps, parts)
        order = np.argsort(-parts.scores[rows], axis=-1, kind="stable")
        tried = np.sort(order) if is_sweep else order[:, : int(self.shortlist)]
        plans = join(parts.plan[rows][:, None], Plans.of(tried, self.fleet.pools))
        found = score(plans)
        if is_sweep:
            parts.scores[rows] = found[:, 1:]
            parts.waits[rows, 1] = self._steps(self.sweep_s)
            order = np.argsort(-found[:, 1:], axis=-1, kind="stable")
        best, value = self._best(plans, found)
        if self.rounds >= 1:
            guests = order[:, : int(self.shortlist)]
            plans = join(best[:, None], self._refine(score, best, guests))
            best, value = self._best(plans, np.concatenate([value[:, None], score(plans[:, 1:])], -1))
        parts.put_plan(rows, best)

    def _refine(self, score, plan, guests):
        """The most promising plans around one, shape (R, rounds * FINALISTS), by rolls of `screen_s`."""
        hold, out, every = self._steps(self.hold_s), [], np.arange(len(guests))[:, None]
        for round_ in range(int(self.rounds)):
            moves = single_moves(len(self.fleet.services), self.watts_step, self.nodes_step) * 0.5**round_
            tried = around(plan, moves, (hold, 4 * hold, FOREVER))
            if not round_:
                tried = join(tried, stand_in(plan, guests, hold), stand_in(plan, guests, 4 * hold))
            top = np.argsort(-score(tried, self._steps(self.screen_s)), axis=-1, kind="stable")[:, :FINALISTS]
            out.append(tried[every, top])
            plan = out[-1][:, 0]
        return join(*out)

    def _best(self, plans, scores):
        """The first plan of each row, or one that beats it by more than the margin; and its score."""
        every = np.arange(len(scores))
        top = scores.argmax(-1)
        gain = scores[every, top] - scores[:, 0]
        top = np.where(gain > self.margin * np.abs(scores[:, 0]), top, 0)
        return plans[every, top], scores[every, top]

    def _futures(self, time_s, heard, work, steps):
        """Futures of one environment, shape (futures, ticks, S, 3); None for the true one."""
        return sample_futures(
            self.fleet.timing, time_s, heard, work[:, : WORK // 2], steps, int(self.futures), self.noise
        )

    def _value(self, outcome):
        """Scores of copies, shape (copies,)."""
        return outcome.good_tok - SPOILT_WEIGHT * outcome.spoilt_tok + self.terminal * outcome.flight_tok


class _Parts:
    """A planner's memory, taken apart; arrays are copies that may be written."""

    def __init__(self, planner: Rollout, memory: np.ndarray):
        services, pools = len(planner.fleet.services), planner.fleet.pools
        sizes = (planner._portfolio.size, services * WORK, services * HISTORY, 3 + 4 * pools, 2, len(planner.members))
        ends = np.cumsum(sizes)[:-1]
        members, work, heard, plan, waits, scores = (np.array(p) for p in np.split(memory, ends, axis=-1))
        self.members = members
        self.work = work.reshape(-1, services, WORK)
        self.heard = heard.reshape(-1, services, HISTORY)
        self.plan = Plans.from_array(plan)
        self.waits, self.scores = waits, scores

    def put_plan(self, rows: np.ndarray, plan: Plans) -> None:
        """Write the plans of some rows."""
        for name in FIELDS:
            array = getattr(self.plan, name).copy()
            array[rows] = getattr(plan, name)
            object.__setattr__(self.plan, name, array)

    def joined(self) -> np.ndarray:
        """The memory again."""
        batch = len(self.members)
        parts = (self.members, self.work.reshape(batch, -1), self.heard.reshape(batch, -1), self.plan.to_array())
        return np.concatenate([*parts, self.waits, self.scores], -1)


class _Scorer:
    """Scores plans of some rows that can be rolled equally far."""

    def __init__(self, planner: Rollout, snapshot, rows: np.ndarray, steps: int, parts: _Parts):
        self._planner, self._rows, self._steps = planner, rows, steps
        self._members = parts.members[rows]
        futures = [planner._futures(float(snapshot.time_s[r]), parts.heard[r], parts.work[r], steps) for r in rows]
        self._futures = None if futures[0] is None else np.stack(futures)

    def __call__(self, plans: Plans, steps: int = FOREVER) -> np.ndarray:
        """Scores of plans over no more than some control intervals, shape (R, C)."""
        rows, count = plans.left.shape
        each = 1 if self._futures is None else self._futures.shape[1]
        steps = min(steps, self._steps)
        some = max(LARGEST_ROLL // (count * each * steps * len(self._planner.fleet.domains)), 1)
        parts = [self._roll(slice(at, at + some), plans[at : at + some], steps) for at in range(0, rows, some)]
        return np.concatenate(parts)

    def _roll(self, part: slice, plans: Plans, steps: int) -> np.ndarray:
        planner, (rows, count) = self._planner, plans.left.shape
        each, future = 1, None
        if self._futures is not None:
            each = self._futures.shape[1]
            future = np.repeat(self._futures[part][:, None], count, axis=1).reshape(-1, *self._futures.shape[2:])
        index = np.repeat(np.arange(rows * count), each)
        plan = plans.flat()[index]
        memory = np.repeat(self._members[part], count * each, axis=0)
        roll = planner.simulator.branch(self._rows[part], count * each, steps, future)
        for _ in range(roll.steps):
            bids = planner._portfolio.bid(roll.snapshot, roll.observation, memory, plan.in_charge, plan.then)
            perturb(bids, plan.held_now)
            roll.step(bids)
            plan = plan.after()
        return planner._value(roll.outcome()).reshape(rows, count, each).mean(-1)
