"""The reward asks for what the KPI measures."""

import numpy as np
from scipy.stats import spearmanr

from flyball import registry
from flyball.envs.core import CHANNELS, Core
from flyball.envs.scenario import load_scenario


def policies(scenario):
    """Twenty: baselines with their constants moved, and constant bids drawn at random; (background, bias) each."""
    rng = np.random.default_rng(0)
    for sharpness, decode in ((1.0, 0.5), (2.5, 1.0), (6.0, 2.0)):
        yield registry.baseline("greedy", scenario, {"sharpness": sharpness, "decode_value": decode}), None
    for watts in (0.6, 0.8, 1.0, 1.2, 1.5, 2.0):
        yield registry.baseline("static", scenario, {"prefill_watts": watts}), None
    for name in ("uniform", "proportional", "random"):
        yield registry.baseline(name, scenario, {}), None
    proportional = registry.baseline("proportional", scenario, {})
    for _ in range(8):
        yield proportional, rng.uniform(-1, 1, 3).astype(np.float32)


def test_return_and_goodput_rank_policies_alike():
    """Over twenty policies the rank correlation of mean return and mean goodput is at least 0.9."""
    scenario = load_scenario("bursty", ("seconds=300", "warmup_s=0"))
    returns, goodputs = [], []
    for policy, bias in policies(scenario):
        core = Core(scenario, policy, CHANNELS["Power-v0"], batch=4)
        core.reset([1, 2, 3, 4])
        total = np.zeros(4)
        for _ in range(60):
            bids = core.base if bias is None else core.bids(np.repeat(bias[None], 4, 0))
            total += core.step(bids)[1]
        returns.append(total.mean())
        goodputs.append(np.mean([core.kpis(b)["goodput_tok_s_per_mw"] for b in range(4)]))
    assert len(returns) == 20
    spread = (max(goodputs) - min(goodputs)) / np.mean(goodputs)
    assert spread > 0.05, "the policies are too alike to be ranked"
    assert spearmanr(returns, goodputs).statistic >= 0.9
