"""Steady caps against the optimum: lexicographic weighted max-min by linear programs (HiGHS), and three phases.

`python -m flyball.experiments.referee.optimum [--trees N] [--seed N] [--json]` prints, for random trees, how far the
arbiter's steady caps lie from the optimum, and its satisfaction and time beside those of `bench.three_phase`.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import numpy as np

from ...fleet.arbiter import initial_state
from ...fleet.arbiter.settle import settle
from ...fleet.bids import WATTS_EXPONENT, Bids
from ...fleet.errors import BadInput
from ...fleet.plan import Shed
from ...fleet.snapshot import Snapshot
from ...fleet.tables import DECODE, STAGES
from ...fleet.topology import Fleet
from ..bench.three_phase import Request, ThreePhase
from .sites import random_site

STEADY_TICKS = 20


def max_min(fleet: Fleet, weight: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The lexicographic max-min of cap / weight under every limit, shape (N,), watts, as a sequence of programs.

    Each program raises the level of all nodes still open as far as the tree allows; nodes whose constraint carries a
    price there are what stops it, and are fixed.

    Raises:
        ImportError: without scipy, which is in the [dev] extra.
        ValueError: if the smallest caps do not fit.
    """
    import scipy.optimize

    static, n = fleet.domain_static, len(weight)
    scale = float(high.max())
    tree = np.zeros((len(static), n + 1))
    for d, row in enumerate(static):
        tree[d, int(row["node_start"]) : int(row["node_end"])] = 1.0
    room = (static["peak_w"] - static["unmanaged_w"] - static["non_gpu_max_w"]) / scale
    lower, upper = low / scale, high / scale
    share = weight / weight.max()
    is_open = lower < upper
    cap = np.where(is_open, np.nan, lower)
    while is_open.any():
        rows = np.flatnonzero(is_open)
        level = np.zeros((len(rows), n + 1))
        level[np.arange(len(rows)), rows], level[:, n] = -1.0, share[rows]
        bounds = [(lower[i], upper[i]) if is_open[i] else (cap[i], cap[i]) for i in range(n)] + [(0.0, None)]
        found = scipy.optimize.linprog(
            np.eye(n + 1)[n] * -1.0,
            A_ub=np.vstack([tree, level]),
            b_ub=np.concatenate([room, np.zeros(len(rows))]),
            bounds=bounds,
            method="highs",
        )
        if not found.success:
            raise ValueError(f"smallest caps do not fit: {found.message}")
        priced = rows[np.abs(found.ineqlin.marginals[len(static) :]) > 1e-9]
        for i in priced:
            cap[i] = min(upper[i], max(lower[i], share[i] * found.x[n]))
            is_open[i] = False
    return cap * scale


def steady(fleet: Fleet, demand_w: np.ndarray, bids: Bids) -> tuple[np.ndarray, int, float]:
    """Caps once everything is acknowledged, shape (N,), the shedding level, and CPU seconds of the last settlement."""
    state = initial_state(fleet, 1, assume_acked=True)
    sn = Snapshot.unknown(fleet, 1, 0.0)
    sn.node["is_silent"], sn.node["is_up"], sn.node["age_s"] = 0, 1, 0.5
    sn.node["demand_w"], sn.node["util_frac"] = demand_w, 0.5
    caps, seqs, stages = state.node["cap_cmd_w"], state.node["seq"], state.node["stage_cmd"]
    for _ in range(STEADY_TICKS):
        sn.time_s[:] += fleet.timing.tick_s
        sn.node["cap_w"], sn.node["ack_seq"], sn.node["stage"] = caps, seqs, stages
        started = time.process_time()
        state, plan = settle(fleet, state, sn, bids)
        spent = time.process_time() - started
        caps, seqs, stages = plan.node["cap_w"], plan.node["seq"], plan.node["stage"]
    return caps[0], int(plan.fleet["shed_level"][0]), spent


