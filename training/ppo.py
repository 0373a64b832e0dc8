"""PPO on pool tokens: stable-baselines3 learns a residual over the base; recipe and numbers are RL.md's."""

import shutil
import tempfile
from collections.abc import Callable

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from ..envs.sb3_env import FlyballVecEnv
from ..envs.vector_env import FlyballVectorEnv
from ..policies.network import TokenNetwork
from .sb3_policy import TokenPolicy, unflatten
from .session import Session

CHECKPOINT_ROLLOUTS = 5

CHANNEL_STD = {"watts": "watts", "nodes": "nodes", "clock": "clocks"}
"""Configuration of each pool bid's exploration."""


def learn(session: Session) -> TokenNetwork:
    """Train a network until the session's budget is spent.

    Returns:
        The network of the last update; the session remembers the best one.
    """
    config = session.config
    env = _environment(session)
    network = TokenNetwork(session.pool_channels)
    session.progress("measuring features", session.share())
    normalise(network, env, session.pools)
    model = PPO(
        TokenPolicy,
        env,
        n_steps=config.n_steps,
        batch_size=min(config.batch_size, config.envs * config.n_steps),
        n_epochs=config.epochs,
        learning_rate=_decay(config.learning_rate),
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        policy_kwargs={
            "network": network,
            "pools": session.pools,
            "channel_std": (
                *(getattr(config, f"{CHANNEL_STD[c]}_std") for c in session.channels.pool),
                config.spend_std,
            ),
        },
        seed=config.seed,
        device="cpu",
        verbose=0,
    )
    loop = _Loop(session, network)
    if saved := session.restore():
        model.policy.load_state_dict(saved["policy"])
        model.policy.optimizer.load_state_dict(saved["optimizer"])
        model.num_timesteps, loop.rollouts = session.steps, saved["rollouts"]
    if not session.is_over():
        # SB3 leaves an empty folder per learn() where no logger is configured
        logs = tempfile.mkdtemp(prefix="flyball-sb3-")
        # a run by minutes ends by the clock: SB3 only needs a number that it does not reach
        steps = 10**9 if config.steps is None else config.steps - session.steps
        try:
            model.learn(steps, callback=loop, reset_num_timesteps=False, tb_log_name=logs)
        finally:
            shutil.rmtree(logs, ignore_errors=True)
        loop.save()
    return network


def _decay(start: float) -> Callable[[float], float]:
    return lambda remaining: start * (0.1 + 0.9 * max(min(remaining, 1.0), 0.0))


def _environment(session: Session) -> FlyballVecEnv:
    """Equal parts of every scenario, padded to the largest number of pools, episodes staggered."""
    config = session.config
    share = [len(part) for part in np.array_split(np.arange(config.envs), len(session.scenarios))]
    cores = [session.core(scenario, count) for scenario, count in zip(session.scenarios, share, strict=True)]
    env = FlyballVecEnv(*(FlyballVectorEnv(core, is_staggered=True) for core in cores))
    env.seed(config.seed * 7919 + 17)
    return env


def normalise(network: TokenNetwork, env: FlyballVecEnv, pools: int, steps: int = 60) -> None:
    """Set a network's statistics from what the base sees; they stay fixed, inside the graph."""
    seen = [env.reset()]
    still = np.zeros((env.num_envs, *env.action_space.shape), np.float32)
    for _ in range(steps):
        seen.append(env.step(still)[0])
    pool, mask, fleet, base_pool, base_fleet = unflatten(torch.as_tensor(np.concatenate(seen)), pools)
    network.set_statistics(network.tokens(pool, fleet, base_pool, base_fleet)[mask > 0])


class _Loop(BaseCallback):
    """Tells the session of every rollout, and ends the run on time."""

    def __init__(self, session: Session, network: TokenNetwork):
        super().__init__()
        self.session, self.network = session, network
        self.rollouts = 0
        self._rewards: list[float] = []

    def save(self) -> None:
        self.session.save(
            {
                "policy": self.model.policy.state_dict(),
                "optimizer": self.model.policy.optimizer.state_dict(),
                "rollouts": self.rollouts,
            }
        )

    def _on_step(self) -> bool:
        self.session.steps = self.model.num_timesteps
        self._rewards.append(float(np.mean(self.locals["rewards"])))
        return not (self.session.config.steps is None and self.session.is_over())

    def _on_rollout_start(self) -> None:
        # SB3 takes its progress from its step budget, which a run by minutes does not have
        self.model._current_progress_remaining = 1.0 - self.session.share()

    def _on_rollout_end(self) -> None:
        self.rollouts += 1
        self.model._current_progress_remaining = 1.0 - self.session.share()
        reward = float(np.mean(self._rewards))
        self._rewards.clear()
        logged = {k: float(v) for k, v in self.model.logger.name_to_value.items() if isinstance(v, int | float)}
        values = {"rollout.reward": reward, **{k: v for k, v in logged.items() if np.isfinite(v)}}
        label = f"step {self.session.steps:,}, lost {-reward:.3f}"
        self.session.record(self.network, self.rollouts, values, label)
        if self.rollouts % CHECKPOINT_ROLLOUTS == 0:
            self.save()
