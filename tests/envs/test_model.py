"""The nominal model: tables say what the equations say, and watts go where the next one earns most."""

import numpy as np
import pytest

from flyball.envs.hardware import profile_table
from flyball.envs.model import PlantModel
from flyball.envs.physics import decode_batch_within, decode_step_s
from flyball.envs.scenario import load_scenario
from flyball.fleet.tables import DECODE, STAGES


@pytest.fixture(scope="module")
def model():
    return PlantModel(load_scenario("multi-service").fleet)


def draw(model, rng, batch=5):
    """Random arguments of `marginal_caps`, in its order."""
    pools, services = model.fleet.pools, len(model.fleet.services)
    nodes = rng.integers(0, 9, (batch, pools)).astype(float)
    return [
        nodes,
        8.0 * nodes,
        rng.uniform(1e2, 1e5, (batch, pools)),
        rng.uniform(1e2, 1e5, (batch, pools)),
        rng.uniform(0, 2e3, (batch, services)),
        rng.uniform(50, 5e3, (batch, services)),
        rng.uniform(50, 8e3, (batch, services)),
        2.5,
        rng.uniform(0.0, 1.0, batch) * 8 * 700 * nodes.sum(-1),
    ]


def test_the_batch_within_a_target_is_the_inverse_of_the_step_time():
    """The closed form gives the batch whose step takes the target, for dense models and for mixtures of experts."""
    row = profile_table(load_scenario("steady").fleet)[0, 0]
    for experts_s, half in ((0.0, 1.0), (0.02, 24.0)):
        prof = np.rec.array(row.reshape(1))[0]
        prof.step_experts_s, prof.experts_half = experts_s, half
        for batch in (1.0, 17.0, 300.0):
            itl_s = decode_step_s.py_func(prof, batch, 1300.0)
            assert decode_batch_within.py_func(prof, 1300.0, itl_s) == pytest.approx(batch, rel=1e-9)


def test_tabled_pools_say_what_the_equations_say(model):
    """Between their entries the tables of pools are within 2 % of the rates they stand for."""
    rng = np.random.default_rng(0)
    low, high = model.cap_range_w.T
    cap_w = rng.uniform(low, high, (50, model.fleet.pools))
    context = rng.uniform(100, 20_000, (50, len(model.fleet.services)))
    found, slots = model.node_tok_s(cap_w, np.full_like(context, 1000.0), context)
    for p in range(model.fleet.pools):
        s = p // STAGES
        nodes = model.fleet.node_static[model.fleet.node_static["service"] == s]
        k, gpus = int(np.bincount(nodes["sku"]).argmax()), int(nodes["gpus"][0])
        if p % STAGES == DECODE:
            itl_s = float(model.fleet.service_static["itl_s"][s])
            fit = model.decode_slots(s, k, cap_w[:, p], itl_s, context[:, s])
            step_s = model.decode_step_s(s, k, cap_w[:, p], fit, context[:, s])
            replicas = model.replicas(s, k, gpus)
            np.testing.assert_allclose(slots[:, p], replicas * fit, rtol=2e-2)
            np.testing.assert_allclose(found[:, p], replicas * fit / step_s, rtol=2e-2)
        else:
            np.testing.assert_allclose(found[:, p], gpus * model.prefill_tok_s(s, k, cap_w[:, p], 1000.0), rtol=2e-2)


def test_marginal_caps_spend_the_budget_and_no_more(model):
    """Whatever is asked, caps lie in their range; above the floors they spend the budget, or all are at their top."""
    args = draw(model, np.random.default_rng(1), 200)
    caps_w = model.marginal_caps(*args)
    low, high = model.cap_range_w.T
    assert (caps_w >= low - 1e-9).all() and (caps_w <= high + 1e-9).all()
    gpus, budget_w = args[1], args[-1]
    spent_w, floor_w, top_w = (caps_w * gpus).sum(-1), (low * gpus).sum(-1), (high * gpus).sum(-1)
    is_idle = (args[0] == 0).any(-1)  # a pool without nodes may be given the watts of one GPU
    within = np.clip(budget_w, floor_w, top_w)
    assert (spent_w <= np.maximum(budget_w, floor_w) + 1e-6).all()
    np.testing.assert_allclose(spent_w[~is_idle], within[~is_idle], rtol=1e-9)


def test_marginal_caps_are_those_of_sorting_every_piece(model):
    """The merge over pools equals sorting all pieces by slope, as exactly as floating point allows."""
    rng = np.random.default_rng(2)
    args = draw(model, rng, 50)
    nodes, gpus, asked, value, active, prompt, context, sharpness, budget_w = args
    pieces = 24
    low, high = model.cap_range_w.T
    grid = np.linspace(low, high, pieces + 1)  # (J, P)
    gain = np.zeros((*nodes.shape, pieces))
    width_w = np.maximum(gpus, 1.0) * (high - low) / pieces
    utility = []
    for cap_w in grid:
        rate, slots = model.node_tok_s(np.broadcast_to(cap_w, nodes.shape).copy(), prompt, context)
        cover = nodes * rate / asked
        held = nodes[:, DECODE::STAGES] * slots[:, DECODE::STAGES] / np.maximum(active, 1.0)
        cover[:, DECODE::STAGES] = np.minimum(cover[:, DECODE::STAGES], held)
        utility.append(value * (1 - np.exp(-sharpness * cover)))
    gain = np.minimum.accumulate(np.diff(np.stack(utility, -1), axis=-1) / width_w[..., None], axis=-1)
    caps_w = model.marginal_caps(*args)
    for b in range(len(nodes)):
        spare_w, taken = budget_w[b] - (low * gpus[b]).sum(), np.zeros(nodes.shape[1])
        for flat in np.argsort(-gain[b].reshape(-1), kind="stable"):
            p = flat // pieces
            share = np.clip(spare_w / width_w[b, p], 0.0, 1.0)
            taken[p] += share
            spare_w -= share * width_w[b, p]
        np.testing.assert_allclose(caps_w[b], low + taken / pieces * (high - low), rtol=1e-6)


def test_a_batch_is_planned_like_its_rows(model):
    """Caps and rates of a batch are bit for bit those of its rows."""
    args = draw(model, np.random.default_rng(3))
    whole = model.marginal_caps(*args)
    rates, _ = model.node_tok_s(whole, args[5], args[6])
    for b in range(len(whole)):
        row = [a[b : b + 1] if isinstance(a, np.ndarray) else a for a in args]
        one = model.marginal_caps(*row)
        assert one.tobytes() == whole[b].tobytes()
        assert model.node_tok_s(one, row[5], row[6])[0].tobytes() == rates[b].tobytes()
