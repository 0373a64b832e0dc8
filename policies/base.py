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
    """What a planning baseline needs to know of the hardware; the plant implements it (`envs.model.PlantModel`)."""

    def prefill_tok_s(self, service: int, sku: int, cap_w: np.ndarray) -> np.ndarray:
        """Prefill tokens per second and GPU under a cap per GPU."""

    def decode_step_s(
        self, service: int, sku: int, cap_w: np.ndarray, batch: np.ndarray, context_tok: np.ndarray
    ) -> np.ndarray:
        """Decode step time of a replica with `batch` requests under a cap per GPU."""

    def decode_slots(
        self, service: int, sku: int, cap_w: np.ndarray, itl_s: float, context_tok: np.ndarray
    ) -> np.ndarray:
        """Requests that a replica decodes within `itl_s` and its KV memory under a cap per GPU."""

    def replicas(self, service: int, sku: int, gpus: int) -> int:
        """Replicas on a node."""
