"""Environment speed and memory.

A node-step is one node advanced by one control interval, with its ticks, the arbiter's settlement in each, the
background policy and the observation. Vector environments are stepped with actions drawn beforehand, episodes ending
and starting again on the way; Gymnasium's own vectorised CartPole goes through the same function in the same run.
"""

import subprocess
import sys
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np

from ... import registry
from ...envs.core import CHANNELS, Core
from ...envs.gym_env import FlyballEnv
from ...envs.scenario import load_scenario
from ...envs.vector_env import FlyballVectorEnv
from .fleets import rows_of_racks, scenario_on
from .timing import REPEATS, Sample

SCENARIO = "bursty"
ENVS, NODES = 64, 64
MEMORY_ENVS = 1024


def figures(
    progress: Callable[[str, float], None],
    envs: int = ENVS,
    nodes: int = NODES,
    repeat_s: float = 1.5,
    memory_envs: int = MEMORY_ENVS,
) -> dict[str, float]:
    """Measure.

    Args:
        progress: Called with a label and the share done.
        envs: Environments of the vector figures.
        nodes: Nodes of every environment.
        repeat_s: Least length of each of the repeats.
        memory_envs: Environments of the memory figure.

    Returns:
        `node_steps_per_s` (Power-v0), `factory_node_steps_per_s`, `env_steps_per_s` (Power-v0),
        `single_env_steps_per_s` (one environment through `gymnasium.Env`), `cartpole_steps_per_s`, `cartpole_ratio`
        (node-steps of Power-v0 per step of CartPole), `rss_mib` (largest resident size of a process that steps
        `memory_envs` environments).
    """
    progress(f"Power, {envs} x {nodes}", 0.0)
    power = steps_per_s(make_vector("Power-v0", envs, nodes), repeat_s)
    progress(f"Factory, {envs} x {nodes}", 0.25)
    factory = steps_per_s(make_vector("Factory-v0", envs, nodes), repeat_s)
    progress(f"one environment of {nodes}", 0.5)
    single = _single_steps_per_s(nodes, repeat_s)
    progress("CartPole", 0.7)
    cartpole = steps_per_s(
        gym.make_vec("CartPole-v1", num_envs=envs, vectorization_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT), repeat_s
    )
    progress(f"memory, {memory_envs} x {nodes}", 0.85)
    rss_mib = _rss_mib(memory_envs, nodes)
    progress("done", 1.0)
    return {
        **power.figures("node_steps_per_s", nodes),
        **factory.figures("factory_node_steps_per_s", nodes),
        **single.figures("single_env_steps_per_s"),
        "cartpole_ratio": power.median * nodes / cartpole.median,
        "rss_mib": rss_mib,
        "env_steps_per_s": power.median,
        **cartpole.figures("cartpole_steps_per_s"),
        "envs": envs,
        "nodes": nodes,
        "memory_envs": memory_envs,
    }


def make_vector(env_id: str, envs: int, nodes: int) -> FlyballVectorEnv:
    """A vector environment of `bursty` on a generated site, its episodes staggered."""
    return FlyballVectorEnv(_core(env_id, envs, nodes), is_staggered=True)


def _core(env_id: str, envs: int, nodes: int) -> Core:
    scenario = scenario_on(rows_of_racks(nodes), load_scenario(SCENARIO))
    return Core(scenario, registry.policy(scenario.background, scenario), CHANNELS[env_id], envs)


def steps_per_s(env: gym.vector.VectorEnv, repeat_s: float, repeats: int = REPEATS) -> Sample:
    """Environment steps per second of a vector environment: steps times environments over time.

    Args:
        env: Any Gymnasium vector environment; it is closed.
        repeat_s: Least length of a repeat.
        repeats: How often.
    """
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(16)]  # drawing them is not what is measured
    for action in actions:
        env.step(action)
    rates = []
    for _ in range(repeats):
        steps, started = 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < repeat_s:
            for action in actions:
                env.step(action)
            steps += len(actions)
        rates.append(steps * env.num_envs / spent)
    env.close()
    return Sample(tuple(rates))


def _single_steps_per_s(nodes: int, repeat_s: float) -> Sample:
    """Steps per second of one environment through the plain Gymnasium interface."""
    env = FlyballEnv(_core("Power-v0", 1, nodes))
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(16)]
    rates = []
    for repeat in range(REPEATS + 1):
        steps, started = 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < repeat_s:
            for action in actions:
                if env.step(action)[3]:
                    env.reset(seed=steps)
            steps += len(actions)
        if repeat:  # the first one warms up
            rates.append(steps / spent)
    return Sample(tuple(rates))


def _rss_mib(envs: int, nodes: int) -> float:
    """Largest resident size of a fresh process that makes, resets and steps this many environments."""
    code = f"from flyball.experiments.bench.env import print_rss; print_rss({envs}, {nodes})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def print_rss(envs: int, nodes: int) -> None:
    """Print this process's largest resident size in MiB after a few steps of `envs` environments."""
    import resource

    env = make_vector("Power-v0", envs, nodes)
    env.reset(seed=0)
    action = np.zeros((envs, env.core.action_size), np.float32)
    for _ in range(3):
        env.step(action)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / (1024 * 1024 if sys.platform == "darwin" else 1024))
