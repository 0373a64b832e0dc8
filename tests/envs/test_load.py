"""Load: the generator's statistics, superposition, and the seeds' discipline."""

import time
from dataclasses import replace

import numpy as np
import pytest

from flyball.envs.load import Load, LoadSpec, ServiceLoad, generate_load, make_load, superpose
from flyball.envs.traces import RateTable, Requests
from flyball.fleet.errors import LoadError, ScenarioError

BUSY = LoadSpec(burst_per_hour=12, burst_height=1.8, diurnal_amplitude=0.3, diurnal_period_s=900, ca2=2.0)


def a_trace(rate_rps: float = 5.0, seconds: float = 1800.0, seed: int = 0) -> Requests:
    """Poisson arrivals whose lengths tell when they came."""
    rng = np.random.default_rng(seed)
    t_s = np.sort(rng.random(int(rate_rps * seconds))) * seconds
    t_s -= t_s[0]
    return Requests(t_s, np.floor(100 + t_s), np.floor(rng.lognormal(5, 0.5, len(t_s))) + 1, "made", "0" * 12)


def a_table() -> RateTable:
    return RateTable(np.arange(0.0, 1800, 60), np.linspace(1, 3, 30), None, None, "table", "0" * 12)


def assert_same(a: Load, b: Load) -> None:
    for name in ("arrivals", "prompt_tokens", "output_tokens", "ca2", "cs2"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("file", [None, a_trace(), a_table()], ids=["generated", "trace", "rates"])
def test_a_batch_equals_its_single_draws(file):
    """Environment i of a batch depends on its own seed alone, bit for bit."""
    seeds, services = [5, 0, 7], ["chat", "code"]
    batch = make_load(BUSY, [40.0, 20.0], 300, 1.0, seeds, services, file)
    for i, seed in enumerate(seeds):
        assert_same(batch.env(i), make_load(BUSY, [40.0, 20.0], 300, 1.0, [seed], services, file))
    assert not np.array_equal(batch.arrivals[0], batch.arrivals[1])


@pytest.mark.parametrize("file", [None, a_trace(), a_table()], ids=["generated", "trace", "rates"])
def test_blocks_are_different_draws(file):
    """The same seed gives other load in another block."""
    loads = [make_load(BUSY, [40.0], 300, 1.0, [3], ["chat"], file, b) for b in ("train", "validation", "test")]
    assert not np.array_equal(loads[0].arrivals, loads[1].arrivals)
    assert not np.array_equal(loads[1].arrivals, loads[2].arrivals)


def test_blocks_of_a_trace_are_disjoint_in_time():
    """Prompt lengths tell when a request came: each block's load is made of its own third only."""
    trace = a_trace()
    for i, block in enumerate(("train", "validation", "test")):
        load = superpose(trace, LoadSpec(), [50.0], 900, 1.0, [1, 2], ["chat"], block)
        came_s = load.prompt_tokens[load.arrivals > 0] - 100
        assert came_s.min() >= trace.duration_s * i / 3 - 1 and came_s.max() <= trace.duration_s * (i + 1) / 3


@pytest.mark.parametrize("block", ["all", "train"])
@pytest.mark.parametrize("capacity_rps", [3.0, 20.0, 400.0])
def test_superposition_reaches_the_target_within_5_percent(capacity_rps, block):
    """Thinned, doubled or hundredfold, the mean over environments is target_util of the capacity."""
    load = superpose(a_trace(), LoadSpec(target_util=0.8), [capacity_rps], 600, 1.0, range(40), ["chat"], block)
    assert load.arrivals.sum() / (40 * 600) == pytest.approx(0.8 * capacity_rps, rel=0.05)
    if block == "all":
        assert load.scale == pytest.approx(0.8 * capacity_rps / 5, rel=1e-3)


def test_the_capacity_is_asked_for_the_lengths_of_the_file():
    """Superposition depends on how long the file's requests are."""
    trace, asked = a_trace(), []

    def capacity(service: int, prompt: float, output: float) -> float:
        asked.append((service, prompt, output))
        return 10.0

    superpose(trace, LoadSpec(), capacity, 60, 1.0, [1], ["chat"])
    assert asked == [(0, trace.prompt_tokens.mean(), trace.output_tokens.mean())]


def test_scale_1_is_the_trace_as_it_is():
    """Every request once, at its own time, with its own tokens."""
    trace = a_trace()
    load = superpose(trace, LoadSpec(scale=1.0), [50.0], 1800, 1.0, [9], ["chat"])
    counts = np.bincount(trace.t_s.astype(int), minlength=1800)
    np.testing.assert_array_equal(load.arrivals[0, :, 0], counts)
    tokens = (load.arrivals * load.prompt_tokens).sum()
    assert tokens == pytest.approx(trace.prompt_tokens.sum()) and load.scale == 1.0


def test_short_shifts_keep_the_bursts_of_a_trace():
    """Copies within 10 s of each other leave a burst standing; shifts over the whole block average it out."""
    t_s = np.sort(np.concatenate([np.linspace(0, 1800, 3600), np.linspace(600, 660, 1200)]))
    trace = Requests(t_s, np.full(4800, 100.0), np.full(4800, 10.0), "burst", "0" * 12)
    near, far = (
        superpose(trace, LoadSpec(shift_s=s), [100.0], 1800, 1.0, range(4), ["chat"]).arrivals for s in (10, 0)
    )
    assert (near.max(1) / near.mean(1)).min() > 5 > 3 > (far.max(1) / far.mean(1)).max()


def test_generated_load_has_the_target_as_its_mean():
    """Over many environments arrivals and lengths have the means asked for, whatever is switched on."""
    spec = replace(BUSY, mix_shift_amplitude=0.5, target_util=0.6)
    load = generate_load(spec, [100.0], 900, 1.0, range(400), ["chat"])
    assert load.arrivals.mean() == pytest.approx(60, rel=0.05)
    assert load.prompt_tokens.mean() == pytest.approx(1155, rel=0.05)
    assert load.output_tokens.mean() == pytest.approx(211, rel=0.05)


def test_the_slow_rate_varies_as_in_the_azure_trace():
    """10-s bins of a fleet's rate: CV 0.23, and about 1.3-1.8 peak/mean within a quarter of an hour."""
    load = generate_load(LoadSpec(), [500.0], 900, 1.0, range(200), ["chat"])
    bins = load.arrivals[..., 0].reshape(200, 90, 10).sum(-1)
    assert bins.std() / bins.mean() == pytest.approx(0.23, abs=0.03)
    assert 1.25 < np.median(bins.max(1) / bins.mean(1)) < 1.8


def test_counts_are_as_dispersed_as_their_inter_arrival_times():
    """Variance / mean of counts is ca2 where nothing else moves."""
    still = LoadSpec(rate_cv=0, drift_cv_prompt=0, drift_cv_output=0)
    for ca2 in (1.0, 3.0):
        load = generate_load(replace(still, ca2=ca2), [50.0], 900, 1.0, range(20), ["chat"])
        assert load.arrivals.var() / load.arrivals.mean() == pytest.approx(ca2, rel=0.05)
        assert (load.ca2 == ca2).all()


def test_a_burst_reaches_its_height():
    """Bursts rise to about their height above the mean rate."""
    spec = LoadSpec(rate_cv=0, ca2=1, burst_per_hour=4, burst_height=3, burst_s=60)
    load = generate_load(spec, [1000.0], 1800, 1.0, range(30), ["chat"])
    peak = np.median(load.arrivals.max(1)) / np.median(load.arrivals)
    assert 2 < peak < 5


def test_a_mix_shift_moves_prompts_against_outputs():
    """Long prompts come with short answers: the two means are anticorrelated."""
    spec = LoadSpec(mix_shift_amplitude=0.6, drift_cv_prompt=0, drift_cv_output=0)
    load = generate_load(spec, [500.0], 1200, 1.0, [0, 1], ["chat"])
    for env in range(2):
        assert np.corrcoef(load.prompt_tokens[env, :, 0], load.output_tokens[env, :, 0])[0, 1] < -0.8


def test_services_differ_where_the_spec_says_so():
    """Share, lengths and phase are per service."""
    spec = LoadSpec(
        rate_cv=0, diurnal_amplitude=0.5, diurnal_period_s=900,
        service=(ServiceLoad("code", share=0.5, prompt_tokens=2048, output_tokens=28, phase_frac=0.5),),
    )  # fmt: skip
    load = generate_load(spec, [500.0, 500.0], 900, 1.0, [0, 1, 2], ["chat", "code"])
    assert load.arrivals[..., 1].sum() / load.arrivals[..., 0].sum() == pytest.approx(0.5, rel=0.05)
    assert load.output_tokens[..., 1].mean() == pytest.approx(28, rel=0.3)
    assert np.corrcoef(load.arrivals[0, :, 0], load.arrivals[0, :, 1])[0, 1] < -0.8


def test_empty_ticks_carry_the_last_lengths():
    """Means stay finite and positive however little arrives, and empty ticks repeat the last ones."""
    load = generate_load(LoadSpec(), [0.05], 600, 1.0, range(3), ["chat"])
    assert np.isfinite(load.prompt_tokens).all() and (load.prompt_tokens >= 1).all()
    empty = load.arrivals[:, 1:] == 0
    np.testing.assert_array_equal(load.prompt_tokens[:, 1:][empty], load.prompt_tokens[:, :-1][empty])


def test_a_rate_table_is_followed_and_scaled():
    """With scale 1 the table's rates are the expected arrivals."""
    load = superpose(a_table(), LoadSpec(scale=1.0, ca2=1.0), [1.0], 1800, 1.0, range(50), ["chat"])
    minute = load.arrivals.mean(0)[:, 0].reshape(30, 60).mean(1)
    np.testing.assert_allclose(minute, np.linspace(1, 3, 30), rtol=0.15)
    load = superpose(a_table(), LoadSpec(target_util=0.5), [100.0], 1800, 1.0, range(4), ["chat"])
    assert load.arrivals.mean() == pytest.approx(50, rel=0.05)


def test_loads_for_128_environments_take_under_half_a_second():
    """A training batch of a quarter of an hour is made in less time than one of its control steps takes."""
    for file in (None, a_trace()):
        spent_s = []
        for _ in range(3):
            start_s = time.perf_counter()
            make_load(BUSY, [100.0], 900, 1.0, range(128), ["chat"], file)
            spent_s.append(time.perf_counter() - start_s)
        assert min(spent_s) < 0.5


def test_what_cannot_be_drawn_is_refused():
    """Unknown blocks and services, negative seeds, no capacity and absurd rates: one line each."""
    draw = (LoadSpec(), [10.0], 60, 1.0, [0], ["chat"])
    with pytest.raises(ScenarioError, match="no block 'exam'"):
        generate_load(*draw, "exam")
    with pytest.raises(ScenarioError, match="no service 'x'"):
        generate_load(LoadSpec(service=(ServiceLoad("x"),)), *draw[1:])
    with pytest.raises(ScenarioError, match="seed -1"):
        generate_load(*draw[:4], [-1], ["chat"])
    with pytest.raises(ScenarioError, match="must be above 0"):
        generate_load(draw[0], [0.0], *draw[2:])
    with pytest.raises(ScenarioError, match="arrivals in one tick"):
        generate_load(draw[0], [1e15], *draw[2:])
    with pytest.raises(ScenarioError, match="shorter than one tick"):
        generate_load(*draw[:2], 0.1, *draw[3:])
    idle = Requests(np.array([0.0, 1, 900]), np.ones(3), np.ones(3), "idle", "0" * 12)
    with pytest.raises(LoadError, match="no request in the validation block"):
        superpose(idle, *draw, "validation")
