"""Outside air over an episode, as the temperature of the air (or water) that reaches the servers.

Numbers derived from the typical year of Leesburg, Virginia (EnergyPlus weather file USA_VA_Leesburg.Exec, TMYx; public
domain), the densest market of data centres: a day's first harmonic has an amplitude of 2.7 C in January and 5.7 C in
July (90th percentile 7.4), its warmest hour is 15:12, daily means of July scatter by 2.4 C around 25.8 C, and its
hottest hour is 37.0 C.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..fleet.errors import ScenarioError
from ..fleet.toml_file import number

WEATHER_POINTS = 33
"""Temperatures of an episode, evenly spaced; the plant interpolates. An hourly file gives no more to a day."""

PEAK_HOUR = 15.2
"""Warmest hour of a day: phase of the first harmonic in July (source above)."""

_DRY_BULB, _HEADER_ROWS = 6, 8  # columns and rows of the EPW format (EnergyPlus Auxiliary Programs, 2.9.1)


@dataclass(frozen=True)
class WeatherSpec:
    """[weather] of a scenario: how the inlet moves around `plant.inlet_c`, or follows a file.

    Attributes:
        amplitude_c: Half the daily swing; 0 keeps the inlet as it is drawn.
        start_hour: Time of day at which an episode starts.
        lapse: Seconds of weather per second of the episode: 96 is a day in a quarter of an hour.
        file: An EnergyPlus weather file (.epw or .epw.gz) instead of the sine: a drawn day of `month`.
        month: Month of the days drawn from the file; 0 is the whole year.
        approach_c: Inlet above outside air with a file (A: 2-8 C through filters, or over a cooling tower).
        supply_min_c: The cooling holds the inlet at or above this: ASHRAE's recommended 18 C.
    """

    amplitude_c: float = number(0.0, low=0, high=20)
    start_hour: float = number(10.0, low=0, high=24)
    lapse: float = number(1.0, above=0, high=1e5)
    file: str = ""
    month: int = number(7, low=0, high=12)
    approach_c: float = number(5.0, low=0, high=30)
    supply_min_c: float = number(18.0, low=0, high=45)

    @property
    def is_constant(self) -> bool:
        return not self.file and self.amplitude_c == 0.0


def read_epw(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Hourly dry-bulb temperatures of an EnergyPlus weather file.

    Returns:
        Months (H,) int64 and temperatures (H,) float64, C, in the order of the file, whole days.

    Raises:
        ScenarioError: one line with the file and what is wrong with it.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("latin-1")
        rows = [line.split(",") for line in text.splitlines()[_HEADER_ROWS:] if line.strip()]
        months = np.array([int(row[1]) for row in rows])
        air_c = np.array([float(row[_DRY_BULB]) for row in rows])
    except OSError as e:
        why = e.strerror or "not a gzip file"
        raise ScenarioError(f"weather.file: {path} cannot be read ({why}); give an .epw or .epw.gz file") from None
    except (ValueError, IndexError):
        raise ScenarioError(f"weather.file: {path} is not an EnergyPlus weather file; give an .epw file") from None
    if len(air_c) < 24 or len(air_c) % 24 or not (np.abs(air_c) < 70).all():  # 99.9 is the format's "missing"
        raise ScenarioError(
            f"weather.file: {path} has {len(air_c)} hours or temperatures beyond 70 C; give whole days without gaps"
        )
    return months, air_c


def inlet_series(spec: WeatherSpec, mean_c: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Inlet temperatures at `WEATHER_POINTS` even times of an episode, C.

    Args:
        spec: The scenario's weather.
        mean_c: The day's mean inlet without a file: `plant.inlet_c` as drawn.
        seconds: Length of the episode.
        rng: Draws the day of a file.

    Raises:
        ScenarioError: a file that cannot be read, or has no day of that month.
    """
    hours = spec.start_hour + np.linspace(0, seconds * spec.lapse / 3600, WEATHER_POINTS)
    if not spec.file:
        return mean_c + spec.amplitude_c * np.cos(2 * np.pi * (hours - PEAK_HOUR) / 24)
    months, air_c = read_epw(spec.file)
    days = np.flatnonzero((months[::24] == spec.month) | (spec.month == 0))
    if not len(days):
        raise ScenarioError(f"weather.month: {spec.file} has no month {spec.month}; use 0 for any day")
    # hour k of a file is the hour that ends at k (EPW), so its middle is k - 0.5
    hour = int(rng.choice(days)) * 24 + hours - 0.5
    outside_c = np.interp(hour % len(air_c), np.arange(len(air_c)), air_c)
    return np.maximum(outside_c + spec.approach_c, spec.supply_min_c)
