"""Looking ahead: play plans in copies of a state without touching the original.

A future is honest by default. What a controller could not know is drawn anew in every copy: the load to come, hidden
parameters, noise and faults; limits stay as they were told, announced changes included. `clairvoyant=True` keeps the
true future instead, which gives bounds, and labels for distillation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..fleet.bids import Bids
from ..fleet.tables import NEVER_S, TRAINING
from .core import Core
from .event_dynamics import EVENT_FIELDS, forget_future
from .faults import CLOCKS
from .kpis import episode_kpis
from .limits import DEMANDED, IN_FORCE, NEXT, NEXT_IN_S, TOLD
from .load import Load
from .plant import Plant
from .state import restore, save

FUTURE_STREAM = 21
"""Second word of the seeds of futures: no future repeats an episode that was drawn from the same number."""

RECENT_S = 30.0
"""Telemetry looked back on to say what the load is now."""

LEVEL_RANGE = (0.25, 4.0)
"""How far a drawn load is scaled to meet the present one."""


@dataclass(frozen=True)
class Outcome:
    """What became of M plans in K futures over H steps.

    Attributes:
        reward: (M, K, H).
        terms: Every array of the step's `info` by name, (M, K, H) each: reward terms, cost, good tokens.
        kpis: KPIs of the steps played alone, (M, K) each; NaN within the warm-up.
        seeds: The K seeds, shared by all plans, so that differences between plans are paired.
    """

    reward: np.ndarray
    terms: dict[str, np.ndarray]
    kpis: dict[str, np.ndarray]
    seeds: tuple[int, ...]

    @property
    def returns(self) -> np.ndarray:
        """Sum of rewards of every plan in every future, (M, K)."""
        return self.reward.sum(-1)

    @property
    def best(self) -> int:
        """Index of the plan with the largest mean return."""
        return int(self.returns.mean(-1).argmax())


class Futures:
    """Plays plans in copies of one environment; keeps the copies' arrays for the next call."""

    def __init__(self) -> None:
        self._copies: tuple[Core, Core] | None = None

    def play(
        self,
        core: Core,
        env: int = 0,
        plan: Any = None,
        steps: int = 12,
        seeds: int | Sequence[int] = 8,
        load: str = "resample",
        knows_plant: bool = False,
        clairvoyant: bool = False,
        count: int = 1,
    ) -> Outcome:
        """Play plans from the present state of an environment.

        Args:
            core: The core; it is read and not written.
            env: Which of its environments.
            plan: None lets the background play; otherwise actions as `step` takes them: (A,) is held, (H, A) is one
                plan, (M, H, A) are M plans that meet the same futures. A plan shorter than `steps` holds its last
                action. `Bids` of shape (M, H, ...) are played as they are, whatever the agent owns. A function of
                (copies, step) returns the bids of all M K rows, plan by plan: rollouts in closed loop.
            steps: Control intervals to look ahead, H; fewer where the episode ends before.
            seeds: K, or K seeds.
            load: "resample" draws the load's future anew, scaled to the level of the last `RECENT_S`, which it
                forgets at the scenario's `rate_corr_s`; "held" keeps the mean of the last `RECENT_S`.
            knows_plant: Keep the true hidden parameters of the hardware; noise and faults are drawn anew all the same.
            clairvoyant: The true future and parameters: every copy is what will happen under the plan.
            count: M, where the plan is a function.

        Returns:
            Rewards, terms and KPIs by plan, future and step.

        Raises:
            ValueError: if the plan has another shape, or nothing of the episode is left.
        """
        if load not in ("resample", "held"):
            raise ValueError(f'load is {load!r}; use "resample" or "held"')
        left = int(core.plant.ticks_left[env]) // core.plant.control_ticks
        steps = min(int(steps), left)
        if steps < 1:
            raise ValueError("the episode is over, or steps is below 1: reset first, or ask for a step")
        seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(int(s) for s in seeds)
        if not seeds:
            raise ValueError("no seeds: give at least one")
        each = len(seeds)
        count, bids_at = _source(plan, steps, core.action_size, each, count)
        copies = self._of(core, count * each)
        _fill(copies, core, env, seeds, count, load, knows_plant, clairvoyant)
        reward, terms, kpis = _roll(copies, bids_at, steps)
        shape = (count, each)
        return Outcome(
            reward.reshape(*shape, steps),
            {k: v.reshape(*shape, steps) for k, v in terms.items()},
            {k: v.reshape(shape) for k, v in kpis.items()},
            seeds,
        )

    def _of(self, core: Core, batch: int) -> Core:
        if self._copies is None or self._copies[0] is not core or self._copies[1].batch != batch:
            copies = Core(
                core.scenario, _background(core), core.channels, batch, core.residual, core.file, core.block,
                core.has_arbiter, core.flat_pools,
            )  # fmt: skip
            self._copies = (core, copies)
        return self._copies[1]


