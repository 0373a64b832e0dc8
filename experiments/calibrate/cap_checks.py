"""How well the fitted cap response predicts what it was not fitted to: other networks, other batch sizes, other caps.

Every protocol is two-fold: each half is fitted once and predicted once, and only predicted points count. Rates under
the highest cap are 1 by definition and count nowhere.

* `networks`, `batches`: the device's shapes come from half of the networks (or of the batch sizes); of a held-out
  workload nothing is known but its throughput and draw under the highest cap.
* `networks+1`: of a held-out workload one capped run is known as well, under the lowest cap: what `flyball calibrate`
  asks a user for.
* `caps`: every second cap of each workload is held out.
* `below`: the caps below the middle are held out; an extrapolation, to say where the law stops being safe.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .cap_response import Device, Sweep, Workload, fit_device, fit_workloads, predict, read_sweeps

TARGET_MAPE = 0.05
"""Predicted relative throughput is to be within 5 % on average."""

SWEEPS = "summary_power_*.csv"
"""One file of sweeps per device, as Zeus names them."""


def sweep_files(folder: Path) -> dict[str, Path]:
    """Files of sweeps by device: the last part of the file's name, in capitals."""
    return {path.stem.removeprefix("summary_power_").upper(): path for path in sorted(folder.glob(SWEEPS))}


SOURCE = "Zeus (NSDI'23) power-limit sweeps, zeus_powerlimit"

PROTOCOLS = ("networks", "networks+1", "batches", "caps", "below")

Predicted = Iterator[tuple[Sweep, Device, Workload]]


def error_row(check: str, sku: str, source: str, errors: np.ndarray, target: float | None, note: str = "") -> dict:
    """One finding: errors are relative, signed, of every predicted point."""
    size = np.abs(errors)
    mape = float(size.mean())
    return {
        "check": check,
        "sku": sku,
        "source": source,
        "n": int(size.size),
        "mape": mape,
        "bias": float(errors.mean()),
        "p90": float(np.quantile(size, 0.9)),
        "target": target,
        "passed": target is None or mape <= target,
        "note": f"p95 {np.quantile(size, 0.95):.1%}" + (f"; {note}" if note else "") if size.size > 1 else note,
    }


def network_of(sweep: Sweep) -> str:
    """The network alone: BERT on one text must not be known from BERT on another. The second part of Zeus's names."""
    return "/".join(sweep.name.split("/")[1:2])


def _halves(sweeps: Sequence[Sweep], key: Callable[[Sweep], str]) -> Iterator[tuple[list[Sweep], list[Sweep]]]:
    groups = sorted({key(s) for s in sweeps})
    for fold in range(2):
        held = set(groups[fold::2])
        yield [s for s in sweeps if key(s) not in held], [s for s in sweeps if key(s) in held]


def _held_out(
    sweeps: Sequence[Sweep], key: Callable[[Sweep], str], top_w: float, idle_w: float, with_lowest: bool
) -> Predicted:
    for known, held in _halves(sweeps, key):
        fit = fit_device(known, top_w, idle_w)
        ends = [s.at(np.array([0, -1]) if with_lowest else np.array([-1])) for s in held]
        found = fit_workloads(fit.device, ends, top_w, list(fit.workloads.values()))
        for s in held:
            yield s.at(np.arange(int(with_lowest), len(s.cap_w) - 1)), fit.device, found[s.name]


def _other_caps(sweeps: Sequence[Sweep], top_w: float, idle_w: float) -> Predicted:
    for fold in range(2):
        known, held = [], []
        for s in sweeps:
            order = np.arange(len(s.cap_w))
            is_held = (order % 2 == fold) & (order < len(order) - 1)
            known.append(s.at(~is_held))
            held.append(s.at(is_held))
        fit = fit_device(known, top_w, idle_w)
        yield from ((s, fit.device, fit.workloads[s.name]) for s in held if len(s.cap_w))


