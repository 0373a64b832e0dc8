"""One policy out of several seeds: the average of where their searches ended, gated as any other run.

Evolution strategies start from the same point, the base, and end around the same optimum with noise of their own; the
average of linear residuals is the linear residual of the average (Wortsman et al., Model soups, ICML 2022, for networks
that share their start). What is validated, shrunk and gated is the average alone.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..fleet.errors import BadInput
from ..policies.network import LinearResidual
from .config import TrainConfig
from .session import Progress, Session
from .tracking import track

UNSHARED = ("seed", "algo")
"""Settings in which the runs of one soup may differ."""

MEMBER = ("algo", "seed", "steps", "cpu_s", "run_id")
"""What a card says of each run."""


def soup(runs: Sequence[Path], out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Average the runs of several seeds, and gate and export the result.

    Args:
        runs: Folders of `flyball train --algo es` or `distill`, which differ in seed and algorithm alone.
        out: Folder of the result.
        progress: Called with a label and the share done.

    Returns:
        As of `train`, with "runs".

    Raises:
        BadInput: fewer than two runs, a folder without a finished search, or runs of different settings.
    """
    if len(runs) < 2:
        raise BadInput("a soup needs at least two runs; name their folders")
    configs = [_settings(run) for run in runs]
    shared = [{k: v for k, v in c.items() if k not in UNSHARED} for c in configs]
    for run, settings in zip(runs[1:], shared[1:], strict=True):
        if settings != shared[0]:
            unlike = next(k for k, v in settings.items() if shared[0].get(k) != v)
            raise BadInput(f"{run}: its {unlike} differs from that of {runs[0]}; average runs of one setting")
    first = {**configs[0], "scenarios": tuple(configs[0]["scenarios"])}
    config = replace(TrainConfig(**first, out=out), minutes=None, steps=1)
    session = Session(config, progress or (lambda label, share: None))
    torch.set_num_threads(1)
    network = average([_residual(run, session.pool_channels) for run in runs])
    spent = [json.loads((run / "run.json").read_text()) for run in runs]
    with track(out, f"soup-{len(runs)}", config.mlflow_uri) as session.run:
        session.add_spent(sum(s["steps"] for s in spent), sum(s["cpu_s"] for s in spent))
        session.origin = {"members": [{k: s["config"].get(k, s.get(k)) for k in MEMBER} for s in spent]}
        session.run.params({**session.parameters(), "soup_of": ", ".join(s["run_id"] for s in spent)})
        return {**session.finish(network), "runs": [str(run) for run in runs]}


def average(residuals: Sequence[LinearResidual]) -> LinearResidual:
    """The linear residual whose output is the mean of these residuals' outputs, where no feature is clipped.

    Every residual has feature statistics of its own; the average has their mean, and weights that undo it.
    """
    out = LinearResidual(residuals[0].pool_channels, residuals[0].owns_fleet)
    count = len(residuals)
    with torch.no_grad():
        out.mean.copy_(torch.stack([r.mean for r in residuals]).mean(0))
        out.scale.copy_(torch.stack([r.scale for r in residuals]).mean(0))
        for r in residuals:
            factor, shift = out.scale / r.scale, (out.mean - r.mean) / r.scale
            for name, blocks in (("pool_weights", 2), ("fleet_weights", 1)):
                weights, total = getattr(r, name), getattr(out, name)
                wide_factor, wide_shift = factor.repeat(blocks), shift.repeat(blocks)
                total[:, :-1] += weights[:, :-1] * wide_factor / count
                total[:, -1] += (weights[:, -1] + weights[:, :-1] @ wide_shift) / count
    return out


def _settings(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "run.json").read_text())["config"]
    except (OSError, ValueError, KeyError):
        raise BadInput(f"{run}: no finished run is there; train it with: flyball train --algo es --out {run}") from None


def _residual(run: Path, pool_channels: Sequence[int]) -> LinearResidual:
    """Where a run's search ended, before its role moves were shrunk."""
    try:
        weights = torch.load(run / "network.pt", weights_only=False)["weights"]
        centre = torch.load(run / "checkpoint.pt", weights_only=False)["algorithm"]["centre"]
        network = LinearResidual(pool_channels)
        network.load_state_dict(weights)
        network.set_parameters(np.asarray(centre))
    except (OSError, KeyError, TypeError, RuntimeError) as e:
        raise BadInput(f"{run}: no search of evolution strategies ended there ({type(e).__name__})") from None
    return network
