"""The closed forms that the kernels compile: decode, prefill, use and draw."""

import numpy as np
import pytest

from flyball.envs.hardware import PROFILE, backend_factors, correction, gpu_physics, model_profiles, profile_row
from flyball.envs.laws import LAW_NAMES, decode_terms, prompt_terms
from flyball.envs.model import NOMINAL
from flyball.envs.physics import (
    busy_power_w,
    compute_share,
    decode_batch_within,
    decode_step_s,
    decode_use,
    kv_batch,
    prompt_s,
)
from flyball.fleet.skus import SKUS

PAIRS = [(m, g) for m in sorted(model_profiles()) for g in sorted(gpu_physics())]


class Row:
    """A profile row by attribute, as kernels read it."""

    def __init__(self, model: str, sku: str):
        self.__dict__ |= profile_row(model_profiles()[model], sku)


def test_every_gpu_product_of_the_arbiter_has_physics_and_the_reverse():
    """A SKU in one table and not in the other would fail only when a site names it."""
    assert set(SKUS) == set(gpu_physics())
    for name, sku in SKUS.items():
        assert gpu_physics()[name].tdp_w == sku.cap_max_w


@pytest.mark.parametrize(("model", "sku"), PAIRS)
def test_a_profile_fills_every_field_with_a_positive_finite_number(model, sku):
    """No kernel divides by a field that was left out; expert terms alone may be zero."""
    row = profile_row(model_profiles()[model], sku)
    assert set(row) == set(PROFILE.names)
    for name, value in row.items():
        assert np.isfinite(value), name
        assert value > 0 or (value == 0 and name in ("step_experts_s", "um_experts_s", "um_request_s", "aw_w")), name


@pytest.mark.parametrize(("model", "sku"), PAIRS)
def test_the_largest_batch_within_an_itl_takes_exactly_that_long(model, sku):
    """The quadratic inverts the step time, for dense and sparse models."""
    row = Row(model, sku)
    for context in (200.0, 4000.0, 60000.0):
        for batch in (1.0, 7.5, 300.0):
            itl_s = decode_step_s.py_func(row, batch, context)
            assert decode_batch_within.py_func(row, context, itl_s) == pytest.approx(batch, rel=1e-6)
    assert decode_batch_within.py_func(row, 1000.0, 0.9 * row.step_fixed_s) == 0.0


@pytest.mark.parametrize(("model", "sku"), PAIRS)
def test_the_profile_evaluates_the_law(model, sku):
    """The kernels' closed form and the vectorised law that is fitted and validated are one function."""
    profile, gpu = model_profiles()[model], gpu_physics()[sku]
    row, job = Row(model, sku), profile.job(gpu)
    decode_scale = correction("decode", sku, profile)
    prefill_scale = correction("prefill", sku, profile)
    expected = decode_terms(gpu.law, job).step_s(32.0, 2000.0) * decode_scale
    assert decode_step_s.py_func(row, 32.0, 2000.0) == pytest.approx(float(expected))
    expected = prompt_terms(gpu.law, job).prompt_s(3000.0) * prefill_scale
    assert prompt_s.py_func(row, 3000.0) == pytest.approx(float(expected))
    assert row.prefill_tok_s == pytest.approx(1.0 / (row.prompt_token_s * row.tp))


@pytest.mark.parametrize(("model", "sku"), PAIRS)
def test_draw_rises_with_the_clock_and_stays_within_the_product(model, sku):
    """Lower clocks never draw more, prefill draws its measured watts, decode draws between idle and prefill at small
    batches."""
    row, gpu = Row(model, sku), gpu_physics()[sku]
    context, draws = 1500.0, []
    for phi in np.linspace(0.18, 1.0, 12):
        u_m, u_c = decode_use.py_func(row, 8.0, context, decode_step_s.py_func(row, 8.0, context))
        assert 0.0 <= u_m < 1.0
        draws.append(busy_power_w.py_func(phi, compute_share.py_func(8.0), u_m, u_c, row, 1.0, *NOMINAL))
    assert np.all(np.diff(draws) > 0)
    assert gpu.pli_w < draws[-1] < 1.15 * gpu.tdp_w  # beyond the limit the cap holds it
    prefill_w = busy_power_w.py_func(1.0, 1.0, row.um_prefill, row.mfu_prefill, row, 1.0, *NOMINAL)
    assert prefill_w == pytest.approx(gpu.prefill_w, rel=1e-6)


def test_more_requests_take_longer_and_serve_more():
    """Steps grow with batch and context; tokens per second grow with the batch."""
    row = Row("qwen3-30b-a3b-bf16", "H100-SXM")
    batches = np.array([1.0, 2, 8, 32, 128, 512])
    steps = decode_step_s.py_func(row, batches, 1000.0)
    assert np.all(np.diff(steps) > 0) and np.all(np.diff(batches / steps) > 0)
    assert decode_step_s.py_func(row, 32.0, 8000.0) > decode_step_s.py_func(row, 32.0, 1000.0)
    assert kv_batch.py_func(row, 2000.0) == pytest.approx(kv_batch.py_func(row, 1000.0) / 2)


def test_engines_change_only_known_coefficients():
    """A factor for a coefficient that the law does not have would be ignored in silence."""
    for name, factors in backend_factors().items():
        assert set(factors) <= {*LAW_NAMES, "serving"}, name