def _background(core: Core):
    """The core's background for its copies; a planner that follows the core's plant gets a simulator of its own."""
    policy: Any = core.background
    simulator = getattr(policy, "simulator", None)
    return policy if simulator is None else replace(policy, simulator=type(simulator)(core.scenario))


BidsAt = Callable[[Core, int], Bids]
"""The bids of every copy at a step."""


def _source(plan, steps: int, size: int, each: int, count: int) -> tuple[int, BidsAt]:
    """M, and where bids come from."""
    if plan is None:
        return 1, lambda copies, step: copies.base
    if isinstance(plan, Bids):
        parts = [np.asarray(a, np.float32) for a in (plan.pool, plan.node, plan.fleet)]
        held = [np.minimum(np.arange(steps), a.shape[1] - 1) for a in parts]
        parts = [np.repeat(a[:, h], each, 0) for a, h in zip(parts, held, strict=True)]
        return len(plan.pool), lambda copies, step: Bids(*(np.ascontiguousarray(a[:, step]) for a in parts)).clipped()
    if callable(plan):
        return count, lambda copies, step: plan(copies, step).clipped()
    plans = _actions(plan, steps, size)
    return len(plans), lambda copies, step: copies.bids(np.repeat(plans[:, step], each, 0))


def _actions(plan, steps: int, size: int) -> np.ndarray:
    """Plans of actions as (M, H, A)."""
    plans = np.asarray(plan, np.float32)
    while plans.ndim < 3:
        plans = plans[None]
    if plans.ndim != 3 or plans.shape[-1] != size or plans.shape[1] < 1:
        raise ValueError(f"the plan has shape {np.shape(plan)}; give ({size},), (steps, {size}) or (M, steps, {size})")
    if plans.shape[1] < steps:
        plans = np.concatenate([plans, np.repeat(plans[:, -1:], steps - plans.shape[1], 1)], 1)
    return plans[:, :steps]


def _fill(copies: Core, core: Core, env: int, seeds, count: int, load: str, knows_plant: bool, clairvoyant: bool):
    """Make every copy the present state of an environment, with a future of its own."""
    state = save(core, [env])
    if clairvoyant:
        restore(copies, state)
        return
    own = [int(np.random.SeedSequence([s, FUTURE_STREAM]).generate_state(1, np.uint64)[0] >> 1) for s in seeds]
    drawn_load = copies.make_load(own)
    tiled: dict[str, Any] = {n: np.concatenate([getattr(drawn_load, n)] * count) for n in _LOAD_ARRAYS}
    copies.plant.reset(np.array(own * count), replace(drawn_load, **tiled))
    plant = copies.plant
    drawn = {name: plant.node[name].copy() for name in CLOCKS}
    params = plant.params.copy()
    jobs = None if plant.batch_jobs is None else plant.batch_jobs.job.copy()
    restore(copies, state)
    if jobs is not None:
        plant.batch_jobs.forget_future(jobs, float(core.plant.time_s[env]))
    for name, values in drawn.items():
        plant.node[name] = values
    if knows_plant:
        for name in ("fault_seed", "parameter_seed"):
            plant.params[name] = params[name]
    else:
        events = {name: plant.params[name].copy() for name in EVENT_FIELDS}
        plant.params[:] = params
        for name, values in events.items():
            plant.params[name] = values
    tick = int(core.plant.tick[env])
    forget_future(plant.params, tick)
    _limits_as_told(plant, tick, core.scenario.events != ())
    _load_as_drawn(plant, tick, replace(drawn_load, **tiled), load, core.scenario.load.rate_corr_s)


_LOAD_ARRAYS = ("arrivals", "prompt_tokens", "output_tokens", "ca2", "cs2")


