"""`flyball calibrate --data`: fit everything that a folder of measurements allows, and write it with its errors."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...envs.hardware import PROFILES
from ...fleet.errors import BadInput
from .cap_checks import device_findings, device_record, sweep_files
from .cap_response import ZEUS_COLUMNS, Sweep, read_sweeps
from .fitted_file import write_toml
from .fleet_inputs import fleet_tables

MIN_SWEEPS = 2


def _sweep_files(data: Path) -> dict[str, Path]:
    """Sweeps by device: Zeus's own, and every CSV of the folder itself that has a sweep's columns."""
    found = sweep_files(data / "zeus_powerlimit")
    found = {sku: path for sku, path in found.items() if path.is_file()}
    for path in sorted(data.glob("*.csv")):
        with open(path, errors="replace") as f:
            header = f.readline().strip().split(",")
        if all(c in header for c in ZEUS_COLUMNS):
            found[path.stem] = path
    return found


def refit(data: Path, out: Path, write_package: bool = False, say: Callable[[str], None] = lambda _: None) -> dict:
    """Fit and write.

    Args:
        data: A folder of sweeps, or of the measured data sets with their own folders.
        out: Folder for `cap_response.toml`, `fleet.toml` and what `experiments.fit` writes.
        write_package: Also replace `envs/profiles/fleet.toml`.
        say: Told what is fitted.

    Returns:
        Findings, the files written, and what was left out with the reason.

    Raises:
        BadInput: if there is nothing to fit.
    """
    if not data.is_dir():
        raise BadInput(f"--data {data}: no such folder; give one with measurements")
    files: list[str] = []
    skipped: list[str] = []
    findings: list[dict] = []
    records: dict[str, dict[str, Any]] = {}
    for sku, path in _sweep_files(data).items():
        sweeps: list[Sweep] = read_sweeps(path)
        if len(sweeps) < MIN_SWEEPS:
            skipped.append(f"{path.name}: {len(sweeps)} workload(s), a fit needs {MIN_SWEEPS}")
            continue
        say(f"cap response of {sku}: {len(sweeps)} workloads")
        records[f"cap_response/{sku}"] = device_record(sku, sweeps, str(path.relative_to(data)))
        findings += device_findings(sku, sweeps, str(path.relative_to(data)))
    if records:
        path = out / "cap_response.toml"
        write_toml(records, path, "Cap response fitted by `flyball calibrate --data`; the law is envs/physics.py's.")
        files.append(str(path))
    tables, inputs, missing = fleet_tables(data)
    findings += inputs
    skipped += missing
    if tables:
        tables = {**{k: _short(v) for k, v in records.items()}, **tables}
        comment = (
            "For the plant's constants and ranges, from measured inputs by `flyball calibrate --data`: do not edit."
        )
        write_toml(tables, out / "fleet.toml", comment)
        files.append(str(out / "fleet.toml"))
        if write_package:
            write_toml(tables, PROFILES / "fleet.toml", comment)
            files.append(str(PROFILES / "fleet.toml"))
    profiles = _fit_profiles(data, out, skipped)
    files += profiles
    if not files:
        raise BadInput(f"--data {data}: nothing to fit; needs a CSV with {', '.join(ZEUS_COLUMNS)} or the data sets")
    return {"findings": findings, "files": files, "skipped": skipped}


def _short(record: dict[str, Any]) -> dict[str, Any]:
    shapes = ("v_min", "phi_knee", "phi_mem", "kappa")
    keep = ("source", *shapes, *(f"{s}_alone" for s in shapes), "compute_frac_p10", "compute_frac_p90", "fit_rate_mape")
    return {k: record[k] for k in keep}


def _fit_profiles(data: Path, out: Path, skipped: list[str]) -> list[str]:
    """Power, ITL and TTFT of the served models, where `experiments.fit` is installed and has its data."""
    try:
        fit_profiles = importlib.import_module("..fit.pipeline", __package__).fit_profiles
    except (ImportError, AttributeError) as error:
        skipped.append(f"profiles of served models: experiments.fit cannot be used here ({error})")
        return []
    if not (data / "mlenergy_v3").is_dir():
        skipped.append("profiles of served models: no mlenergy_v3 in the folder")
        return []
    return [str(path) for path in fit_profiles(data).write(out)]
