"""Evolution strategies on pool tokens: antithetic perturbations of a linear residual, shared windows, Adam.

A few hundred parameters searched directly on the score of whole episodes (RL.md: the strongest learner per CPU second
on the prototype). All candidates of an iteration play the same windows, side by side in one batch.
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


def learn(session: Session) -> LinearResidual:
    """Search until the session's budget is spent.

    Returns:
        The residual at the last centre; the session remembers the best one.
    """
    config = session.config
    network = LinearResidual()
    candidates = 2 * config.pairs
    cores = [session.core(scenario, candidates * config.windows) for scenario in session.scenarios]
    session.progress("measuring features", session.share())
    _measure(network, session)
    rng = np.random.default_rng([config.seed, 21])
    centre = np.zeros(network.size)
    moment, square, iteration = np.zeros(network.size), np.zeros(network.size), 0
    if saved := session.restore():
        centre, moment, square, iteration = saved["centre"], saved["moment"], saved["square"], saved["iteration"]
        rng.bit_generator.state = saved["rng"]
    while not session.is_over():
        noise = rng.standard_normal((config.pairs, network.size))
        seeds = rng.integers(2**31, size=config.windows)
        points = centre + config.sigma * np.concatenate([noise, -noise])
        score = np.concatenate([_play(core, network, points, seeds, config.lost_weight) for core in cores], 1)
        # windows differ in difficulty: compare candidates within each
        score = (score - score.mean(0)) / np.maximum(score.std(0), 1e-9)
        value = score.mean(1)
        gradient = (value[: config.pairs] - value[config.pairs :]) @ noise / (2 * config.pairs * config.sigma)
        iteration += 1
        moment = ADAM_BETAS[0] * moment + (1 - ADAM_BETAS[0]) * gradient
        square = ADAM_BETAS[1] * square + (1 - ADAM_BETAS[1]) * gradient**2
        rate = config.es_learning_rate * (1.0 - 0.9 * session.share())
        step = moment / (1 - ADAM_BETAS[0] ** iteration)
        centre = centre + rate * step / (np.sqrt(square / (1 - ADAM_BETAS[1] ** iteration)) + 1e-8)
        session.steps += sum(core.batch * (core.plant.ticks // core.plant.control_ticks) for core in cores)
        network.set_parameters(centre)
        values = {"es.gradient": float(np.linalg.norm(gradient)), "es.length": float(np.linalg.norm(centre))}
        session.record(network, iteration, values, f"iteration {iteration}, step {session.steps:,}")
        if iteration % CHECKPOINT_ITERATIONS == 0 or session.is_over():
            state = {"centre": centre, "moment": moment, "square": square, "iteration": iteration}
            session.save({**state, "rng": rng.bit_generator.state})
    network.set_parameters(centre)
    return network


def _measure(network: LinearResidual, session: Session) -> None:
    """Set the features' statistics from what the base sees in every scenario."""
    from ..envs.sb3_env import FlyballVecEnv
    from ..envs.vector_env import FlyballVectorEnv

    cores = [session.core(scenario, 8) for scenario in session.scenarios]
    env = FlyballVecEnv(*(FlyballVectorEnv(core, is_staggered=True) for core in cores))
    env.seed(session.config.seed * 7919 + 17)
    normalise(network, env, session.pools)


def _play(core: Core, network: LinearResidual, points: np.ndarray, seeds: np.ndarray, lost_weight: float) -> np.ndarray:
    """Scores of every candidate in every window, shape (candidates, windows)."""
    candidates, windows = len(points), len(seeds)
    core.reset(np.tile(seeds, candidates))
    pool_weights, fleet_weights = network.split(points)
    mean, scale = network.mean.numpy(), network.scale.numpy()
    for _ in range(core.plant.ticks // core.plant.control_ticks):
        seen = core.observation
        assert seen is not None
        tokens = network.tokens(*(torch.as_tensor(a) for a in (seen.pool, seen.fleet, core.base.pool, core.base.fleet)))
        x = np.clip((tokens.numpy() - mean) / scale, -8.0, 8.0) * seen.pool_mask[..., None]
        pooled = x.sum(1) / np.maximum(seen.pool_mask.sum(1, keepdims=True), 1.0)
        pairs = x.reshape(x.shape[0], -1, 2, x.shape[2])
        sibling = pairs[:, :, ::-1].reshape(x.shape)
        ones = np.ones((*x.shape[:2], 1), x.dtype)
        inputs = np.concatenate([x, sibling, ones], -1).reshape(candidates, -1, pool_weights.shape[2])
        residual = np.matmul(inputs, pool_weights.transpose(0, 2, 1)).reshape(x.shape[0], x.shape[1], -1)
        with_one = np.concatenate([pooled, np.ones((len(pooled), 1), x.dtype)], -1)
        fleet = np.matmul(with_one.reshape(candidates, windows, -1), fleet_weights.transpose(0, 2, 1)).reshape(-1, 1)
        missing = ((0, 0), (0, core.flat_pools - x.shape[1]), (0, 0))
        action = np.concatenate([np.pad(residual, missing).reshape(len(x), -1), fleet], -1)
        core.step(core.bids(np.clip(action, -1.0, 1.0)))
    t = core.plant.totals
    lost = t["late_tok"] + t["rejected_tok"] + t["lost_tok"]
    return ((t["good_tok"] - lost_weight * lost) / np.maximum(t["offered_tok"], 1.0)).reshape(candidates, windows)