def _below(sweeps: Sequence[Sweep], top_w: float, idle_w: float) -> Predicted:
    known = [s.at(np.arange(len(s.cap_w) // 2, len(s.cap_w))) for s in sweeps]
    fit = fit_device(known, top_w, idle_w)
    yield from ((s.at(np.arange(len(s.cap_w) // 2)), fit.device, fit.workloads[s.name]) for s in sweeps)


def protocol_errors(predicted: Predicted, top_w: float) -> dict[str, np.ndarray]:
    """Relative errors of throughput and of draw, and of throughput where the cap lies below the draw without it."""
    rate, draw, bound = [], [], []
    for s, device, workload in predicted:
        ours, ours_w = predict(device, workload, s.cap_w)
        best, _ = predict(device, workload, top_w)
        error = (ours / best - s.rate) / s.rate
        rate.append(error)
        draw.append((ours_w - s.draw_w) / s.draw_w)
        bound.append(error[s.cap_w < s.free_w])
    return {"rate": np.concatenate(rate), "draw": np.concatenate(draw), "bound": np.concatenate(bound)}


def device_findings(
    sku: str, sweeps: Sequence[Sweep], source: str = SOURCE, chosen: Sequence[str] = PROTOCOLS
) -> list[dict]:
    """Findings of the chosen protocols on one device's sweeps; networks and batches only where there are four."""
    top_w = max(s.cap_w[-1] for s in sweeps)
    # what a look at an idle GPU shows; the idlest job's draw under the highest cap stands for it
    idle_w = min(s.free_w for s in sweeps)

    def batch_of(s: Sweep) -> str:
        return s.name

    protocols: dict[str, Callable[[], Predicted]] = {
        "networks": lambda: _held_out(sweeps, network_of, top_w, idle_w, False),
        "networks+1": lambda: _held_out(sweeps, network_of, top_w, idle_w, True),
        "batches": lambda: _held_out(sweeps, batch_of, top_w, idle_w, False),
        "caps": lambda: _other_caps(sweeps, top_w, idle_w),
        "below": lambda: _below(sweeps, top_w, idle_w),
    }
    if len({network_of(s) for s in sweeps}) < 4:
        del protocols["networks"], protocols["networks+1"]
    if len(sweeps) < 4:
        del protocols["batches"]
    out = []
    for name, run in protocols.items():
        if name not in chosen:
            continue
        errors = protocol_errors(run(), top_w)
        target = None if name == "below" else TARGET_MAPE
        bound = errors["bound"]
        note = (
            f"where the cap lies below the draw without it: {np.abs(bound).mean():.1%} of {bound.size}"
            if bound.size
            else ""
        )
        out.append(error_row(f"cap response: throughput, held-out {name}", sku, source, errors["rate"], target, note))
        out.append(error_row(f"cap response: draw, held-out {name}", sku, source, errors["draw"], None))
    return out


def device_record(sku: str, sweeps: Sequence[Sweep], source: str = SOURCE) -> dict:
    """The shapes fitted to all of a device's sweeps, how its workloads scatter, and the errors of the fit itself.

    `*_alone` are the shapes without the belief in MODEL.md's: they fit a little better and predict no better.
    """
    top_w = max(s.cap_w[-1] for s in sweeps)
    idle_w = min(s.free_w for s in sweeps)
    fit = fit_device(sweeps, top_w, idle_w)
    free = fit_device(sweeps, top_w, idle_w, belief_pull=0.0)
    errors = protocol_errors(((s, fit.device, fit.workloads[s.name]) for s in sweeps), top_w)
    # only workloads that a cap slows by 10 % say anything of their compute share
    hot = [fit.workloads[s.name] for s in sweeps if s.rate.min() < 0.9]
    compute = np.quantile([w.compute_frac for w in hot], (0.1, 0.5, 0.9)) if hot else (np.nan,) * 3
    return {
        "sku": sku,
        "source": source,
        "workloads": len(sweeps),
        "points": int(errors["rate"].size),
        **{k: float(v) for k, v in asdict(fit.device).items()},
        **{f"{k}_alone": float(getattr(free.device, k)) for k in ("v_min", "phi_knee", "phi_mem", "kappa")},
        "compute_frac_p10": float(compute[0]),
        "compute_frac_p50": float(compute[1]),
        "compute_frac_p90": float(compute[2]),
        "fit_rate_mape": float(np.abs(errors["rate"]).mean()),
        "fit_draw_mape": float(np.abs(errors["draw"]).mean()),
    }


def check_cap_response(data_dir: Path) -> list[dict]:
    """Findings on every measured cap sweep of a data folder."""
    from .published_curves import published_findings

    out = []
    for sku, path in sweep_files(Path(data_dir) / "zeus_powerlimit").items():
        out += device_findings(sku, read_sweeps(path))
    curves = Path(data_dir) / "published_power_curves" / "curves.csv"
    return out + (published_findings(curves) if curves.exists() else [])
