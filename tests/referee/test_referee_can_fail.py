"""The referee is independent, and notices every way of breaking a promise that it is shown."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flyball.experiments.referee.adversary import Adversary, Trouble
from flyball.experiments.referee.site import site_of
from flyball.experiments.referee.sites import random_site
from flyball.experiments.referee.world import World
from flyball.fleet.arbiter.settle import settle
from flyball.fleet.tables import NEVER_S

JUDGE = Path(__file__).resolve().parents[2] / "experiments" / "referee"


@pytest.mark.parametrize("name", ["events", "nodes", "limits", "referee", "site"])
def test_the_judge_imports_nothing_of_the_arbiter(name):
    """The judge's modules reach the standard library, each other, and the site file's nouns."""
    allowed = {"events", "nodes", "limits", "fleet.topology"}
    standard = {"bisect", "dataclasses", "fractions"}
    for node in ast.walk(ast.parse((JUDGE / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module in (allowed if node.level else standard)
        elif isinstance(node, ast.Import):
            raise AssertionError(node.names[0].name)


def hasty(fleet, state, snapshot, bids):
    """Counts a lower cap as released when it is sent."""
    state = state.copy()
    state.node["cap_possible_w"] = state.node["cap_cmd_w"]
    state.node["hold_s"] = 0.0
    return settle(fleet, state, snapshot, bids)


def without_reserve(fleet, state, snapshot, bids):
    domains = tuple(replace(d, unknown_reserve=0) for d in fleet.domains)
    return settle(replace(fleet, domains=domains), state, snapshot, bids)


def without_lag(fleet, state, snapshot, bids):
    return settle(replace(fleet, timing=replace(fleet.timing, firmware_lag_s=0.0)), state, snapshot, bids)


def late_to_cuts(fleet, state, snapshot, bids):
    """Goes on with the site's nominal limits: every grace is extended for ever."""
    sn = snapshot.copy()
    sn.domain["limit_w"] = sn.domain["next_limit_w"] = fleet.domain_static["peak_w"]
    sn.domain["next_in_s"] = NEVER_S
    return settle(fleet, state, sn, bids)


def overspending(fleet, state, snapshot, bids):
    """Believes every window's bank to be full, and spends it."""
    state = state.copy()
    state.domain["bank_ws"] = 1e9
    bids.fleet[:] = 1.0
    return settle(fleet, state, snapshot, bids)


def drain_happy(fleet, state, snapshot, bids):
    return settle(replace(fleet, max_drain_frac=1.0), state, snapshot, bids)


def restless(fleet, state, snapshot, bids):
    timing = replace(fleet.timing, dwell_s=0.0, moves_per_min=600.0)
    return settle(replace(fleet, timing=timing), state, snapshot, bids)


def trusting(fleet, state, snapshot, bids):
    """Takes old telemetry for fresh."""
    sn = snapshot.copy()
    sn.node["age_s"], sn.node["is_silent"], sn.node["is_up"] = 0.0, 0, 1
    sn.node["ack_seq"], sn.node["cap_w"] = state.node["seq"], state.node["cap_cmd_w"]
    return settle(fleet, state, sn, bids)


def optimistic(fleet, state, snapshot, bids):
    """Expects no deep cut: fallbacks are as large as caps."""
    return settle(replace(fleet, deepest_cut_frac=0.0), state, snapshot, bids)


def forgetful(fleet, state, snapshot, bids):
    """Takes every fallback for the one in force as soon as it is sent."""
    state = state.copy()
    for name in ("fallback_possible_w", "wait_fallback_w", "since_fallback_w"):
        state.node[name] = state.node["fallback_w"]
    return settle(fleet, state, snapshot, bids)


def never_parking(fleet, state, snapshot, bids):
    """Stops at the smallest cap where even that does not fit."""
    state, plan = settle(fleet, state, snapshot, bids)
    plan.node["fallback_w"] = np.where(
        plan.node["fallback_w"] == 0, fleet.node_static["cap_min_w"], plan.node["fallback_w"]
    )
    return state, plan


def generous(fleet, state, snapshot, bids):
    state, plan = settle(fleet, state, snapshot, bids)
    plan.node["cap_w"] += 100_000
    return state, plan


def renaming(fleet, state, snapshot, bids):
    """Gives every command the same sequence."""
    state, plan = settle(fleet, state, snapshot, bids)
    plan.node["seq"] = 7
    return state, plan


DEEP_CUTS = Trouble(cut=0.3, deep=True)

MUTANTS = [
    (hasty, Trouble(loss=0.2), {"raises wait for releases", "possible draw"}),
    (without_lag, Trouble(), {"raises wait for releases", "possible draw"}),
    (without_reserve, Trouble(reboot=0.05), {"raises wait for releases", "possible draw"}),
    (late_to_cuts, Trouble(cut=0.1), {"possible draw", "raises wait for releases", "fallbacks fit the deepest cut"}),
    (late_to_cuts, Trouble(loss=0.3, cut=0.1), {"possible draw"}),
    (overspending, Trouble(), {"window"}),
    (drain_happy, Trouble(fault=0.5), {"drains"}),
    (restless, Trouble(), {"dwell", "move rate", "one move at a time"}),
    (trusting, Trouble(loss=0.7), {"no raise without telemetry", "raises wait for releases", "possible draw"}),
    (optimistic, Trouble(), {"fallbacks fit the deepest cut"}),
    (forgetful, Trouble(loss=0.5, cut=0.3, deep=True), {"fallbacks fit the lowest limit"}),
    (never_parking, DEEP_CUTS, {"fallbacks fit the lowest limit"}),
    (generous, Trouble(), {"cap range"}),
    (renaming, Trouble(), {"one sequence, one command"}),
]


@pytest.mark.parametrize(("mutant", "trouble", "expected"), MUTANTS, ids=[m[0].__name__ for m in MUTANTS])
def test_a_broken_arbiter_is_noticed(mutant, trouble, expected):
    """Each mutant of the arbiter breaks the promise that it is made to break, on some random site."""
    seen = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        fleet = random_site(rng)
        world = World(fleet, mutant, site=site_of(fleet))
        Adversary(world, rng, None, trouble).play(30)
        seen |= {v.invariant for v in world.referee.violations}
        if seen & expected:
            return
    raise AssertionError(f"only {seen}")
