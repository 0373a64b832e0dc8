"""A story made by hand: what the report says must follow from it, without a simulation."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flyball.experiments.story import BEST, LEARNED, STATIC, Cut, Replay, Site, Story

KPIS = {
    "goodput_tok_s_per_mw": 1.5e6,
    "slo_attainment_frac": 0.9,
    "ttft_p99_s": 0.6,
    "itl_p99_s": 0.04,
    "budget_violation_ws": 0.0,
    "overshoot_ws": 1200.0,
    "breaker_trips": 0.0,
    "interventions": 100.0,
}
STEPS = 24


def columns(level: float) -> dict[str, np.ndarray]:
    """Series of one episode of 120 s on a site of 100 kW, cut to 85 kW in its second half."""
    t_s = 5.0 * np.arange(1, STEPS + 1)
    limit_w = np.where(t_s < 60, 100e3, 85e3)
    out = {
        "t_s": t_s,
        "power_w": 0.8 * limit_w,
        "demanded_w": limit_w,
        "in_force_w": limit_w,
        "possible_w": 0.97 * limit_w,
        "offered_tok_s": np.full(STEPS, 2e5),
        "good_tok_s": np.full(STEPS, 1.5e5 * level),
        "spoilt_tok_s": np.full(STEPS, 0.1e5),
        "ttft_s:chat": np.full(STEPS, 0.3),
        "itl_s:chat": np.full(STEPS, 0.03),
        **{f"reason_{i}": np.zeros(STEPS) for i in range(13)},
    }
    out["reason_1"] = np.where(t_s < 60, 0.0, 3.0)
    for stage in ("prefill", "decode"):
        out[f"cap_gpu_w:chat:{stage}"] = np.full(STEPS, 450.0)
        out[f"nodes:chat:{stage}"] = np.full(STEPS, 2.0)
    return out


def row(scenario: str, policy: str, diff: float, half_width: float = 0.01, **kpis: float) -> dict[str, Any]:
    """A row as `evaluate` returns it."""
    values = {**KPIS, **kpis}
    return {
        "scenario": scenario,
        "family": "bursty",
        "policy": policy,
        "load": "generated",
        "load_scale": 1.0,
        "seeds": 4,
        "kpis": {k: {"mean": v, "ci95": [0.9 * v, 1.1 * v], "worst": v} for k, v in values.items()},
        "vs_best_baseline": {"baseline": "greedy", "diff": diff, "ci95": [diff - half_width, diff + half_width]},
        "recovered_headroom": None,
    }


def make_story(gains: dict[str, float], **changes: Any) -> Story:
    """A story in which the learned policy gains so much in each scenario."""
    policy = "out/policy.onnx"
    rows = []
    for scenario, gain in gains.items():
        rows += [row(scenario, "static", -0.1), row(scenario, "greedy", 0.0, 0.0), row(scenario, policy, gain)]
    story = Story(
        scenario=next(iter(gains)),
        summary="A cut of 15 %.",
        seconds=120.0,
        warmup_s=20.0,
        site=Site("site", 4, 32, 100e3, 3.0, 5.0, 1.0, ({"name": "chat", "ttft_s": 0.5, "itl_s": 0.05},)),
        cuts=(Cut(60.0, 120.0, 30.0, 0.85),),
        policy=policy,
        label="learned policy",
        is_learned=True,
        note="",
        load="generated",
        load_scale=1.0,
        seed=1_000_000,
        replays=tuple(
            Replay(role, name, dict(KPIS), columns(level))
            for role, name, level in ((LEARNED, "learned policy", 1.1), (BEST, "greedy", 1.0), (STATIC, "static", 0.9))
        ),
        evaluation={"suite": None, "rows": rows},
        training={
            "base": "greedy",
            "steps": 1000,
            "seconds": 61.0,
            "gain": 0.02,
            "passed": True,
            "curve": [
                {"steps": 10.0, "seconds": 5.0, "reward": -1.0},
                {"steps": 1000.0, "seconds": 60.0, "gain": 0.02},
            ],
        },
        card={
            "file": policy,
            "bytes": 1234,
            "sha256": "ab" * 8,
            "parity": 1e-7,
            "baseline": "greedy",
            "control_s": 5.0,
            "run": {"passed": True, "validation_gain": 0.02, "seed": 0},
        },
        made={
            "commands": ["flyball demo --out out/demo"],
            "hashes": {"scenario demo": "0123456789abcdef"},
            "versions": {"flyball": "0", "python": "3"},
            "machine": {"cpu": "a CPU", "cores": 2},
            "seconds": 1.0,
            "quick": False,
            "is_tuned": True,
        },
    )
    return replace(story, **changes)


@pytest.fixture(scope="session")
def story_of():
    """`make_story`, for tests."""
    return make_story


@pytest.fixture(scope="session")
def evaluation_row():
    """`row`, for tests."""
    return row
