"""What services ask for, averaged: requests and tokens per second over a fast and a slow time."""

import math

import numpy as np

from ..fleet.snapshot import Snapshot
from ..fleet.tables import DECODED_SHARE

REQUESTS, PROMPT, OUTPUT = range(3)
"""Columns of an average: requests/s, prompt tokens/s, output tokens/s."""

WORK = 6
"""Columns of the memory: the fast averages, then the slow ones."""

SHORTEST_TOK = 16.0
"""Prompts and contexts are taken for at least this long, so that a silent service has a length."""


def no_work(batch: int, services: int) -> np.ndarray:
    """Memory of work of which nothing was heard yet, shape (B, S, WORK)."""
    return np.zeros((batch, services, WORK))


def follow_work(snapshot: Snapshot, memory: np.ndarray, dt_s: float, fast_s: float, slow_s: float) -> np.ndarray:
    """Move both averages towards the work of now; values that are missing leave them as they are.

    Args:
        snapshot: What is known.
        memory: Shape (B, S, WORK); an average of 0 jumps to the first value heard.
        dt_s: Since the last call.
        fast_s: Time constant of the fast averages.
        slow_s: Time constant of the slow averages.

    Returns:
        The new memory.
    """
    from ..fleet.arbiter.pools import follow_work as follow  # numba is loaded by who bids, not by who imports

    out = np.empty_like(memory)
    follow(snapshot.service, 1.0 - math.exp(-dt_s / fast_s), 1.0 - math.exp(-dt_s / slow_s), memory, out)
    return out


def lengths(average: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean prompt length and mean context of decoding requests.

    Args:
        average: Fast or slow columns of the memory, shape (B, S, 3).

    Returns:
        Shape (B, S) each, tokens; a request's context grows from its prompt by its output.
    """
    rate = np.maximum(average[..., REQUESTS], 1e-6)
    prompt = average[..., PROMPT] / rate
    context = prompt + DECODED_SHARE * average[..., OUTPUT] / rate
    return np.maximum(prompt, SHORTEST_TOK), np.maximum(context, SHORTEST_TOK)
