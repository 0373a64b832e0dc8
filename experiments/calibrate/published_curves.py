"""The published cap-response points: three devices under one workload each, against the same law.

Without draws and with one workload, a curve does not settle a device's shapes. What can be asked is whether the law
of `envs.physics` passes through the points with shapes inside the range that scenarios draw: `in range` fits a
workload's numbers and the shapes within MODEL.md's ranges; `free` lets the shapes go where they want.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...fleet.errors import BadInput
from .cap_response import Device, respond

SHAPES = ("v_min", "phi_knee", "phi_mem", "kappa")
IN_RANGE = ((0.62, 0.80), (0.55, 0.75), (0.45, 0.70), (0.35, 0.65))
"""What scenarios randomise (MODEL.md sections 2-4), in the order of `SHAPES`."""

FREE = ((0.40, 0.98), (0.20, 0.98), (0.18, 0.98), (0.0, 1.0))


def read_curves(path: Path) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray, str]]:
    """(device, phase) -> (cap over TDP, relative throughput, quality); points without a cap or a number are left out.

    Raises:
        BadInput: if the file cannot be read.
    """
    try:
        with open(path, newline="") as f:
            rows = list(csv.DictReader(f))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; give the folder of the published curves") from None
    out: dict[tuple[str, str], list] = {}
    for row in rows:
        try:
            point = (float(row["cap_w"]) / float(row["tdp_w"]), float(row["rel_throughput"]))
        except (ValueError, KeyError, TypeError):
            continue
        out.setdefault((row["device"], row["phase"]), []).append((*point, row["quality"]))
    curves = {}
    for key, points in out.items():
        points.sort()
        curves[key] = (np.array([p[0] for p in points]), np.array([p[1] for p in points]), points[0][2])
    return curves


def fit_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]], ranges=IN_RANGE) -> np.ndarray:
    """Relative errors of one device's curves under the law, fitted together; caps and watts over TDP.

    Shared by the curves: `ranges`' shapes, the clock share and the static watts; own: compute share, dynamic watts.
    """
    from scipy.optimize import least_squares

    low = np.array([*(r[0] for r in ranges), 0.0, 0.02, *([0.0, 0.3] * len(curves))])
    high = np.array([*(r[1] for r in ranges), 1.0, 0.45, *([1.0, 1.3] * len(curves))])

    def errors(x: np.ndarray) -> np.ndarray:
        device = Device(x[0], x[1], x[2], x[3], x[4], x[5], x[5])
        out = []
        for i, (cap, rate) in enumerate(curves):
            compute, dynamic = x[6 + 2 * i : 8 + 2 * i]
            ours, _, _ = respond(device, compute, dynamic, 0.0, cap)
            best, _, _ = respond(device, compute, dynamic, 0.0, cap[-1:])
            out.append(((ours / best - rate) / rate)[:-1])
        return np.concatenate(out)

    best: Any = None
    for compute in (0.2, 0.5, 0.9):
        for dynamic in (0.6, 0.9):
            x = np.concatenate([0.5 * (low[:6] + high[:6]), np.tile([compute, dynamic], len(curves))])
            found = least_squares(errors, x, bounds=(low, high), loss="soft_l1", f_scale=0.1, max_nfev=200)
            if best is None or found.cost < best.cost:
                best = found
    return errors(best.x)


def published_findings(path: Path) -> list[dict]:
    """Findings on the measured curves of at least four points, and on the modelled one, which is not fitted."""
    from .cap_checks import error_row

    curves = read_curves(path)
    out = []
    devices = sorted({d for (d, _), c in curves.items() if len(c[0]) >= 4})
    for device in devices:
        own = [(c[0], c[1]) for (d, _), c in curves.items() if d == device and len(c[0]) >= 4]
        caps = np.concatenate([c[0][:-1] for c in own])
        for name, ranges in (("in range", IN_RANGE), ("free", FREE)):
            errors = fit_curve(own, ranges)
            upper = errors[caps > 0.4]
            note = f"above 40 % of TDP: {np.abs(upper).mean():.1%} of {upper.size}; a fit, nothing held out"
            out.append(
                error_row(f"published curves: shapes {name}", device, "published_power_curves", errors, None, note)
            )
    return out
