"""Heat: weather at the inlet, products that shed it differently, hot memory."""

import os
from pathlib import Path

import numpy as np
import pytest

from flyball.envs.scenario import load_scenario
from flyball.envs.thermal import COOLING
from flyball.envs.weather import PEAK_HOUR, WEATHER_POINTS, WeatherSpec, inlet_series, read_epw
from flyball.fleet.errors import ScenarioError
from flyball.fleet.skus import SKUS

DATA = Path(os.environ.get("FLYBALL_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))

STILL = ("seconds=600", "warmup_s=0", "plant.inlet_c=[25, 25]", "plant.hot_spot_c=[0, 0]", "plant.rise_scale=[1, 1]")


def play(core, steps):
    for _ in range(steps):
        core.step(core.base)
    return core


def test_every_product_has_its_cooling():
    """A product without constants would fail at the first reset."""
    assert set(SKUS) <= set(COOLING)


def test_a_gpu_settles_at_its_inlet_plus_its_draws_rise(make_core):
    """At a constant draw the temperature tends to inlet + R x watts per GPU."""
    core = play(make_core("steady", batch=1, overrides=(*STILL, "load.target_util=0.000001")), 100)
    node, static = core.plant.node[0], core.fleet.node_static
    expected_c = 25.0 + COOLING["H100-SXM"].c_per_w * node["gpu_w"] / static["gpus"]
    np.testing.assert_allclose(node["temp_c"], expected_c, atol=0.5)


def test_liquid_is_cooler_per_watt_than_air(make_core):
    """On the mixed site a GB200 rises less per watt than an air-cooled GPU, and sooner."""
    core = play(make_core("steady", batch=1, overrides=(*STILL, "site=mixed", "load.target_util=0.3")), 100)
    node, fleet = core.plant.node[0], core.fleet
    rise_c = (node["temp_c"] - 25.0) / (node["gpu_w"] / fleet.node_static["gpus"])
    sku = np.array(fleet.sku_names)[fleet.node_static["sku"]]
    assert rise_c[sku == "GB200-NVL72"].max() < rise_c[sku == "H100-SXM"].min()
    assert node["cool_frac"][sku == "GB200-NVL72"].min() > node["cool_frac"][sku == "H100-SXM"].max()


def test_hot_spots_differ_between_nodes_and_seeds_alike_give_them_alike(make_core):
    """Half-normal above the room's air, drawn from the episode's seed."""
    a = make_core("thermal", batch=2, seeds=[1, 2]).plant.node["hot_spot_c"].copy()
    b = make_core("thermal", batch=1, seeds=[1]).plant.node["hot_spot_c"]
    assert (a >= 0).all() and a[0].std() > 0.3 and (a[0] == b[0]).all() and (a[0] != a[1]).any()


def test_a_hot_day_throttles_and_the_clock_recovers_with_it(make_core):
    """In the thermal scenario nodes pass 83 C, and there their clocks lie below those of a cool day at equal caps."""
    hot = make_core("thermal", batch=2)
    temps = []
    for _ in range(hot.plant.ticks // hot.plant.control_ticks):
        hot.step(hot.base)
        temps.append(hot.plant.node["temp_c"].max())
    assert max(temps) > 83.0 and temps[-1] < max(temps)


def test_hot_memory_slows_decode(make_core):
    """Memory is hotter than the GPU by its use, and above 95 C tokens come later than below."""
    core = make_core("steady", batch=1, overrides=(*STILL, "plant.inlet_c=[55, 55]", "plant.rise_scale=[1.5, 1.5]"))
    cool = make_core("steady", batch=1, overrides=STILL)
    for _ in range(60):
        core.step(core.base)
        cool.step(core.base)
    node = core.plant.node[0]
    assert (node["hbm_c"] >= node["temp_c"]).all() and node["hbm_c"].max() > 95.0
    assert core.plant.snapshot.service["itl_s"][0, 0] > 1.1 * cool.plant.snapshot.service["itl_s"][0, 0]


def test_the_weather_of_a_day_swings_around_its_mean_and_peaks_in_the_afternoon():
    """Without a file: a cosine of the given amplitude with its maximum at 15:12."""
    spec = WeatherSpec(amplitude_c=6.0, start_hour=0.0)
    series = inlet_series(spec, 27.0, 86400.0, np.random.default_rng(0))
    hours = np.linspace(0, 24, WEATHER_POINTS)
    assert series.max() == pytest.approx(33.0, abs=0.2) and series.min() == pytest.approx(21.0, abs=0.2)
    assert abs(hours[series.argmax()] - PEAK_HOUR) < 0.5


def epw(path, air_c):
    """A minimal weather file of whole days in January."""
    rows = [f"2020,1,{h // 24 + 1},{h % 24 + 1},0,flags,{t:.1f}" for h, t in enumerate(air_c)]
    path.write_text("\n".join([f"HEADER {i}" for i in range(8)] + rows) + "\n")
    return path


def test_a_weather_files_content_is_part_of_the_hash(tmp_path):
    """The same year elsewhere is the same scenario, another year is not."""
    years = [epw(tmp_path / f"{i}.epw", np.full(24, c)) for i, c in enumerate((5.0, 5.0, 6.0))]
    hashes = [load_scenario("steady", [f"weather.file={path}"]).hash for path in years]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_weather_file_sets_the_inlet(make_core, tmp_path):
    """Outside air plus the approach, held at the supply's minimum, moves the inlet through the episode."""
    path = epw(tmp_path / "day.epw", np.r_[np.full(12, 0.0), np.full(12, 30.0)])
    day = (f"weather.file={path}", "weather.month=1", "weather.start_hour=6", "weather.lapse=72")
    core = make_core("steady", batch=1, overrides=("seconds=600", "warmup_s=0", *day))
    assert core.plant.params["inlet_c"][0] == 18.0
    play(core, 118)
    assert core.plant.params["inlet_c"][0] == pytest.approx(35.0, abs=0.5)


def test_a_measured_year_gives_summers_that_are_hotter_than_its_winters():
    """The file that the generator's amplitude was derived from, where it is at hand."""
    path = DATA / "grid_carbon_weather" / "USA_VA_Leesburg.Exec.epw.gz"
    if not path.exists():
        pytest.skip(f"no {path.name} under {DATA}; set FLYBALL_DATA to the folder of measured data")
    months, air_c = read_epw(path)
    assert len(air_c) == 8760 and set(months) == set(range(1, 13))
    days_c = air_c[months == 7].reshape(-1, 24)
    angle = 2 * np.pi * (np.arange(24) + 0.5) / 24
    first = np.abs((days_c * np.exp(-1j * angle)).sum(1) / 12)
    assert first.mean() == pytest.approx(5.7, abs=0.1) and days_c.mean() == pytest.approx(25.8, abs=0.1)
    rng = np.random.default_rng(1)
    july, january = (inlet_series(WeatherSpec(file=str(path), month=m, lapse=96), 0.0, 900.0, rng) for m in (7, 1))
    assert july.max() > 25 > january.mean()


def test_a_bad_weather_file_is_refused_in_one_line(tmp_path):
    """Missing, of another format, without that month: the message says what to give."""
    other = tmp_path / "other.epw"
    other.write_text("a,b\n" * 20)
    january = epw(tmp_path / "day.epw", np.zeros(24))
    for path, message in ((tmp_path / "none.epw", "cannot be read"), (other, "not an EnergyPlus weather file")):
        with pytest.raises(ScenarioError, match=message):
            load_scenario("steady", [f"weather.file={path}"])
    with pytest.raises(ScenarioError, match="has no month 7"):
        inlet_series(WeatherSpec(file=str(january)), 25.0, 900.0, np.random.default_rng(0))
