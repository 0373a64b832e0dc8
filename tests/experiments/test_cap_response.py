"""The cap response: the plant's own law, refitted to sweeps, predicts what it was not shown."""

import os
from pathlib import Path

import numpy as np
import pytest

from flyball.envs import physics
from flyball.experiments.calibrate import cap_checks, cap_response
from flyball.experiments.calibrate.cap_response import Device, Sweep, Workload, predict
from flyball.fleet.errors import BadInput

DATA = Path(os.environ.get("FLYBALL_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))
DEVICE = Device(0.7, 0.6, 0.4, 0.5, 0.3, 50.0, 40.0)
CAPS_W = np.arange(100.0, 301.0, 25.0)


def synthetic(compute_frac, dynamic_w, stall_frac, name="a/n/1"):
    """A sweep that the law itself made."""
    rate, draw_w = predict(DEVICE, Workload(compute_frac, dynamic_w, stall_frac), CAPS_W)
    return Sweep(name, CAPS_W, rate / rate[-1], draw_w, float(draw_w[-1]))


def test_the_law_is_the_plants():
    """The fitted form equals the compiled one that the plant runs, so that a fit feeds it."""
    for phi in (0.18, 0.3, 0.45, 0.6, 0.8, 1.0):
        assert cap_response.voltage(phi, DEVICE) == pytest.approx(physics.voltage(phi, 0.7, 0.6))
        for cb in (0.0, 0.2, 1.0):
            rate = physics.relative_rate(phi, cb, 0.4)
            assert cap_response.relative_rate(phi, cb, DEVICE) == pytest.approx(rate)
            row = np.zeros(1, [(n, "f8") for n in ("p0_w", "pli_w", "aw_w", "hbm_frac", "am_w", "ac_w")])[0]
            # 200 dynamic watts: 30 % whatever it does, the rest by the compute share
            row["p0_w"], row["pli_w"], row["am_w"], row["ac_w"] = 50.0, 110.0, 140.0 * (1 - cb), 140.0 * cb
            theirs = physics.busy_power_w.py_func(phi, cb, 1.0, 1.0, _Row(row), 1.0, 0.7, 0.6, 0.5, 0.4)
            assert cap_response.busy_power_w(phi, cb, 200.0, DEVICE) == pytest.approx(theirs)


class _Row:
    """A profile row that answers by attribute, as in a kernel."""

    def __init__(self, row):
        self.__dict__.update({n: float(row[n]) for n in row.dtype.names})


def test_a_cap_holds_the_busy_draw_and_never_helps():
    """Under any cap above the floor the draw stays below it, and a lower cap never gives more throughput."""
    caps_w = np.linspace(200, 400, 57)
    for compute in (0.0, 0.3, 1.0):
        for stall in (0.0, 0.4):
            rate, draw_w = predict(DEVICE, Workload(compute, 280.0, stall), caps_w)
            assert (draw_w <= caps_w + 1e-3).all()
            assert (np.diff(rate) >= -1e-9).all() and rate[-1] == pytest.approx(1.0)


def test_a_fit_predicts_caps_it_was_not_shown():
    """From every second cap of four workloads the others follow within 2 % on average."""
    made = [(0.9, 280, 0.05), (0.5, 240, 0.1), (0.4, 220, 0.2), (0.6, 150, 0.3)]
    sweeps = [synthetic(*w, name=f"a/n{i}/1") for i, w in enumerate(made)]
    fit = cap_response.fit_device([s.at(np.arange(len(CAPS_W)) % 2 == 0) for s in sweeps], 300.0)
    for s in sweeps:
        rate, draw_w = predict(fit.device, fit.workloads[s.name], s.cap_w)
        error = np.abs(rate / rate[-1] / s.rate - 1)
        assert error.mean() < 0.02 and error.max() < 0.08
        assert draw_w == pytest.approx(s.draw_w, rel=0.05)


def test_one_capped_run_tells_a_new_workload():
    """With the device known, the highest and the lowest cap give those between within 6 %."""
    new = synthetic(0.75, 260.0, 0.12)
    found = cap_response.fit_workloads(DEVICE, [new.at(np.array([0, -1]))], 300.0)[new.name]
    rate, _ = predict(DEVICE, found, CAPS_W)
    assert rate / rate[-1] == pytest.approx(new.rate, rel=0.06)


@pytest.mark.parametrize(
    "text, says",
    [
        ("power_limit,time_per_epoch\n1,2\n", "average_power"),
        ("", "needs the columns"),
        ("power_limit,time_per_epoch,average_power\n100,x,3\n", "line 2"),
        ("power_limit,time_per_epoch,average_power\n100,nan,3\n", "line 2"),
        ("power_limit,time_per_epoch,average_power\n100,1,90\n200,1,90\n", "three caps"),
    ],
)
def test_a_bad_sweep_file_says_what_to_mend(tmp_path, text, says):
    """A missing column, a word for a number, NaN and too few caps are each named."""
    path = tmp_path / "sweep.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=says):
        cap_response.read_sweeps(path)


def test_no_sweep_file_is_bad_input(tmp_path):
    """A file that is not there is the user's to mend."""
    with pytest.raises(BadInput, match="cannot be read"):
        cap_response.read_sweeps(tmp_path / "none.csv")


@pytest.mark.skipif(not (DATA / "zeus_powerlimit").is_dir(), reason="no measured data: set FLYBALL_DATA")
def test_measured_sweeps_are_predicted_within_five_percent():
    """On a measured device, other caps than the fitted ones come within the target."""
    sweeps = cap_response.read_sweeps(cap_checks.sweep_files(DATA / "zeus_powerlimit")["P100"])
    rows = {r["check"]: r for r in cap_checks.device_findings("P100", sweeps, chosen=("caps",))}
    row = rows["cap response: throughput, held-out caps"]
    assert row["passed"] and row["mape"] <= cap_checks.TARGET_MAPE and row["n"] > 100
