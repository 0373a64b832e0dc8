"""A sweep gives every setting back however it ends; proven on emulated GPUs, by killing it."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from flyball.actuators.emulator.state import EmulatedGpus
from flyball.experiments.calibrate.sweep import cap_steps, refuse_busy, sweep_config
from flyball.fleet.errors import BadInput

FOUND_W = [700, 650, 500]
"""Caps that the sweep finds: an operator may have set one of them already."""

SWEEP = """
import json, os, sys, time
from pathlib import Path
from flyball.actuators.emulator.load import load_emulated
from flyball.experiments.calibrate.gpu_load import IdleLoad
from flyball.experiments.calibrate.sweep import SweepConfig, run_sweep, write_sweep
settings = json.loads(sys.argv[1])
load_emulated(settings["gpus"])

class Faulty(IdleLoad):
    steps = 0

    def run(self, kernel, seconds):
        self.steps += 1
        if self.steps == settings.get("fails_at"):
            raise RuntimeError("the load failed")
        if self.steps == settings.get("hangs_at"):
            time.sleep(30)
        return super().run(kernel, seconds)

config = SweepConfig("n0", Path(settings["state"]), caps=4, clocks=(0.8, 0.5), seconds=settings.get("seconds", 0.15),
                     settle_s=0.05, hang_limit_s=settings.get("hang_limit_s", 5.0))
rows = run_sweep(config, Faulty, lambda line: print(line, file=sys.stderr, flush=True))
write_sweep(rows, Path(settings["out"]))
print(json.dumps([[c, f, s.power_w] for c, f, s in rows]))
"""


@pytest.fixture
def gpus(tmp_path):
    """Three emulated H100, idle, one of them with an operator's cap."""
    gpus = EmulatedGpus.create(tmp_path / "gpus.bin", ["H100-SXM"] * 3)
    gpus.table["cap_w"] = FOUND_W
    gpus.set_power_w(90.0)
    gpus.table["util_frac"] = 0.0
    return gpus


