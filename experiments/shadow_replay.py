"""The shadow log replayed in the plant: the incumbent's recorded commands against the policy, on the same load.

Both sides meet the same reconstructed load, the same limits, the same nodes down and the same draw of the plant's
uncertain parameters, so that their difference is a paired one. How far the plant is right shows in the replay of the
incumbent, whose true power and latency the log holds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from .. import registry
from ..envs.load import Load, LoadSpec, superpose
from ..envs.plant import Plant
from ..envs.scenario import Scenario
from ..envs.traces import RateTable
from ..fleet.errors import BadInput
from ..fleet.observe import observe
from ..fleet.tables import NEVER_S, PARKED, UNKNOWN_W
from ..fleet.topology import STAGE_NAMES, Fleet
from ..policies.base import Policy
from ..serving.assurance import NeutralPolicy
from .incumbent import command
from .shadow_log import Shadow, was_announced
from .statistics import interval, paired

STRETCH_S = 3600.0
"""A draw replays at most this much of the log; longer logs are covered by draws that each take another part."""

MIN_STRETCH_S = 180.0
"""Less than this after a gap says nothing that the plant's own start would not drown."""

WARMUP_S = 60.0
"""The plant starts with empty queues: left out of every figure."""

MIN_KNOWN_FRAC = 0.5
"""At least this share of the load and of the caps must have been heard to predict from it."""

SMOOTH_S = 15.0
"""A row holds the arrivals of one instant; their rate is the mean over this time. Longer would blur the bursts that
a policy answers, shorter would count the noise of the log and that of the draw."""

DOWN_AFTER_S = 60.0
"""A node that is silent for longer is taken to be down, on both sides."""

SEED = 2_000_000
"""First seed of the draws; apart from those of training, tuning and evaluation."""

CLEAR_ERRORS = 3.0
"""Standard errors by which halves must differ: of a dozen parameters, one differs by two of them by chance alone."""

