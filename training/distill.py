"""Privileged distillation, then evolution strategies.

A planner that knows what a live policy cannot (the clairvoyant: the future, the true parameters) bids in states that
the student visits; the student's residual is regressed on the distance between those bids and the base's, and visits
states again (DAgger: Ross, Gordon and Bagnell, AISTATS 2011). Alone this averages over futures and gains little; as
the start of a search it reaches what the search alone does not (RL.md). Labels count against the run's budget.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .. import registry
from ..envs.core import Core
from ..envs.scenario import Scenario
from ..policies.network import LinearResidual
from .es import SEARCHING, act, measure, play, read, search, share_out
from .session import Session

SCALES = (0.0, 0.25, 0.5, 1.0)
"""How much of the regressed residual the search may start from; 0 is the base."""

LABEL_HORIZON_S = 150.0
"""How far ahead the planner looks for a label: beyond a role move and the backlog that it leaves."""

LABEL_SEED = 31
"""Second word of the seed of labelling; the search's is another."""


def learn(session: Session) -> LinearResidual:
    """Label, regress, and search from there until the session's budget is spent.

    Returns:
        The residual at the last centre; the session remembers the best one.
    """
    network = LinearResidual(session.pool_channels)
    session.progress("measuring features", session.share())
    measure(network, session)
    saved = session.restore()
    if saved and saved["phase"] == SEARCHING:
        return search(session, network, saved, np.zeros(network.size))
    return search(session, network, None, _distill(session, network, saved))


def _distill(session: Session, network: LinearResidual, saved: dict | None) -> np.ndarray:
    """Rounds of labels and regression.

    Returns:
        Where the search starts, shape (network.size,): as much of the regressed residual as plays best.
    """
    config = session.config
    rng = np.random.default_rng([config.seed, LABEL_SEED])
    state = saved or {"phase": "label", "round": 0, "inputs": [], "targets": [], "point": np.zeros(network.size)}
    if saved:
        rng.bit_generator.state = saved["rng"]
    while state["round"] < config.label_rounds and session.share() < config.label_share:
        network.set_parameters(state["point"])
        inputs, targets = list(state["inputs"]), list(state["targets"])
        for scenario in session.scenarios:
            found = label(session, network, scenario, rng, state["round"])
            inputs.append(found[0])
            targets.append(found[1])
        point = regress(network, inputs, targets, config.ridge)
        state = {"phase": "label", "round": state["round"] + 1, "inputs": inputs, "targets": targets, "point": point}
        network.set_parameters(point)
        labels = sum(len(t) for t in targets)
        values = {"distill.labels": float(labels), "distill.error": _error(network, inputs, targets)}
        session.record(network, state["round"], values, f"round {state['round']}: {labels:,} pools labelled")
        session.save({**state, "rng": rng.bit_generator.state})
    return _start(session, network, state["point"], rng)


def label(
    session: Session, network: LinearResidual, scenario: Scenario, rng: np.random.Generator, round_: int
) -> tuple[np.ndarray, np.ndarray]:
    """Play the student and ask the planner what it would have bid in some of the states.

    Args:
        session: The run.
        network: The student.
        scenario: What happens.
        rng: Draws windows and the states to label.
        round_: For the progress shown.

    Returns:
        Pool inputs, shape (N, 2 F + 1), and residuals of the planner on the base, shape (N, owned channels).
    """
    config = session.config
    core = session.core(scenario, config.label_windows)
    teacher, simulator = make_teacher(session, scenario, core)
    point = np.concatenate([w.detach().numpy().ravel() for w in (network.pool_weights, network.fleet_weights)])[None]
    core.reset(rng.integers(2**31, size=core.batch))
    memory = teacher.start(core.batch)
    inputs, targets = [], []
    steps = core.plant.ticks // core.plant.control_ticks
    for step in range(steps):
        is_labelled = rng.random() * config.label_every < 1.0 and session.share() < config.label_share
        if not is_labelled:
            memory = teacher.watch(core.plant.snapshot, core.observation, memory)
        else:
            bids, memory = teacher.bid(core.plant.snapshot, core.observation, memory)
            seen = core.observation
            assert seen is not None
            channels = list(session.pool_channels)
            wanted = np.clip(bids.pool[..., channels] - core.base.pool[..., channels], -1.0, 1.0)
            there = seen.pool_mask > 0
            inputs.append(read(core, network)[0][there])
            targets.append(wanted[there].astype(np.float32))
            session.steps += simulator.taken_steps()
            label_ = f"round {round_ + 1}, {scenario.name}: the {config.teacher} labels, {(step + 1) / steps:.0%}"
            session.progress(label_, session.share())
        core.step(core.bids(act(core, network, point)))
        session.steps += core.batch
    width, owned = network.pool_weights.shape[1], network.pool_weights.shape[0]
    return (
        np.concatenate([np.zeros((0, width), np.float32), *inputs]),
        np.concatenate([np.zeros((0, owned), np.float32), *targets]),
    )