@pytest.fixture
def sweep(gpus, tmp_path):
    """Starts sweeps in processes of their own; all are ended."""
    running = []

    def start(**settings):
        given = {
            "gpus": str(gpus.path),
            "state": str(tmp_path / "state"),
            "out": str(tmp_path / "sweep.csv"),
            **settings,
        }
        running.append(
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", SWEEP, json.dumps(given)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


def is_as_found(gpus):
    return gpus.table["cap_w"].tolist() == FOUND_W and (gpus.table["locked_clock_mhz"] == 0).all()


def wait_for(condition, timeout_s=10.0):
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "not in time"
        time.sleep(0.005)


def is_swept(gpus):
    """Deep in the sweep: a cap is at the lowest legal one, or the clocks are locked."""
    return gpus.table["cap_w"][0] == 200 or gpus.table["locked_clock_mhz"][0] > 0


def test_a_sweep_steps_measures_and_restores(gpus, sweep, tmp_path):
    """Every step is measured, no cap ever passes the one found, and everything is as it was afterwards."""
    process = sweep()
    highest = np.zeros(3)
    while process.poll() is None:
        highest = np.maximum(highest, gpus.table["cap_w"])
        time.sleep(0.002)
    out, err = process.communicate()
    assert process.returncode == 0, err
    rows = json.loads(out)
    # the node's caps step down from the lowest one found, so that all GPUs run alike
    assert [r[:2] for r in rows] == [[500, 1.0], [400, 1.0], [300, 1.0], [200, 1.0], [500, 0.8], [500, 0.5]]
    assert all(r[2] == pytest.approx(90.0) for r in rows)
    assert (highest <= FOUND_W).all() and is_as_found(gpus)
    assert (tmp_path / "sweep.csv").read_text().startswith("kernel,size,clock_frac,power_limit,time_per_epoch")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("when", ["first write", "deep"])
def test_a_killed_sweep_leaves_nothing_behind(gpus, sweep, number, when):
    """A signal at the first write or deep in the sweep: caps and clocks come back, after SIGKILL too."""
    process = sweep(seconds=0.4 if when == "first write" else 0.15)
    if when == "first write":
        wait_for(lambda: not is_as_found(gpus))
    else:
        wait_for(lambda: is_swept(gpus))
    process.send_signal(number)
    process.wait(10)
    assert process.returncode != 0
    wait_for(lambda: is_as_found(gpus))


def test_a_failing_load_restores(gpus, sweep):
    """An exception in the middle of a measurement ends the sweep with everything given back."""
    process = sweep(fails_at=9)
    _, err = process.communicate(timeout=20)
    assert process.returncode != 0 and "the load failed" in err
    assert is_as_found(gpus)


def test_a_hanging_load_is_restored_by_the_second_process(gpus, sweep):
    """When the sweep hangs, the restorer gives the settings back although the sweep still lives."""
    process = sweep(hangs_at=9, hang_limit_s=0.6)
    wait_for(lambda: not is_as_found(gpus))
    wait_for(lambda: is_as_found(gpus) and process.poll() is None)


def test_a_cap_that_somebody_else_sets_ends_the_sweep(gpus, sweep):
    """A measurement under another cap than the sweep's is not kept, and the settings are given back."""
    process = sweep(seconds=1.0)
    wait_for(lambda: gpus.table["cap_w"][2] == 400)
    gpus.table["cap_w"][1] = 640
    _, err = process.communicate(timeout=20)
    assert process.returncode != 0 and "changed during a step" in err
    assert is_as_found(gpus)


def test_both_dead_is_mended_by_the_next_sweep(gpus, sweep):
    """With sweep and restorer both killed, the record on disk lets the next sweep restore what was found."""
    process = sweep(seconds=0.4)
    wait_for(lambda: not is_as_found(gpus))
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as f:
        restorer = int(f.read().split()[0])
    os.kill(restorer, signal.SIGKILL)
    process.kill()
    process.wait(10)
    assert not is_as_found(gpus)
    again = sweep()
    _, err = again.communicate(timeout=20)
    assert again.returncode == 0, err
    assert "giving back" in err and is_as_found(gpus)


def test_a_cap_changed_since_is_left_alone(gpus, sweep):
    """After a crash of both, a cap that an operator set in the meantime is not raised by the next sweep."""
    process = sweep(seconds=0.4)
    wait_for(lambda: not is_as_found(gpus))
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as f:
        restorer = int(f.read().split()[0])
    os.kill(restorer, signal.SIGKILL)
    process.kill()
    process.wait(10)
    gpus.table["cap_w"][0] = 333
    again = sweep()
    _, err = again.communicate(timeout=20)
    assert again.returncode == 0, err
    assert gpus.table["cap_w"].tolist() == [333, *FOUND_W[1:]]


def test_a_refused_write_is_not_left_half_done(gpus, sweep):
    """Where one GPU forbids writes the sweep ends at once, and the others keep what they had."""
    gpus.table["is_forbidden"][2] = 1
    process = sweep()
    _, err = process.communicate(timeout=20)
    assert process.returncode != 0 and "root" in err
    assert is_as_found(gpus)


def test_busy_nodes_and_second_sweeps_are_refused(gpus, sweep):
    """A GPU with load, and a node that another process owns, are refused before anything is written."""
    gpus.table["util_frac"][1] = 0.6
    process = sweep()
    _, err = process.communicate(timeout=20)
    assert process.returncode != 0 and "60% busy" in err and "--force" in err
    assert gpus.setter_calls == 0
    gpus.table["util_frac"] = 0.0
    first = sweep(seconds=3.0)
    wait_for(lambda: gpus.setter_calls > 0)
    second = sweep()
    _, err = second.communicate(timeout=20)
    assert second.returncode != 0 and "another agent" in err
    first.terminate()
    first.wait(10)
    assert is_as_found(gpus)


def test_compute_processes_are_refused():
    """A node whose driver names compute processes has work, however idle it looks."""

    class Gpu:
        uuid = "GPU-1"

    with pytest.raises(BadInput, match="2 compute process"):
        refuse_busy([Gpu()], lambda gpu: 2)


def test_steps_stay_between_the_lowest_and_the_found():
    """Caps run from the found one down to the lowest legal one and never above."""
    assert cap_steps(200, 700, 6) == [700, 600, 500, 400, 300, 200]
    assert cap_steps(200, 200, 6) == [200] and cap_steps(300, 200, 6) == [200] and cap_steps(200, 700, 0) == []


def test_unknown_kinds_are_refused(tmp_path):
    """--sweep names caps, clocks or both."""
    with pytest.raises(BadInput, match="caps,clocks"):
        sweep_config("n", tmp_path, ["voltage"])
    assert sweep_config("n", tmp_path, ["caps"]).clocks == ()
    assert sweep_config("n", tmp_path, ["clocks"]).caps == 0