def one_tree(rng: np.random.Generator) -> dict[str, float] | None:
    """One random tree: distance from the optimum, satisfaction and time; None where floors do not fit."""
    fleet = random_site(rng, deadband_w=0)
    fleet = replace(fleet, domains=tuple(replace(d, unknown_reserve=0, mean_w=0) for d in fleet.domains))
    static = fleet.node_static
    demand_w = rng.uniform(0.15, 1.1, len(static)) * static["cap_max_w"]
    bids = Bids.neutral(1, fleet.pools, len(static))
    bids.pool[0, :, 0] = rng.uniform(-1, 1, fleet.pools)
    cap, shed, spent = steady(fleet, demand_w, bids)
    if shed > Shed.CAP:
        return None
    pool = STAGES * static["service"] + static["stage"]
    weight = np.maximum(1.0, np.exp(WATTS_EXPONENT * bids.pool[0, pool, 0].astype(float)) * demand_w)
    low = np.where(
        static["stage"] == DECODE, np.maximum(static["decode_floor_w"], static["cap_min_w"]), static["cap_min_w"]
    )
    high = static["cap_max_w"]
    best = max_min(fleet, weight, low.astype(float), high.astype(float))
    want = np.clip(weight, low, high)
    priority = fleet.service_static["priority"][static["service"]]
    allocator = ThreePhase(fleet)
    started = time.process_time()
    theirs = allocator.allocate(Request(want, low, high, np.zeros_like(priority), np.ones(len(static), bool)))
    theirs_s = time.process_time() - started
    return {
        "distance_w": float(np.abs(cap - best).max()),
        "sum_w": float(cap.sum() - best.sum()),
        "satisfaction": float(np.minimum(cap, want).sum() / want.sum()),
        "satisfaction_three_phase": float(np.minimum(theirs, want).sum() / want.sum()),
        "cpu_us": spent * 1e6,
        "cpu_three_phase_us": theirs_s * 1e6,
    }


def compare(trees: int, seed: int = 0, progress: Callable[[str, float], None] | None = None) -> dict[str, Any]:
    """Figures over `trees` random trees.

    Raises:
        BadInput: if there is no tree.
    """
    if trees < 1:
        raise BadInput("--trees must be at least 1")
    rng, rows, skipped = np.random.default_rng(seed), [], 0
    while len(rows) < trees:
        row = one_tree(rng)
        skipped += row is None
        rows += [row] if row else []
        if progress:
            progress("trees", len(rows) / trees)
    columns = {name: np.array([r[name] for r in rows]) for name in rows[0]}
    gap = columns["satisfaction"] - columns["satisfaction_three_phase"]
    return {
        "trees": trees,
        "floors_did_not_fit": skipped,
        "max_distance_w": float(columns["distance_w"].max()),
        "share_within_1_w": float((columns["distance_w"] <= 1.0).mean()),
        "satisfaction_mean": float(columns["satisfaction"].mean()),
        "satisfaction_three_phase_mean": float(columns["satisfaction_three_phase"].mean()),
        "satisfaction_gap_min": float(gap.min()),
        "share_not_below": float((gap >= -1e-3).mean()),
        "cpu_us_median": float(np.median(columns["cpu_us"])),
        "cpu_three_phase_us_median": float(np.median(columns["cpu_three_phase_us"])),
    }


@click.command()
@click.option("--trees", type=int, default=1000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(trees: int, seed: int, as_json: bool) -> None:
    """Distance of steady caps from the optimum, and three phases beside them."""
    import json

    from ...console import progress_bar, table

    with progress_bar("trees", as_json) as bar:
        try:
            result = compare(trees, seed, bar)
        except BadInput as e:
            click.echo(str(e), err=True)
            raise SystemExit(2) from None
    if as_json:
        click.echo(json.dumps(result))
        return
    table(f"{trees} random trees", ["figure", "value"], [{"figure": k, "value": v} for k, v in result.items()])


if __name__ == "__main__":
    main()
