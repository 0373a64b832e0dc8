"""What an emulated fleet shows of each second."""

from dataclasses import dataclass

import numpy as np

UNLEASED, LEASED, FALLEN, DRAINED = range(4)
"""What holds a node's cap: nothing of ours yet, a lease, its fallback; or a lease that drains it."""


@dataclass(frozen=True)
class Second:
    """What was seen in one second of the emulation.

    Attributes:
        t_s: End of the second, from the start of the plant.
        demanded_w: Limit demanded of each domain, shape (D,).
        in_force_w: Limit in force, shape (D,).
        power_w: Mean draw of each domain in the plant, shape (D,).
        bound_w: Largest sum of caps in force and declared bounds at any look, shape (D,).
        cap_w: Caps in force in the emulated library, shape (N,).
        status: UNLEASED, LEASED, FALLEN or DRAINED, shape (N,).
        epoch: Of the lease that each agent obeys, -1 before the first, shape (N,).
        fallback_w: That each agent would go to, shape (N,).
        stage: Stage that runs, shape (N,).
        interventions: Bids that the last plan did not grant; NaN while no service answers.
    """

    t_s: float
    demanded_w: np.ndarray
    in_force_w: np.ndarray
    power_w: np.ndarray
    bound_w: np.ndarray
    cap_w: np.ndarray
    status: np.ndarray
    epoch: np.ndarray
    fallback_w: np.ndarray
    stage: np.ndarray
    interventions: float
