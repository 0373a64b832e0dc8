"""Evolution strategies on pool tokens: antithetic perturbations of a linear residual, shared windows, Adam.

A few hundred parameters searched directly on the score of whole episodes (RL.md: the strongest learner per CPU second
on the prototype). All candidates of an iteration play the same windows with the same arrivals, faults and parameters,
side by side in one batch, and are compared within each window.
"""

import numpy as np
import torch

from ..envs.core import Core
from ..policies.network import LinearResidual
from .ppo import normalise
from .session import Session

CHECKPOINT_ITERATIONS = 5
ADAM_BETAS = (0.9, 0.999)
"""Kingma and Ba, ICLR 2015."""

SEARCHING = "search"
"""Phase of a checkpoint, where what came before the search has checkpoints too."""

WARM_UP_SHARE = 0.1
"""Share of the budget by which the learning rate has risen, however few the iterations were."""


def learn(session: Session) -> LinearResidual:
    """Search until the session's budget is spent.

    Returns:
        The residual at the last centre; the session remembers the best one.
    """
    network = LinearResidual(session.pool_channels)
    session.progress("measuring features", session.share())
    measure(network, session)
    return search(session, network, session.restore(), np.zeros(network.size))


def search(session: Session, network: LinearResidual, saved: dict | None, start: np.ndarray) -> LinearResidual:
    """Climb from a point, or go on from where a checkpoint was saved.

    Args:
        session: The run.
        network: Its feature statistics are set.
        saved: What this function saved before; None begins.
        start: Parameters to begin at, shape (network.size,).

    Returns:
        The network at the last centre.
    """
    config = session.config
    windows = share_out(config.windows, len(session.scenarios))
    cores = [
        session.core(scenario, 2 * config.pairs * count)
        for scenario, count in zip(session.scenarios, windows, strict=True)
    ]
    rng = np.random.default_rng([config.seed, 21])
    state = saved or {
        "phase": SEARCHING,
        "centre": start,
        "moment": np.zeros(network.size),
        "square": np.zeros(network.size),
        "iteration": 0,
        "first_share": session.share(),
    }
    if saved:
        rng.bit_generator.state = saved["rng"]
    while not session.is_over():
        noise = rng.standard_normal((config.pairs, network.size))
        seeds = [rng.integers(2**31, size=count) for count in windows]
        points = state["centre"] + config.sigma * np.concatenate([noise, -noise])
        score = [play(core, network, points, own, config.lost_weight) for core, own in zip(cores, seeds, strict=True)]
        gradient = _gradient(score, noise, config.sigma)
        session.steps += sum(core.batch * (core.plant.ticks // core.plant.control_ticks) for core in cores)
        state = _climb(state, gradient, _rate(session, state))
        network.set_parameters(state["centre"])
        values = {"es.gradient": float(np.linalg.norm(gradient)), "es.length": float(np.linalg.norm(state["centre"]))}
        session.record(network, state["iteration"], values, f"iteration {state['iteration']}, step {session.steps:,}")
        if state["iteration"] % CHECKPOINT_ITERATIONS == 0 or session.is_over():
            session.save({**state, "rng": rng.bit_generator.state})
    network.set_parameters(state["centre"])
    return network


def share_out(windows: int, scenarios: int) -> list[int]:
    """Windows of each scenario: equal parts, at least one each."""
    return [max(len(part), 1) for part in np.array_split(np.arange(windows), scenarios)]


def _gradient(scores: list[np.ndarray], noise: np.ndarray, sigma: float) -> np.ndarray:
    """Direction in which scores rise, every window standardised over candidates and every scenario weighing the same.

    Args:
        scores: Per scenario, shape (2 pairs, windows): the candidates at +noise, then those at -noise.
        noise: Shape (pairs, size).
        sigma: Size of the perturbations.
    """
    pairs = len(noise)
    # windows differ in difficulty and in spread: compare candidates within each
    value = np.mean([((s - s.mean(0)) / np.maximum(s.std(0), 1e-9)).mean(1) for s in scores], axis=0)
    return (value[:pairs] - value[pairs:]) @ noise / (2 * pairs * sigma)


def _rate(session: Session, state: dict) -> float:
    """Learning rate now: rising over the warm-up, then falling linearly to a tenth at the end of the budget."""
    config, first = session.config, state["first_share"]
    spent = (session.share() - first) / max(1.0 - first, 1e-9)
    risen = max((state["iteration"] + 1) / max(config.warm_up, 1), spent / WARM_UP_SHARE)
    return config.es_learning_rate * min(risen, 1.0) * (1.0 - 0.9 * spent)


def _climb(state: dict, gradient: np.ndarray, rate: float) -> dict:
    """One step of Adam uphill."""
    iteration = state["iteration"] + 1
    moment = ADAM_BETAS[0] * state["moment"] + (1 - ADAM_BETAS[0]) * gradient
    square = ADAM_BETAS[1] * state["square"] + (1 - ADAM_BETAS[1]) * gradient**2
    step = moment / (1 - ADAM_BETAS[0] ** iteration)
    centre = state["centre"] + rate * step / (np.sqrt(square / (1 - ADAM_BETAS[1] ** iteration)) + 1e-8)
    return {**state, "centre": centre, "moment": moment, "square": square, "iteration": iteration}


def measure(network: LinearResidual, session: Session) -> None:
    """Set the features' statistics from what the base sees in every scenario."""
    from ..envs.sb3_env import FlyballVecEnv
    from ..envs.vector_env import FlyballVectorEnv

    cores = [session.core(scenario, 8) for scenario in session.scenarios]
    env = FlyballVecEnv(*(FlyballVectorEnv(core, is_staggered=True) for core in cores))
    env.seed(session.config.seed * 7919 + 17)
    normalise(network, env, session.pools)


def read(core: Core, network: LinearResidual) -> tuple[np.ndarray, np.ndarray]:
    """What the linear maps multiply, at the core's observation of now.

    Returns:
        Pool inputs, shape (B, P, 2 F + 1), and fleet inputs, shape (B, F + 1), as `LinearResidual.forward` makes them.
    """
    seen = core.observation
    assert seen is not None
    mean, scale = network.mean.numpy(), network.scale.numpy()
    tokens = network.tokens(*(torch.as_tensor(a) for a in (seen.pool, seen.fleet, core.base.pool, core.base.fleet)))
    x = np.clip((tokens.numpy() - mean) / scale, -8.0, 8.0) * seen.pool_mask[..., None]
    pooled = x.sum(1) / np.maximum(seen.pool_mask.sum(1, keepdims=True), 1.0)
    sibling = x.reshape(x.shape[0], -1, 2, x.shape[2])[:, :, ::-1].reshape(x.shape)
    ones = np.ones((*x.shape[:2], 1), x.dtype)
    return np.concatenate([x, sibling, ones], -1), np.concatenate([pooled, np.ones((len(pooled), 1), x.dtype)], -1)


def act(core: Core, network: LinearResidual, points: np.ndarray) -> np.ndarray:
    """Residual actions of candidates that share a core's environments in equal parts, shape (B, action size).

    Args:
        core: Observed.
        network: Splits points and holds the statistics.
        points: Parameters, shape (candidates, size).
    """
    pool_weights, fleet_weights = network.split(points)
    pool_inputs, fleet_inputs = read(core, network)
    batch, pools, width = pool_inputs.shape
    grouped = pool_inputs.reshape(len(points), -1, width)
    residual = np.matmul(grouped, pool_weights.transpose(0, 2, 1)).reshape(batch, pools, -1)
    grouped = fleet_inputs.reshape(len(points), -1, fleet_inputs.shape[-1])
    fleet = np.matmul(grouped, fleet_weights.transpose(0, 2, 1)).reshape(batch, 1)
    missing = ((0, 0), (0, core.flat_pools - pools), (0, 0))
    action = np.concatenate([np.pad(residual, missing).reshape(batch, -1), fleet], -1)
    return np.clip(action, -1.0, 1.0)


def play(core: Core, network: LinearResidual, points: np.ndarray, seeds: np.ndarray, lost_weight: float) -> np.ndarray:
    """Scores of every candidate in every window, shape (candidates, windows)."""
    core.reset(np.tile(seeds, len(points)))
    for _ in range(core.plant.ticks // core.plant.control_ticks):
        core.step(core.bids(act(core, network, points)))
    t = core.plant.totals
    lost = t["late_tok"] + t["rejected_tok"] + t["lost_tok"]
    score = (t["good_tok"] - lost_weight * lost) / np.maximum(t["offered_tok"], 1.0)
    return score.reshape(len(points), len(seeds))