RELATIVE = (
    "goodput_tok_s_per_mw",
    "tokens_per_joule",
    "mean_power_w",
    "ttft_p50_s",
    "ttft_p99_s",
    "itl_p99_s",
)
ABSOLUTE = ("slo_attainment_frac", "budget_violation_ws", "overshoot_ws", "cap_changes_per_node_hour")
"""KPIs by how their change is told: as a share of the incumbent's, or as a difference."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Recorded(Scenario):
    """A scenario whose site comes from the log instead of a file."""

    recorded: Fleet | None = None

    @property
    def fleet(self) -> Fleet:  # type: ignore[override]
        assert self.recorded is not None
        return self.recorded


@dataclass(frozen=True)
class Stretch:
    """A part of the log without gaps, tick by tick.

    Attributes:
        rows: Which rows of the log.
        row_of_tick: Row in force at each tick, shape (T,), counted from the first of `rows`.
        cap_w, stage, is_down: The incumbent's, shape (T, N).
        limits: As `Plant.limits`, shape (T + 1, D, 2).
        told: As `Plant.told`, shape (T + 1, D, 3).
        rates: Arrivals per second, prompt and output tokens per row and service, shape (R, S, 3).
    """

    rows: slice
    row_of_tick: np.ndarray
    cap_w: np.ndarray
    stage: np.ndarray
    is_down: np.ndarray
    limits: np.ndarray
    told: np.ndarray
    rates: np.ndarray

    @property
    def ticks(self) -> int:
        return len(self.row_of_tick)


@dataclass(frozen=True)
class Side:
    """What one side's replay of one stretch gave.

    Attributes:
        kpis: One dict per draw.
        power_w, gpu_w: Per draw and control interval, shape (B, K).
        ttft_s, itl_s: Shape (B, K, S).
    """

    kpis: list[dict[str, float]]
    power_w: np.ndarray
    gpu_w: np.ndarray
    ttft_s: np.ndarray
    itl_s: np.ndarray


@dataclass(frozen=True)
class Replayed:
    """Draws of all stretches, in the order of draws.

    Attributes:
        incumbent, proposed: KPIs, one dict per draw.
        params: The plant's uncertain parameters, one dict per draw.
        check: How the replay of the incumbent compares with the log.
        series: {"time_s", "logged_power_w", "power_p5_w", …} of the first stretch, for the chart of the check.
        replayed_s: Time of the log that at least one draw covers.
        stretches: Parts of the log that were replayed.
    """

    incumbent: list[dict[str, float]]
    proposed: list[dict[str, float]]
    params: list[dict[str, float]]
    check: dict[str, Any]
    series: dict[str, np.ndarray]
    replayed_s: float
    stretches: int


def why_not(shadow: Shadow) -> str:
    """Why nothing can be predicted from this log; empty when it can."""
    if not _pieces(shadow):
        longest_s = max(shadow.log.time_s[r][-1] - shadow.log.time_s[r][0] for r in shadow.runs)
        return f"the longest part without a gap lasts {longest_s:.0f} s; a replay needs {MIN_STRETCH_S:.0f} s"
    service, stale_s = shadow.log.service, shadow.fleet.timing.stale_s
    for name in ("arrival_rps", "prompt_tokens", "output_tokens"):
        known = float((np.isfinite(service[name]) & (service["age_s"] <= stale_s)).mean())
        if known < MIN_KNOWN_FRAC:
            return (
                f"{name} of the services is known {known:.0%} of the time, a replay needs {MIN_KNOWN_FRAC:.0%}: "
                "connect the model servers' metrics"
            )
    known = float(shadow.known[shadow.is_settled].mean()) if shadow.is_settled.any() else 0.0
    if known < MIN_KNOWN_FRAC:
        return f"caps were read back {known:.0%} of the time, a replay needs {MIN_KNOWN_FRAC:.0%}: check the agents"
    return ""


def replay(shadow: Shadow, windows: int, progress: Progress) -> Replayed:
    """Replay both sides over `windows` draws of parameters and load noise.

    Raises:
        BadInput: if the policy of the log cannot be made here.
    """
    pieces = _pieces(shadow)
    taken = [
        pieces[i * len(pieces) // windows] if len(pieces) > windows else pieces[i % len(pieces)] for i in range(windows)
    ]
    chosen = [p for p in pieces if p in taken]
    incumbent, proposed = [], []
    params: list[dict[str, float]] = []
    checks: list[dict[str, Any]] = []
    series: dict[str, np.ndarray] = {}
    for i, piece in enumerate(chosen):
        share = i / len(chosen)
        seeds = np.array([SEED + w for w in range(windows) if taken[w] == piece])
        stretch = _expand(shadow, piece)
        fleet = _starting(shadow.fleet, stretch)
        load = _load(stretch, fleet, seeds)
        scenario = _scenario(fleet, stretch)
        progress("replaying the incumbent", share)
        plant = _plant(scenario, stretch, load, seeds)
        done = _run_incumbent(plant, stretch)
        params += [{n: float(row[n]) for n in scenario.plant} for row in plant.params]
        progress("replaying the policy", share + 0.5 / len(chosen))
        other = _run_policy(_plant(scenario, stretch, load, seeds), stretch, make_policy(shadow.policy, scenario))
        incumbent += done.kpis
        proposed += other.kpis
        checks.append(_compare(shadow, stretch, done))
        if not series:
            series = _check_series(shadow, stretch, done, other)
    covered_s = sum(float(shadow.log.time_s[p][-1] - shadow.log.time_s[p][0]) for p in chosen)
    return Replayed(incumbent, proposed, params, _summary(checks, shadow.fleet), series, covered_s, len(chosen))


def make_policy(record: dict[str, Any], scenario: Scenario) -> Policy:
    """The policy that a log names, with the constants that it had.

    Raises:
        BadInput: a policy file that is not there any more, or a name that this version does not know.
    """
    name = record["name"]
    if name == NeutralPolicy.name:
        return NeutralPolicy(scenario.fleet)
    if name in registry.BASELINES and "params" in record:
        return registry.baseline(name, scenario, record["params"])
    return registry.policy(name, scenario)


# ── from rows to ticks ──────────────────────────────────────────────────────────────────────────────────
def _pieces(shadow: Shadow) -> list[slice]:
    """Parts of the log without a gap, none longer than STRETCH_S."""
    out = []
    for run in shadow.runs:
        time_s = shadow.log.time_s[run]
        parts = max(math.ceil((time_s[-1] - time_s[0]) / STRETCH_S), 1)
        edges = [run.start + round(i * (run.stop - run.start) / parts) for i in range(parts + 1)]
        out += [slice(a, b) for a, b in pairwise(edges)]
    return [
        p for p in out if p.stop - p.start > 1 and shadow.log.time_s[p][-1] - shadow.log.time_s[p][0] >= MIN_STRETCH_S
    ]


def _expand(shadow: Shadow, rows: slice) -> Stretch:
    log, timing, fleet = shadow.log, shadow.fleet.timing, shadow.fleet
    elapsed_s = log.time_s[rows] - log.time_s[rows.start]
    per_step = round(timing.control_s / timing.tick_s)
    ticks = max(int(elapsed_s[-1] / timing.control_s), 1) * per_step
    at_tick = np.rint(elapsed_s / timing.tick_s).astype(int)
    row = np.searchsorted(at_tick, np.arange(ticks), side="right") - 1
    node = log.node[rows]
    cap_w = _carry(np.where(node["cap_w"] == UNKNOWN_W, np.nan, node["cap_w"]))
    cap_w = np.where(np.isfinite(cap_w), cap_w, fleet.node_static["cap_max_w"]).astype(np.int64)
    is_down = (node["is_silent"] == 1) & (node["age_s"] > DOWN_AFTER_S)
    # a node that nobody had heard of yet is missing, not down
    is_down &= node["age_s"] < NEVER_S
    stage = np.where(node["age_s"] >= NEVER_S, fleet.node_static["stage"], node["stage"])
    limits, told = _limits(shadow, rows, at_tick, ticks)
    return Stretch(rows, row, cap_w[row], stage[row], is_down[row], limits, told, _rates(shadow, rows))


def _carry(values: np.ndarray) -> np.ndarray:
    """The last finite value of each column where one is missing, the first one before it; axis 0 is time."""
    index = np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1))
    finite = np.isfinite(values)
    last = np.maximum.accumulate(np.where(finite, index, -1), axis=0)
    first = np.where(finite.any(0), finite.argmax(0), 0)
    return np.take_along_axis(values, np.where(last < 0, first, last), 0)


def _rates(shadow: Shadow, rows: slice) -> np.ndarray:
    """Smoothed arrivals and lengths per row and service; a service that was never heard gets none."""
    service, timing = shadow.log.service[rows], shadow.fleet.timing
    width = max(round(SMOOTH_S / timing.control_s), 1)
    out = np.zeros((*service.shape, 3))
    for i, name in enumerate(("arrival_rps", "prompt_tokens", "output_tokens")):
        values = np.where(service["age_s"] < NEVER_S, service[name], np.nan)
        values = np.nan_to_num(_carry(values), nan=0.0)
        kernel = np.ones(width)
        for s in range(service.shape[1]):
            count = np.convolve(np.ones(len(values)), kernel, "same")[: len(values)]
            out[:, s, i] = np.convolve(values[:, s], kernel, "same")[: len(values)] / count
    return out


def _limits(shadow: Shadow, rows: slice, at_tick: np.ndarray, ticks: int) -> tuple[np.ndarray, np.ndarray]:
    """Limits demanded, in force and told at every tick, from rows that stand a control interval apart."""
    domain, time_s = shadow.log.domain[rows], shadow.log.time_s[rows]
    tick_s, grace_s = shadow.fleet.timing.tick_s, shadow.fleet.timing.grace_s
    grace = math.ceil(grace_s / tick_s)
    count = domain.shape[1]
    demanded = np.zeros((ticks + 1, count), np.int64)
    told = np.zeros((ticks + 1, count, 3))
    row = np.searchsorted(at_tick, np.arange(ticks + 1), side="right") - 1
    since_s = (np.arange(ticks + 1) - at_tick[row]) * tick_s
    in_force = np.zeros_like(demanded)
    for d in range(count):
        limit_w, next_w, next_in_s = (domain[n][:, d] for n in ("limit_w", "next_limit_w", "next_in_s"))
        left_s = np.where(next_in_s[row] < NEVER_S, next_in_s[row] - since_s, NEVER_S)
        # an announced change starts between two rows, at the time that was announced
        begun = left_s <= 0
        demanded[:, d] = np.where(begun, next_w[row], limit_w[row])
        told[:, d, 0] = demanded[:, d]
        told[:, d, 1] = np.where(begun, demanded[:, d], next_w[row])
        told[:, d, 2] = np.where(begun, NEVER_S, left_s)
        in_force[:, d] = demanded[:, d]
        for r in np.flatnonzero(np.diff(limit_w) < 0) + 1:
            if not was_announced(domain[:, d], time_s, int(r), grace_s):
                late = slice(at_tick[r], at_tick[r] + grace)
                in_force[late, d] = np.maximum(in_force[late, d], limit_w[r - 1])
    return np.stack((demanded, in_force), -1), told


# ── the plant ───────────────────────────────────────────────────────────────────────────────────────────
def _starting(fleet: Fleet, stretch: Stretch) -> Fleet:
    """The site with its nodes in the stages that they had at the start of the stretch."""
    nodes = tuple(
        replace(n, stage=STAGE_NAMES[stage]) if stage != PARKED else n
        for n, stage in zip(fleet.nodes, stretch.stage[0].tolist(), strict=True)
    )
    return replace(fleet, nodes=nodes)


def _scenario(fleet: Fleet, stretch: Stretch) -> Recorded:
    seconds = stretch.ticks * fleet.timing.tick_s
    return Recorded("shadow", "shadow", "", "", seconds, WARMUP_S, recorded=fleet)


def _load(stretch: Stretch, fleet: Fleet, seeds: np.ndarray) -> Load:
    """Requests drawn from the recorded rates: every draw has its own noise."""
    timing = fleet.timing
    steps = round(stretch.ticks * timing.tick_s / timing.control_s)
    at = stretch.row_of_tick[:: round(timing.control_s / timing.tick_s)][:steps]
    spec, loads = LoadSpec(scale=1.0), []
    names = [s.name for s in fleet.services]
    for s, name in enumerate(names):
        rate, prompt, output = stretch.rates[at, s].T
        table = RateTable(
            np.arange(steps) * timing.control_s,
            rate,
            np.maximum(prompt, 1.0),
            np.maximum(output, 1.0),
            "shadow log",
            "",
        )
        if rate.sum() <= 0:
            loads.append(_silence(stretch.ticks, len(seeds), spec, timing.tick_s))
            continue
        own = [int(seed) * len(names) + s for seed in seeds]
        loads.append(superpose(table, spec, [1.0], stretch.ticks * timing.tick_s, timing.tick_s, own, [name]))
    joined: dict[str, Any] = {
        n: np.concatenate([getattr(load, n) for load in loads], -1)
        for n in ("arrivals", "prompt_tokens", "output_tokens", "ca2", "cs2")
    }
    return replace(loads[0], **joined)


def _silence(ticks: int, batch: int, spec: LoadSpec, tick_s: float) -> Load:
    """A service to which nothing came."""
    shape, one = (batch, ticks, 1), (batch, 1)
    means = np.full(shape, spec.prompt_tokens), np.full(shape, spec.output_tokens)
    return Load(
        np.zeros(shape), *means, np.full(one, spec.ca2), np.full(one, spec.prompt_cv**2), tick_s, "shadow log", 1.0
    )


def _plant(scenario: Recorded, stretch: Stretch, load: Load, seeds: np.ndarray) -> Plant:
    plant = Plant(scenario, scenario.fleet, len(seeds))
    plant.reset(seeds, load)
    plant.limits[:], plant.told[:] = stretch.limits, stretch.told
    plant.limits_now()
    return plant


class _Record:
    """What a replay shows, once per control interval."""

    def __init__(self, plant: Plant):
        self.plant = plant
        self.columns: dict[str, list[np.ndarray]] = {n: [] for n in ("power_w", "gpu_w", "ttft_s", "itl_s")}

    def take(self) -> None:
        told = self.plant.snapshot
        self.columns["power_w"].append(self.plant.domain["power_w"][:, 0].copy())
        self.columns["gpu_w"].append(np.nansum(told.node["power_w"], -1))
        for name in ("ttft_s", "itl_s"):
            self.columns[name].append(told.service[name].copy())

    def side(self) -> Side:
        arrays = {n: np.stack(v, 1) for n, v in self.columns.items()}
        return Side([self.plant.kpis(b) for b in range(self.plant.batch)], **arrays)


def _hold_down(plant: Plant, is_down: np.ndarray) -> None:
    """Keep nodes down through the coming tick."""
    if is_down.any():
        plant.node["down_s"][:, is_down] = 2.0 * plant.fleet.timing.tick_s
        plant.node["agent_down"][:, is_down] = 1


def _run_incumbent(plant: Plant, stretch: Stretch) -> Side:
    record = _Record(plant)
    plant.node["cap_w"] = plant.snapshot.node["cap_w"] = stretch.cap_w[0]
    for k in range(stretch.ticks):
        _hold_down(plant, stretch.is_down[k])
        plant.tick_under(command(plant, stretch.cap_w[k], stretch.stage[k]))
        if (k + 1) % plant.control_ticks == 0:
            record.take()
    return record.side()


def _run_policy(plant: Plant, stretch: Stretch, policy: Policy) -> Side:
    record, memory = _Record(plant), policy.start(plant.batch)
    step = plant.control_ticks
    for k in range(0, stretch.ticks, step):
        bids, memory = policy.bid(plant.snapshot, observe(plant.fleet, plant.state, plant.snapshot), memory)
        if stretch.is_down[k : k + step].any():
            for j in range(k, k + step):
                _hold_down(plant, stretch.is_down[j])
                plant.step(bids, 1)
        else:
            plant.step(bids)
        record.take()
    return record.side()


# ── how far the plant is right ──────────────────────────────────────────────────────────────────────────
def _logged(shadow: Shadow, stretch: Stretch) -> tuple[np.ndarray, str, dict[str, np.ndarray]]:
    """Logged power with its source, and latencies, at the end of every control interval of the stretch."""
    log, timing = shadow.log, shadow.fleet.timing
    per_step = round(timing.control_s / timing.tick_s)
    elapsed_s = log.time_s[stretch.rows] - log.time_s[stretch.rows.start]
    ends = np.arange(per_step, stretch.ticks + 1, per_step)
    row = np.searchsorted(np.rint(elapsed_s / timing.tick_s).astype(int), ends, side="right") - 1
    domain, node, service = (t[stretch.rows][row] for t in (log.domain, log.node, log.service))
    meter = np.where(domain["meter_age_s"] <= timing.stale_s, domain["meter_w"], np.nan)[:, 0]
    heard = service["age_s"] <= timing.stale_s
    latency = {n: np.where(heard, service[n], np.nan) for n in ("ttft_s", "itl_s")}
    if np.isfinite(meter).any():
        return meter, "meter", latency
    fresh = (node["age_s"] <= timing.stale_s).all(-1)
    return np.where(fresh, node["power_w"].sum(-1), np.nan), "gpus", latency


def _compare(shadow: Shadow, stretch: Stretch, done: Side) -> dict[str, Any]:
    """Logged and predicted values of one stretch, after the warm-up, with each draw's own error."""
    power_w, source, latency = _logged(shadow, stretch)
    skip = math.ceil(WARMUP_S / shadow.fleet.timing.control_s)
    mine = done.power_w if source == "meter" else done.gpu_w
    out: dict[str, Any] = {"source": source, "power": _error(power_w[skip:], mine[:, skip:])}
    for name, predicted in (("ttft_s", done.ttft_s), ("itl_s", done.itl_s)):
        out[name] = [_error(latency[name][skip:, s], predicted[:, skip:, s]) for s in range(predicted.shape[2])]
    return out


