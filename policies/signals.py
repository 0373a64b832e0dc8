"""How hard services press on their stages, from what engines report: the signals of reactive baselines."""

from dataclasses import dataclass

import numpy as np

from ..fleet.observe import Observation
from ..fleet.schema import column
from ..fleet.snapshot import Snapshot
from ..fleet.tables import DECODE, PREFILL, STAGES
from ..fleet.topology import Fleet

_UTIL = column("pool", "util_fast")


@dataclass(frozen=True)
class Signals:
    """Ratios to targets, shape (B, S) each; finite, and calm where nothing was heard.

    Attributes:
        ttft: Time to first token / its target.
        itl: Inter-token latency / its target.
        rejected: Share of requests turned away.
        prefill_util: Busy share of the prefill pool, 8-s average.
        decode_util: Running / admissible requests of the decode pool, 8-s average.
    """

    ttft: np.ndarray
    itl: np.ndarray
    rejected: np.ndarray
    prefill_util: np.ndarray
    decode_util: np.ndarray


def read_signals(fleet: Fleet, snapshot: Snapshot, observation: Observation) -> Signals:
    """The signals of every service now."""
    heard, target = snapshot.service, fleet.service_static
    util = observation.pool[..., _UTIL].astype(np.float64)
    return Signals(
        np.maximum(_known(heard["ttft_s"]), _known(heard["backlog_s"])) / target["ttft_s"],
        _known(heard["itl_s"]) / target["itl_s"],
        np.minimum(_known(heard["reject_frac"]), 1.0),
        util[:, PREFILL::STAGES],
        util[:, DECODE::STAGES],
    )


def _known(values: np.ndarray) -> np.ndarray:
    """Values at least 0, with 0 for what is missing."""
    return np.where(np.isfinite(values), np.maximum(values, 0.0), 0.0)
