"""An episode starts the same, whatever was played before it, and is one whole however it is stepped."""

from operator import attrgetter

import numpy as np
import pytest

from flyball.envs.plant import EPISODE, EVOLVING, Plant

SHORT = ("seconds=240", "warmup_s=0")


def tables(plant):
    """Copies of everything an episode draws and everything that evolves."""
    return {name: attrgetter(name)(plant).copy() for name in EPISODE + EVOLVING}


def assert_same(found, wanted):
    """As bytes: what is unknown is NaN on both sides."""
    for name, table in wanted.items():
        assert found[name].tobytes() == table.tobytes(), name


@pytest.mark.parametrize("name", ["bursty", "faults", "curtailment", "factory-mix"])
def test_a_reset_forgets_what_was_played(make_core, name):
    """After episodes of other seeds a reset gives, byte for byte, what a new plant gives."""
    core = make_core(name, batch=2, overrides=SHORT, seeds=[7, 8])
    for _ in range(20):
        core.step(core.base)
    seeds = np.array([3, 4])
    load = core.make_load(seeds)
    core.plant.reset(seeds, load)
    fresh = Plant(core.scenario, core.fleet, 2)
    fresh.reset(seeds, load)
    assert_same(tables(core.plant), tables(fresh))


def shared(plant):
    """Copies of the rows that every episode starts with."""
    start = plant._start
    series = {f"limits from {key}": np.concatenate([a.ravel() for a in pair]) for key, pair in start.budgets.items()}
    rows = {"node": start.node, "domain": start.domain, "service": start.service, "told": start.told.node}
    state = np.frombuffer(start.state.to_bytes(), np.uint8)
    return {name: rows.copy() for name, rows in {**series, **rows, "state": state}.items()}


def test_what_is_shared_between_episodes_is_never_written(make_core):
    """Playing changes none of the rows that the next episode starts with."""
    core = make_core("faults", batch=2, overrides=SHORT)
    before = shared(core.plant)
    for _ in range(20):
        core.step(core.base)
    core.reset(np.array([9]), np.array([1]))
    assert_same(shared(core.plant), before)


def test_several_ticks_in_one_step_are_the_ticks_one_by_one(make_core):
    """Advancing each environment through a whole interval equals advancing all of them tick by tick."""
    whole, single = (make_core("factory-mix", batch=3, overrides=SHORT) for _ in range(2))
    bids = whole.base
    for _ in range(8):
        whole.plant.step(bids, ticks=5)
        for _ in range(5):
            single.plant.step(bids, ticks=1)
    assert_same(tables(whole.plant), tables(single.plant))