def _error(logged: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray] | None:
    """Means over the intervals that were logged, per draw; None where nothing was."""
    kept = np.isfinite(logged)
    if not kept.any():
        return None
    mine = np.nanmean(np.where(np.isfinite(predicted), predicted, np.nan)[:, kept], -1)
    typical = np.nanmean(predicted[:, kept], 0)
    return {
        "logged": np.full(len(mine), logged[kept].mean()),
        "predicted": mine,
        "interval": np.array([np.nanmean(np.abs(typical - logged[kept]))]),
    }


def _summary(checks: list[dict[str, Any]], fleet: Fleet) -> dict[str, Any]:
    """The check over all stretches: logged and predicted means, the relative error and its range over draws."""

    def joined(parts: list[dict[str, np.ndarray] | None]) -> dict[str, float] | None:
        kept = [p for p in parts if p is not None]
        if not kept:
            return None
        logged = np.concatenate([p["logged"] for p in kept])
        predicted = np.concatenate([p["predicted"] for p in kept])
        error = predicted / logged - 1.0
        return {
            "logged": float(logged.mean()),
            "predicted": float(predicted.mean()),
            "error_frac": float(predicted.mean() / logged.mean() - 1.0),
            "error_p5_frac": float(np.quantile(error, 0.05)),
            "error_p95_frac": float(np.quantile(error, 0.95)),
            "interval_error_frac": float(np.mean([p["interval"] for p in kept]) / logged.mean()),
        }

    return {
        "power_source": checks[0]["source"],
        "power_w": joined([c["power"] for c in checks]),
        "services": [
            {"service": s.name, **{n: joined([c[n][i] for c in checks]) for n in ("ttft_s", "itl_s")}}
            for i, s in enumerate(fleet.services)
        ],
    }