def make_teacher(session: Session, scenario: Scenario, core: Core):
    """The planner, the student's own base first in its portfolio, and its simulator, which counts its steps.

    It searches wherever it is asked, over the baselines that can run live: what is labelled is one decision, not an
    episode of its own, and the student cannot follow constants of other families anyway.
    """
    planner = registry.baseline(session.config.teacher, scenario)
    simulator = _Counting(planner.simulator)  # type: ignore[attr-defined]
    simulator.follow(core.plant)
    simulator.look_at(None)
    own = registry.baseline(session.base, scenario, session.params)
    others = [registry.baseline(n, scenario, p) for n, p in registry.portfolio("rollout", scenario)]
    control_s = scenario.fleet.timing.control_s
    changes: dict[str, Any] = {
        "simulator": simulator,
        "members": (own, *(m for m in others if m.name != own.name)),
        "horizon_s": min(planner.horizon_s, LABEL_HORIZON_S),  # type: ignore[attr-defined]
        "hold_s": control_s,
        "sweep_s": control_s,
    }
    return replace(planner, **changes), simulator  # type: ignore[type-var]


class _Counting:
    """A simulator that counts the environment steps it is asked for."""

    def __init__(self, simulator: Any):
        self._simulator, self._steps = simulator, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._simulator, name)

    def branch(self, rows: np.ndarray, copies: int, steps: int, future: np.ndarray | None = None):
        roll = self._simulator.branch(rows, copies, steps, future)
        self._steps += len(rows) * copies * roll.steps
        return roll

    def taken_steps(self) -> int:
        """Steps since this was last asked."""
        steps, self._steps = self._steps, 0
        return steps


def regress(network: LinearResidual, inputs: list[np.ndarray], targets: list[np.ndarray], ridge: float) -> np.ndarray:
    """Ridge regression of residuals on pool inputs.

    Args:
        network: Gives the layout of parameters.
        inputs: Parts of shape (n, 2 F + 1).
        targets: Parts of shape (n, owned channels).
        ridge: Weight of the squared parameters, relative to the mean square error.

    Returns:
        Parameters, shape (network.size,); the fleet bid stays the base's, as the planner leaves it alone.
    """
    x = torch.as_tensor(np.concatenate(inputs), dtype=torch.float64)
    y = torch.as_tensor(np.concatenate(targets), dtype=torch.float64)
    if len(x) == 0:
        return np.zeros(network.size)
    square = x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(square, x.T @ y / len(x)).T
    return np.concatenate([weights.numpy().ravel(), np.zeros(network.fleet_weights.numel())])


def _error(network: LinearResidual, inputs: list[np.ndarray], targets: list[np.ndarray]) -> float:
    """Mean square error of the residual, relative to that of the base's own bids; 0 where there are no labels."""
    x, y = np.concatenate(inputs), np.concatenate(targets)
    missed = x @ network.pool_weights.detach().numpy().T - y
    return float((missed**2).mean() / max(float((y**2).mean()), 1e-12)) if len(y) else 0.0


def _start(session: Session, network: LinearResidual, point: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The multiple of a point that scores best on training windows shared by all multiples."""
    points = np.array(SCALES)[:, None] * point
    total = np.zeros(len(SCALES))
    counts = share_out(session.config.windows, len(session.scenarios))
    for scenario, count in zip(session.scenarios, counts, strict=True):
        core = session.core(scenario, len(SCALES) * count)
        seeds = rng.integers(2**31, size=count)
        total += play(core, network, points, seeds, session.config.lost_weight).mean(1)
        session.steps += core.batch * (core.plant.ticks // core.plant.control_ticks)
    return points[int(total.argmax())]