def _limits_as_told(plant: Plant, tick: int, has_events: bool) -> None:
    """Limits to come as the fleet knows them: today's until an announced change, which then stays.

    An un-noticed cut that is still in its grace stays so; nobody knows when a cut will end.
    """
    if not has_events:
        return
    tick_s, timing = plant.fleet.timing.tick_s, plant.fleet.timing
    told, state = plant.snapshot.domain[0], plant.state.domain[0]
    when_s = float(plant.time_s[0]) + np.arange(plant.ticks + 1 - tick) * tick_s
    for d in range(len(told)):
        now_w, next_w = int(told["limit_w"][d]), int(told["next_limit_w"][d])
        start_s = float(plant.time_s[0]) + float(told["next_in_s"][d]) if told["next_in_s"][d] < NEVER_S else np.inf
        demanded = np.where(when_s >= start_s, next_w, now_w)
        plant.limits[:, tick:, d, DEMANDED] = plant.limits[:, tick:, d, IN_FORCE] = demanded
        before_w, cut_at_s = int(state["in_force_w"][d]), float(state["cut_at_s"][d])
        if now_w < min(before_w, int(state["announced_w"][d])):
            heard_s = cut_at_s if cut_at_s < NEVER_S else float(plant.time_s[0]) + timing.grace_s
            # the grace runs from the cut itself, which is told a tick later (`limits.budget_series`)
            grace = when_s < min(heard_s - tick_s, start_s)
            plant.limits[:, tick:, d, IN_FORCE] = np.where(grace, before_w, demanded)
        plant.told[:, tick:, d, TOLD] = demanded
        plant.told[:, tick:, d, NEXT] = np.where(when_s < start_s, next_w, demanded)
        plant.told[:, tick:, d, NEXT_IN_S] = np.where(
            when_s < start_s, start_s - when_s if np.isfinite(start_s) else NEVER_S, NEVER_S
        )


def _load_as_drawn(plant: Plant, tick: int, drawn: Load, how: str, corr_s: float) -> None:
    """Replace what arrives from `tick` on; what arrived before was told and may be used."""
    tick_s = plant.fleet.timing.tick_s
    back = slice(max(tick - round(RECENT_S / tick_s), 0), tick)
    if tick == 0:
        back = slice(0, plant.control_ticks)  # what a reset tells of the load before the first step
    seen = plant.arrivals[:1, back]
    total = np.maximum(seen.sum(1), 1e-9)
    if how == "held":
        plant.arrivals[:, tick:] = seen.mean(1)[:, None]
        for name in ("prompt_tok", "output_tok"):
            lengths = getattr(plant, name)
            mean = (lengths[:1, back] * seen).sum(1) / total
            lengths[:, tick:] = np.where(seen.sum(1) > 0, mean, lengths[:1, max(tick - 1, 0)])[:, None]
        return
    ticks = plant.ticks
    level = seen.mean(1) / np.maximum(drawn.arrivals[:, back].mean(1), 1e-9)  # (K, S)
    level = np.where(seen.sum(1) > 0, np.clip(level, *LEVEL_RANGE), 1.0)
    fade = np.exp(-np.arange(ticks - tick) * tick_s / corr_s)[None, :, None]
    plant.arrivals[:, tick:] = drawn.arrivals[:, tick:ticks] * (1.0 + (level[:, None] - 1.0) * fade)
    plant.prompt_tok[:, tick:] = drawn.prompt_tokens[:, tick:ticks]
    plant.output_tok[:, tick:] = drawn.output_tokens[:, tick:ticks]


def _roll(copies: Core, bids_at: BidsAt, steps: int):
    """Step the copies; rewards and terms (B, H), KPIs of these steps (B,)."""
    plant = copies.plant
    plant.totals["peak_frac"] = 0.0  # a maximum has no difference; nothing reads it but the KPI
    before = (plant.totals.copy(), plant.ttft.sum(1), plant.itl.sum(1), plant.service.copy())
    rewards: list[np.ndarray] = []
    terms: dict[str, list[np.ndarray]] = {}
    for step in range(steps):
        _, reward, _, info = copies.step(bids_at(copies, step))
        rewards.append(reward)
        for name, values in info.items():
            terms.setdefault(name, []).append(values)
    rows = [_kpis_since(plant, before, b) for b in range(copies.batch)]
    return (
        np.stack(rewards, 1),
        {name: np.stack(values, 1) for name, values in terms.items()},
        {name: np.array([row[name] for row in rows]) for name in rows[0]},
    )


def _kpis_since(plant: Plant, before, env: int) -> dict[str, float]:
    """KPIs of what happened to one environment since `before`."""
    totals, ttft, itl, service = before
    total = plant.totals[env].copy()
    for name in total.dtype.names:
        if name != "peak_frac":
            total[name] -= totals[env][name]
    asked = plant.fleet.service_static["kind"] != TRAINING
    now, then = plant.service[env][asked], service[env][asked]
    offered, served, late = (now[n] - then[n] for n in ("offered_tok", "served_tok", "late_tok"))
    return episode_kpis(
        total,
        plant.ttft[env].sum(0) - ttft[env],
        plant.itl[env].sum(0) - itl[env],
        np.clip((served - late) / np.maximum(offered, 1.0), 0.0, None),
        float(plant.params["nominal_w"][env]),
        len(plant.fleet.nodes),
    )
