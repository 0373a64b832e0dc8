"""The gate: a learned policy ships only if it beats its baseline on validation windows."""

from dataclasses import dataclass

import numpy as np
import torch

from .. import registry
from ..envs.episodes import run_episodes
from ..envs.scenario import Scenario
from ..fleet.bids import Bids
from ..policies.base import Policy
from ..policies.network import BidGraph, LinearResidual, Residual

FIRST_SEED = {"choose": 500_000, "shrink": 600_000, "gate": 700_000}
"""Windows that choose among checkpoints, that choose how much of the role moves is kept, and that gate the result:
choosing biases the former two upwards."""

ROLE_SHRINKAGES = (1.0, 0.5, 0.25, 0.0)
"""Shares of the learned role moves to choose from; the first of equals is taken."""

ROLES = 1
"""Index of the pool bid for nodes."""


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        gain: Mean over scenarios of the relative difference in goodput to the baseline, on paired windows.
        passed: Whether the gain is positive, with no limit violated.
        rows: Per scenario: {"scenario", "gain", "policy", "base", "violation_ws"}.
    """

    gain: float
    passed: bool
    rows: list[dict[str, float | str]]


class TorchPolicy:
    """A network as a policy, before it is exported."""

    def __init__(self, network: Residual, baseline: Policy):
        self.graph, self.baseline, self.name = BidGraph(network).eval(), baseline, "torch"

    def start(self, batch):
        return self.baseline.start(batch)

    def bid(self, snapshot, observation, memory):
        base, memory = self.baseline.bid(snapshot, observation, memory)
        arrays = (observation.pool, observation.pool_mask, observation.fleet, base.pool, base.fleet)
        with torch.no_grad():
            pool, fleet = self.graph(*(torch.as_tensor(np.asarray(a, np.float32)) for a in arrays))
        return Bids(pool.numpy(), base.node, fleet.numpy()), memory


def judge(
    network: Residual,
    scenarios: list[Scenario],
    base: str,
    params: dict[str, float],
    windows: int,
    purpose: str,
    references: dict[tuple[str, str, int], float] | None = None,
) -> Verdict:
    """Compare a network with its baseline on paired validation windows of every scenario.

    Args:
        network: The residual.
        scenarios: Families it must do well on.
        base: Name of the baseline that it corrects.
        params: The baseline's constants.
        windows: Per scenario.
        purpose: A key of `FIRST_SEED`: which windows.
        references: The baseline's goodput where it was judged before, by scenario, purpose and windows; kept up.
    """
    references = {} if references is None else references
    rows: list[dict[str, float | str]] = []
    seeds = range(FIRST_SEED[purpose], FIRST_SEED[purpose] + max(windows, 1))
    for scenario in scenarios:
        baseline = registry.baseline(base, scenario, params)
        mine = run_episodes(scenario, TorchPolicy(network, baseline), seeds, None, "validation")
        key = (scenario.name, purpose, windows)
        if key not in references:
            theirs = run_episodes(scenario, baseline, seeds, None, "validation")
            references[key] = float(theirs.values("goodput_tok_s_per_mw").mean())
        goodput = mine.values("goodput_tok_s_per_mw").mean()
        reference = references[key]
        rows.append(
            {
                "scenario": scenario.name,
                "gain": float(goodput / reference - 1.0),
                "policy": float(goodput),
                "base": float(reference),
                "violation_ws": float(mine.values("budget_violation_ws").max()),
            }
        )
    gain = float(np.mean([r["gain"] for r in rows]))
    clean = all(r["violation_ws"] == 0 for r in rows)
    return Verdict(gain, gain > 0 and clean, rows)


def shrink_roles(network: Residual, factor: float) -> None:
    """Scale what the network adds to bids for nodes, before clipping, in place."""
    if ROLES not in network.pool_channels:
        return
    row = network.pool_channels.index(ROLES)
    heads = [network.pool_weights] if isinstance(network, LinearResidual) else list(network.pool_head.parameters())
    with torch.no_grad():
        for head in heads:
            head[row] *= factor
