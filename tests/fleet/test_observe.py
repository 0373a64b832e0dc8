"""Features: inside their ranges, never NaN, the same bits alone and in a batch, and what they say is true."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball.fleet.arbiter import initial_state
from flyball.fleet.observe import observe
from flyball.fleet.schema import FLEET_FEATURES, NODE_FEATURES, POOL_FEATURES, column
from flyball.fleet.snapshot import Snapshot
from flyball.fleet.tables import PARKED


def corrupt(table, rng, share):
    """Replace a share of all float entries by NaN, infinities and huge values."""
    for name in table.dtype.names:
        if table.dtype[name].kind == "f":
            hit = rng.uniform(size=table.shape) < share
            table[name][hit] = rng.choice([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0], int(hit.sum()))


def scene(world, rng, batch=4, share=0.3):
    fleet = world.site((3, 5, 2), 1.4, services=3, mean_frac=0.9)
    state = initial_state(fleet, batch, assume_acked=True)
    shape = (batch, len(fleet.nodes))
    state.node["stage_cmd"] = rng.choice([0, 1, PARKED], shape)
    state.node["is_drained"] = rng.uniform(size=shape) < 0.1
    sn = world.warm(fleet, state, rng.uniform(500, 6500, shape), batch)
    sn.node["stage"] = rng.choice([0, 1, PARKED], shape)
    sn.node["moving_s"] = rng.choice([0.0, 30.0], shape, p=[0.8, 0.2])
    sn.node["util_frac"] = rng.uniform(0, 1.5, shape)
    sn.node["is_up"] = rng.uniform(size=shape) < 0.9
    for name in state.pool.dtype.names:
        state.pool[name] = rng.uniform(0, 2, state.pool.shape)
    for table in (sn.node, sn.domain, sn.service, state.pool):
        corrupt(table, rng, share)
    return fleet, state, sn


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_features_stay_inside_their_ranges_whatever_is_missing(world, seed):
    """NaN, infinities and nonsense in any table never leave the declared ranges."""
    fleet, state, sn = scene(world, np.random.default_rng(seed))
    found = observe(fleet, state, sn)
    for array, features in (
        (found.pool, POOL_FEATURES),
        (found.node, NODE_FEATURES),
        (found.fleet, FLEET_FEATURES),
    ):
        assert array.dtype == np.float32
        assert array.shape[-1] == len(features)
        assert np.isfinite(array).all()
        for i, feature in enumerate(features):
            assert array[..., i].min() >= np.float32(feature.low)
            assert array[..., i].max() <= np.float32(feature.high)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_batch_is_observed_like_its_rows(world, seed):
    """Every environment's features are the same bits alone and in a batch."""
    fleet, state, sn = scene(world, np.random.default_rng(seed), batch=7, share=0.05)
    whole = observe(fleet, state, sn)
    for b in range(7):
        one = observe(fleet, state.env(b), sn.env(b))
        for name in ("pool", "node", "fleet", "pool_mask", "node_mask"):
            assert getattr(one, name).tobytes() == getattr(whole, name)[b : b + 1].tobytes()


def test_pool_only_observations_leave_nodes_out(world):
    """`nodes=False` gives the same pools and no node features."""
    fleet, state, sn = scene(world, np.random.default_rng(0))
    whole, pools = observe(fleet, state, sn), observe(fleet, state, sn, nodes=False)
    assert pools.node.shape == (4, 0, len(NODE_FEATURES))
    assert pools.pool.tobytes() == whole.pool.tobytes()
    assert pools.fleet.tobytes() == whole.fleet.tobytes()


def test_pool_features_say_what_the_nodes_do(world):
    """Shares and means over a hand-made fleet: one node moving, one parked, one down, one stale."""
    fleet = world.site((8,), 1.4)  # even ids decode, odd ids prefill
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state, np.full((1, 8), 2800.0))
    sn.node["util_frac"][0] = [0.2, 0.4, 0.2, 0.4, 0.2, 0.4, 0.8, 1.0]
    sn.node["moving_s"][0, 1] = 10.0
    state.node["stage_cmd"][0, 3] = PARKED
    sn.node["stage"][0, 3] = PARKED
    sn.node["is_up"][0, 5] = 0
    sn.node["age_s"][0, 0] = 60.0
    sn.service["backlog_s"], sn.service["itl_s"], sn.service["kv_frac"] = 0.5, 0.05, 0.25
    prefill, decode = observe(fleet, state, sn).pool[0]

    def value(pool, name):
        return float(pool[column("pool", name)])

    assert value(prefill, "is_prefill") == 1.0
    assert value(decode, "is_decode") == 1.0
    assert value(prefill, "node_share") == pytest.approx(1 / 8)
    assert value(decode, "node_share") == pytest.approx(4 / 8)
    for pool in (prefill, decode):
        assert value(pool, "parked_share") == pytest.approx(1 / 8)
        assert value(pool, "down_share") == pytest.approx(1 / 8)
        assert value(pool, "log_backlog") == pytest.approx(np.log(1.01))
        assert value(pool, "log_itl") == pytest.approx(0.0, abs=1e-6)
        assert value(pool, "others_util") == 0.0
        assert value(pool, "kv") == 0.25
    assert value(prefill, "moving_share") == pytest.approx(1 / 8)
    assert value(prefill, "util") == pytest.approx(1.0)
    assert value(decode, "util") == pytest.approx((0.2 + 0.2 + 0.2 + 0.8) / 4)
    assert value(decode, "stale") == pytest.approx(1 / 4)
    assert value(decode, "demand") == pytest.approx(0.5)


def test_fleet_features_say_what_is_announced(world):
    """Budget, announced change and its nearness, and the bank's fill."""
    fleet = world.site((8,), 1.4, mean_frac=0.9)
    state = initial_state(fleet, 1, assume_acked=True)
    sn = world.warm(fleet, state)
    peak_w = fleet.domains[0].peak_w
    sn.domain["next_limit_w"][0, 0] = peak_w // 2
    sn.domain["next_in_s"][0, 0] = 60.0
    sn.domain["meter_w"][0, 0] = 0.8 * peak_w
    state.domain["bank_ws"][0, 0] = 1e12
    row = observe(fleet, state, sn).fleet[0]
    expected = {
        "budget": (peak_w - 8 * 2800) / (8 * 5600),
        "budget_ratio": 1.0,
        "next_ratio": 0.5,
        "next_soon": np.exp(-1.0),
        "metered": 0.8,
        "bank": 1.0,
    }
    for name, value in expected.items():
        assert float(row[column("fleet", name)]) == pytest.approx(value, rel=1e-3)


def test_the_kernels_write_features_in_the_order_of_the_schema():
    """The kernels' columns are the schema's, by name."""
    from flyball.fleet.arbiter.features import FLEET_COLUMNS, POOL_COLUMNS
    from flyball.fleet.arbiter.sums import NODE_COLUMNS

    assert tuple(f.name for f in NODE_FEATURES) == NODE_COLUMNS
    assert tuple(f.name for f in POOL_FEATURES) == POOL_COLUMNS
    assert tuple(f.name for f in FLEET_FEATURES) == FLEET_COLUMNS


def test_an_unknown_fleet_can_be_observed(world):
    """Before anything was heard every feature has a value, and every node is down and stale."""
    fleet = world.site((4,), 1.4)
    found = observe(fleet, initial_state(fleet, 2), Snapshot.unknown(fleet, 2))
    assert (found.node[:, :, column("node", "is_down")] == 1).all()
    assert (found.node[:, :, column("node", "is_stale")] == 1).all()
    assert found.pool_mask.all()