def _check_series(shadow: Shadow, stretch: Stretch, done: Side, other: Side) -> dict[str, np.ndarray]:
    """Logged power against the range of draws under either side."""
    power_w, source, latency = _logged(shadow, stretch)
    out = {
        "time_s": shadow.log.time_s[stretch.rows.start] + (np.arange(len(power_w)) + 1) * shadow.fleet.timing.control_s,
        "logged_power_w": power_w,
    }
    for label, side in (("incumbent", done), ("proposed", other)):
        mine = side.power_w if source == "meter" else side.gpu_w
        for q in (5, 50, 95):
            out[f"{label}_power_p{q}_w"] = np.quantile(mine, q / 100, axis=0)
    for name, values in (("ttft_s", done.ttft_s), ("itl_s", done.itl_s)):
        for i, service in enumerate(shadow.fleet.services):
            out[f"logged_{name}:{service.name}"] = latency[name][:, i]
            for q in (5, 50, 95):
                out[f"incumbent_{name}_p{q}:{service.name}"] = np.nanquantile(values[:, :, i], q / 100, axis=0)
    return out


# ── the prediction ──────────────────────────────────────────────────────────────────────────────────────
def changes(replayed: Replayed) -> list[dict[str, Any]]:
    """Every KPI under either side, and its change with a 95 % interval of the mean and the range of 95 % of draws.

    The interval of the mean shrinks with the number of draws; the site is one draw, so its own change is to be
    expected within the range.
    """
    out = []
    for name in (*RELATIVE, *ABSOLUTE):
        a = np.array([k[name] for k in replayed.incumbent], float)
        b = np.array([k[name] for k in replayed.proposed], float)
        is_relative = name in RELATIVE
        if is_relative:
            mean, ci95 = paired(b, a)
            each = _relative(a, b)
        else:
            mean, ci95 = interval(b - a)
            each = b - a
        kept = each[np.isfinite(each)]
        spread = np.quantile(kept, [0.025, 0.975]).tolist() if len(kept) else [math.nan, math.nan]
        out.append(
            {
                "kpi": name,
                "is_relative": is_relative,
                "incumbent": dict(zip(("mean", "ci95"), interval(a), strict=True)),
                "flyball": dict(zip(("mean", "ci95"), interval(b), strict=True)),
                "change": {"mean": mean, "ci95": ci95, "range95": spread, "draws": each.tolist()},
            }
        )
    return out


