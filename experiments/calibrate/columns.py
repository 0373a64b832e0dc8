"""Columns of measured CSV and weather files, with one-line errors."""

import csv
import gzip
from pathlib import Path

import numpy as np

from ...fleet.errors import BadInput


def _text(path: Path):
    return gzip.open(path, "rt", newline="") if path.suffix == ".gz" else open(path, newline="")


def columns(path: Path, *names: str) -> list[list]:
    """Columns as lists, numbers where every value is one.

    Raises:
        BadInput: naming the file, and the column that it lacks.
    """
    try:
        with _text(path) as f:
            reader = csv.reader(f)
            header = next(reader, [])
            missing = [n for n in names if n not in header]
            if missing:
                raise BadInput(f"{path}: no column {missing[0]!r}; see the folder's SOURCE.md")
            index = [header.index(n) for n in names]
            rows = [[row[i] for i in index] for row in reader if len(row) > max(index)]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); fetch the data set again") from None
    if not rows:
        raise BadInput(f"{path}: no rows; fetch the data set again")
    return [_numbers(list(values)) for values in zip(*rows, strict=True)]


def _numbers(values: list[str]) -> list:
    try:
        return [float(v) if v else float("nan") for v in values]
    except ValueError:
        return values


def epw_dry_bulb_c(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Dry-bulb temperature and month of every hour of an EnergyPlus weather file (field 7 and 2 of a data row).

    Raises:
        BadInput: if it is none.
    """
    try:
        with _text(path) as f:
            rows = [row for row in csv.reader(f) if len(row) > 30]
        return np.array([float(r[6]) for r in rows]), np.array([int(r[1]) for r in rows])
    except (OSError, EOFError, ValueError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not an EnergyPlus weather file ({error}); fetch it again") from None


def quantile(values, q: float) -> float:
    """Of finite values; NaN of none."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return float(np.quantile(values, q)) if values.size else float("nan")
