"""What every policy is: a source of bids. Safety never depends on it."""

from typing import Any, Protocol

import numpy as np

from ..fleet.bids import Bids
from ..fleet.observe import Observation
from ..fleet.snapshot import Snapshot


class Policy(Protocol):
    """A source of bids, called every `control_s`.

    `memory` is whatever the policy carries from one decision to the next (integrators, averages, plans); it is
    passed in and out, so that one policy object serves many environments and a restarted service can restore it.
    A memory is None or an array whose first axis is the batch.
    """

    name: str

    def start(self, batch: int) -> Any:
        """Memory of a fresh batch of environments."""

    def bid(self, snapshot: Snapshot, observation: Observation, memory: Any) -> tuple[Bids, Any]:
        """Bids for every environment of the batch, and the memory to pass in next time."""


class Model(Protocol):
    """What a planning baseline needs to know of the hardware; the plant implements it (`envs.model.PlantModel`).

    Every call answers for all pools of all environments at once. Axes: B environments, P pools, S services.
    """

    @property
    def cap_range_w(self) -> np.ndarray:
        """Lowest cap worth setting and highest legal cap per GPU of every pool, shape (P, 2)."""

    def node_tok_s(
        self, cap_w: np.ndarray, prompt_tok: np.ndarray, context_tok: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What one node of every pool does under a cap.

        Args:
            cap_w: Caps per GPU, shape (B, P).
            prompt_tok: Mean prompt length, shape (B, S).
            context_tok: Mean context of decoding requests, shape (B, S).

        Returns:
            Tokens/s (prompt tokens for prefill, output tokens within the ITL target for decode), and requests that
            decode within that target (0 for prefill); shape (B, P) each.
        """

    def marginal_caps(
        self,
        nodes: np.ndarray,
        gpus: np.ndarray,
        asked_tok_s: np.ndarray,
        value: np.ndarray,
        active: np.ndarray,
        prompt_tok: np.ndarray,
        context_tok: np.ndarray,
        sharpness: float,
        budget_w: np.ndarray,
    ) -> np.ndarray:
        """Caps that spend a budget where the next watt earns most.

        A pool's utility is value * (1 - exp(-sharpness * cover)), where cover is its capacity over what is asked;
        decode covers no more than it can hold of the batch in flight within the ITL target.

        Args:
            nodes: Serving nodes, shape (B, P).
            gpus: Their GPUs, shape (B, P).
            asked_tok_s: Tokens/s asked of the pool, above 0, shape (B, P).
            value: Utility of full cover, shape (B, P).
            active: Requests decoding, shape (B, S).
            prompt_tok: Mean prompt length, shape (B, S).
            context_tok: Mean context of decoding requests, shape (B, S).
            sharpness: How fast utility saturates.
            budget_w: Watts for GPUs, shape (B,).

        Returns:
            Caps per GPU, shape (B, P), watts. All arrays are float64 and contiguous.
        """


class Outcome(Protocol):
    """What became of copies of environments since they started, shape (copies,) each."""

    @property
    def good_tok(self) -> np.ndarray:
        """Tokens served in time."""

    @property
    def spoilt_tok(self) -> np.ndarray:
        """Tokens late, rejected or lost."""

    @property
    def flight_tok(self) -> np.ndarray:
        """Tokens in flight, each weighted by the chance that its request still meets both targets."""

    @property
    def judged_tok(self) -> np.ndarray:
        """Tokens served in time that count for the episode's figures: those after its warm-up."""

    @property
    def is_over(self) -> np.ndarray:
        """Whether the copy stands at the end of its episode."""


class Roll(Protocol):
    """Copies of environments, ahead of time; `steps` is how often they can be stepped."""

    steps: int

    @property
    def snapshot(self) -> Snapshot:
        """What is known now in every copy."""

    @property
    def observation(self) -> Observation:
        """The features of what is known now, node features left out."""

    def step(self, bids: Bids) -> None:
        """Advance every copy by one control interval."""

    def outcome(self) -> Outcome:
        """What became of the copies so far."""


class Simulator(Protocol):
    """What a policy that plans by simulation needs; the plant implements it (`envs.branch.PlantSimulator`).

    Rows are those of the snapshot last bid on.
    """

    def steps_left(self, rows: np.ndarray) -> np.ndarray:
        """Control intervals left in the episodes of some rows, shape (R,).

        Raises:
            BadInput: outside the simulator.
        """

    def branch(self, rows: np.ndarray, copies: int, steps: int, future: np.ndarray | None = None) -> Roll:
        """Copies of the environments that stand in some rows; a roll made before is no longer used.

        Args:
            rows: Rows with equally many control intervals left, shape (R,).
            copies: How many of each, beside each other.
            steps: Control intervals that they will be stepped at most.
            future: Requests, mean prompt and output tokens of each tick's arrivals, shape (R * copies, ticks, S, 3);
                then nominal parameters, no faults and announced changes alone are assumed too. None is the true
                future.

        Raises:
            BadInput: outside the simulator.
        """