def _relative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Change of each draw as a share of the incumbent's; NaN where that is nothing."""
    return np.divide(b, a, out=np.full(len(a), math.nan), where=a != 0) - 1.0


def sensitivity(replayed: Replayed, kpi: str) -> list[dict[str, Any]]:
    """How the change of a KPI differs between the lower and the upper half of each parameter's draws."""
    if len(replayed.params) < 8:
        return []  # halves of fewer than four draws say nothing
    a = np.array([k[kpi] for k in replayed.incumbent], float)
    b = np.array([k[kpi] for k in replayed.proposed], float)
    each = _relative(a, b)
    out = []
    for name in replayed.params[0]:
        values = np.array([p[name] for p in replayed.params])
        if np.ptp(values) == 0:
            continue
        upper = values > np.median(values)
        halves = [part[np.isfinite(part)] for part in (each[~upper], each[upper])]
        if min(len(part) for part in halves) < 2:
            continue
        low, high = (float(part.mean()) for part in halves)
        error = math.sqrt(sum(part.var(ddof=1) / len(part) for part in halves))
        out.append(
            {
                "parameter": name,
                "low_half": low,
                "high_half": high,
                "range": [float(values.min()), float(values.max())],
                "is_clear": abs(high - low) > CLEAR_ERRORS * error,
            }
        )
    return sorted(out, key=lambda row: -abs(row["high_half"] - row["low_half"]))


def unavailable(error: BadInput) -> str:
    """What a report says where the policy of the log cannot be made."""
    return f"the policy of the log cannot be run here: {error}"
