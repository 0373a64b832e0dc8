"""The request-level replay: exact where queueing theory is, and honest about the plant beside it."""

import json
import math

import numpy as np
import pytest

from flyball.experiments.replay.check import findings, write_report
from flyball.experiments.replay.compare import METRICS, Point, compare_point
from flyball.experiments.replay.diffusion import length_classes, prefill_waiting
from flyball.experiments.replay.requests import Requests, draw_requests
from flyball.experiments.replay.simulator import Replay, Service


class FixedLaws:
    """Service times that a textbook can check: linear prefill, a step that grows by 1 ms per request."""

    kv_tokens = 1e5

    def prompt_s(self, prompt_tok):
        return 1e-3 * prompt_tok

    def step_s(self, batch, context_tok):
        return 0.01 + 0.001 * batch

    def transfer_s(self, prompt_tok):
        return 0.0


def play(requests, warmup_s=0.0, **service):
    given = {"prefill": 1, "decode": 1, "ttft_s": 1e3, "itl_s": 1.0, "early_rejection": False, "slo_aware": False}
    return Replay(Service(**{**given, **service}), FixedLaws(), requests, warmup_s).run()


def test_one_request_takes_what_its_steps_take():
    """A single request waits for nothing: its TTFT is its prefill, its ITL the step of a batch of one."""
    out = play(Requests(np.array([1.0]), np.array([100.0]), np.array([10.0]), 1.0, 0.0, 10.0))
    assert out.ttft_s == pytest.approx([0.1]) and out.good == 1 and out.good_tok == 110
    assert out.step_s == pytest.approx([0.011] * 10) and out.step_tok == [1] * 10


def test_waiting_is_that_of_the_textbook():
    """Poisson arrivals and equal prompts at half load wait as Pollaczek and Khinchine say, within 5 %."""
    rng = np.random.default_rng(1)
    requests = draw_requests(rng, 5.0, 20_000.0, 1.0, (100.0, 0.0), (1.0, 0.0))
    out = play(requests, 100.0)
    rho = len(requests.t_s) / 20_000 * 0.1
    assert np.mean(out.ttft_s) - 0.1 == pytest.approx(rho * 0.1 / (2 * (1 - rho)), rel=0.05)


def test_every_request_is_accounted_for():
    """Offered requests are rejected, good, late or in flight, under any switch and at overload."""
    rng = np.random.default_rng(2)
    requests = draw_requests(rng, 14.0, 100.0, 2.0, (100.0, 1.0), (50.0, 1.0))
    rejected = []
    for rejects in (False, True):
        out = play(requests, early_rejection=rejects, slo_aware=True, ttft_s=0.5, itl_s=0.03)
        assert out.offered == len(requests.t_s)
        assert out.offered - out.rejected - out.good - out.late >= 0
        rejected.append(out.rejected)
        assert max(out.step_s) <= 0.03 * 0.97 + 1e-9
    # without the rule clients still give up after twenty targets
    assert rejected[1] > rejected[0] > 0


def test_kv_memory_bounds_a_batch():
    """A replica never begins to decode more contexts than its KV memory holds."""
    laws = FixedLaws()
    laws.kv_tokens = 1000
    many = Requests(np.full(30, 0.5), np.full(30, 300.0), np.full(30, 5.0), 1.0, 0.0, 60.0)
    out = Replay(Service(30, 1, 1e3, 1.0, False, False), laws, many).run()
    assert out.good == 30 and max(out.step_tok) == 3


def test_the_plants_load_is_the_replays():
    """Counts and token sums per tick are those of the single requests."""
    requests = draw_requests(np.random.default_rng(3), 7.0, 50.0, 2.0)
    load = requests.load(1.0)
    assert load.arrivals.sum() == len(requests.t_s)
    assert (load.arrivals * load.prompt_tokens).sum() == pytest.approx(requests.prompt_tok.sum())
    assert (load.arrivals * load.output_tokens).sum() == pytest.approx(requests.output_tok.sum())


def test_the_diffusion_meets_queueing_theory_at_its_ends():
    """Far from the bound a server's mean wait is Allen-Cunneen's; overload loses the work that cannot be done."""
    light = prefill_waiting(0.6, 1, 0.1, 1.0, 0.0, 1.5)
    mean_s = sum(s * m for s, m in light.ttft) / sum(m for _, m in light.ttft) - 0.1
    assert mean_s == pytest.approx(0.6 * 0.1 / (2 * 0.4), rel=0.35) and light.reject_frac < 1e-3
    heavy = prefill_waiting(1.5, 20, 0.05, 1.0, 0.9, 0.4)
    assert heavy.reject_work_frac == pytest.approx(1 - 1 / 1.5, abs=0.07)
    assert heavy.reject_frac < heavy.reject_work_frac
    assert prefill_waiting(0.5, 4, 0.1, 1.0, 0.9, 0.0).reject_frac == 1.0
    assert sum(m for _, m in length_classes(0.9)) == pytest.approx(1.0)


def test_the_diffusion_agrees_with_the_replay():
    """Rejects within 2.5 points and TTFT within 20 % at light load, heavy load and overload."""
    for rho in (0.5, 0.9, 1.2):
        rng = np.random.default_rng(4)
        requests = draw_requests(rng, rho / 0.1, 4000.0, 1.0, (100.0, 0.96), (1.0, 0.0))
        out = play(requests, 100.0, early_rejection=True, ttft_s=1.0 / 0.7)
        ours = out.figures()
        theirs = prefill_waiting(rho, 1, 0.1, 1.0, 0.96**2, 1.0)
        assert theirs.reject_frac == pytest.approx(ours["reject_frac"], abs=0.025)
        for q, name in ((0.5, "ttft_p50_s"), (0.99, "ttft_p99_s")):
            assert theirs.quantile_s(q) == pytest.approx(ours[name], rel=0.2)


def test_the_plant_and_the_replay_play_the_same_point():
    """One short comparison gives every figure on both sides, and the ITL agrees within 20 %."""
    point = compare_point("small-8", "write", 1.0, 0.5, 200.0, 0)
    for metric in METRICS:
        assert math.isfinite(point.plant[metric]) and math.isfinite(point.replay[metric])
    assert abs(point.error("itl_mean_s")) < 0.2


def test_findings_and_report_are_written(tmp_path):
    """Findings have the shape that a validation registry takes, and a report is JSON, a table and a picture."""
    figures = dict.fromkeys(METRICS, 0.5)
    points = [Point("small-8", "chat", 1.0, u, {**figures, "ttft_p99_s": 0.6}, figures, {}) for u in (0.5, 0.9)]
    rows = {r["check"]: r for r in findings(points)}
    assert rows["replay: ttft_p99_s, chat"]["mape"] == pytest.approx(0.2)
    assert rows["replay: itl_p99_s, chat"]["passed"] is True
    for row in rows.values():
        assert {"check", "sku", "source", "n", "mape", "bias", "p90", "target", "passed", "note"} == set(row)
    paths = write_report(points, tmp_path)
    assert len(json.loads((tmp_path / "replay.json").read_text())["points"]) == 2
    assert set(paths) == {"json", "md", "png"} and (tmp_path / "replay.png").stat().st_size > 1000
