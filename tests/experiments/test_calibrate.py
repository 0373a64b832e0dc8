"""`flyball calibrate`: one verb that refits, watches or sweeps, and says what it wrote."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from flyball.actuators.emulator.state import EmulatedGpus
from flyball.cli import main
from flyball.experiments.calibrate import fleet_inputs
from flyball.experiments.calibrate.cap_response import Device, Workload, predict
from flyball.experiments.calibrate.fitted_file import write_toml
from flyball.experiments.calibrate.gpu_load import Kernel, TorchLoad
from flyball.experiments.calibrate.watch import Sample, power_ranges
from flyball.experiments.calibrate.watch_report import product_of

DATA = Path(os.environ.get("FLYBALL_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))


def run(*args):
    return CliRunner().invoke(main, ["calibrate", *map(str, args)])


def write_sweeps(path):
    device = Device(0.7, 0.6, 0.5, 0.5, 0.25, 50.0, 40.0)
    lines = ["network,batch_size,power_limit,time_per_epoch,average_power"]
    for i, (compute, dynamic_w) in enumerate([(0.9, 280), (0.6, 240), (0.5, 220), (0.7, 190)]):
        for cap_w in (150, 180, 210, 240, 270, 300):
            rate, draw_w = predict(device, Workload(compute, dynamic_w, 0.1), float(cap_w))
            lines.append(f"net{i},{i},{cap_w},{100 / rate:.6f},{draw_w:.4f}")
    path.write_text("\n".join(lines))


def test_own_sweeps_are_fitted_and_written(tmp_path):
    """A folder with one's own CSV gives a TOML of shapes with source and error, and findings."""
    write_sweeps(tmp_path / "mine.csv")
    done = run("--data", tmp_path, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    record = tomllib.loads((tmp_path / "out/cap_response.toml").read_text())["cap_response"]["mine"]
    assert record["source"] == "mine.csv" and record["fit_rate_mape"] < 0.03
    assert 0.55 < record["v_min"] < 0.85 and record["workloads"] == 4
    assert any(f["check"].endswith("held-out caps") and f["passed"] for f in result["findings"])
    assert any("experiments.fit" in s or "mlenergy" in s for s in result["skipped"])


@pytest.mark.parametrize(
    "args, says",
    [
        ((), "exactly one"),
        (("--gpu", "--sweep", "caps"), "exactly one"),
        (("--data", "/nowhere/at/all"), "no such folder"),
        (("--sweep", "voltage"), "caps,clocks"),
    ],
)
def test_bad_arguments_exit_2_with_one_line(args, says):
    """What a user can mend is one line and exit code 2."""
    done = run(*args)
    assert done.exit_code == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_empty_folder_is_refused(tmp_path):
    """A folder without measurements says what one looks like."""
    done = run("--data", tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 2 and "power_limit" in done.stderr


def test_help_shows_examples():
    """--help explains the three uses and the promise to restore."""
    out = run("--help").output
    assert "flyball calibrate --data" in out and "--sweep caps,clocks" in out and "SIGKILL" in out


def test_watching_never_writes_to_a_device(tmp_path):
    """--gpu on emulated GPUs reports samples and a range of the idle draw, and calls no setter."""
    gpus = EmulatedGpus.create(tmp_path / "gpus.bin", ["H100-SXM"] * 2)
    gpus.set_power_w(118.0)
    gpus.table["util_frac"] = 0.0
    env = {**os.environ, "FLYBALL_NVML_STATE": str(gpus.path)}
    command = [
        sys.executable,
        "-m",
        "flyball",
        "calibrate",
        "--gpu",
        "--nvml",
        "emulated",
        "--seconds",
        "0.5",
        "--json",
    ]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["sku"] == "H100-SXM" and result["pli_w_range"] == pytest.approx([118.0, 118.0])
    assert gpus.setter_calls == 0 and (tmp_path / "gpu.toml").is_file()


def test_ranges_follow_the_power_equation():
    """Samples that the equation made give its weights back; samples that a cap holds are not used."""

    def sample(name, size, rate, power_w, cap_w=700):
        return Sample(Kernel(name, size), 5.0, rate, power_w, 1.0, 0.0 if name == "idle" else 1.0, 50.0, cap_w)

    samples = [
        sample("idle", 0, 1.0, 120.0),
        sample("copy", 64, 0.81e12, 120 + 370 * 0.9),
        sample("matmul", 4096, 0.4e15, 120 + 800 * 0.4),
        sample("matmul", 8192, 0.7e15, 699.0),
    ]
    found = power_ranges(samples, 1e15, 1e12)
    assert found["pli_w"] == [120.0, 120.0] and found["am_w"] == pytest.approx([370.0, 370.0])
    assert found["ac_w"][0] < 800 <= found["ac_w"][1] + 1e-6
    assert power_ranges(samples[1:], 0.0, 0.0) == {}
    assert product_of("NVIDIA H100 80GB HBM3") == "H100-SXM" and product_of("Radeon") is None


def test_the_built_in_load_counts_its_work():
    """Matmul and copy do whole launches for about the time asked, and count flops and bytes."""
    torch = pytest.importorskip("torch")
    kernels = (Kernel("idle", 0), Kernel("copy", 1), Kernel("matmul", 32))
    load = TorchLoad(torch, ["cpu"], kernels)
    for kernel, unit in zip(kernels, (None, 2 << 20, 2 * 32**3), strict=True):
        done = load.run(kernel, 0.02)
        assert done > 0 and (unit is None or done % (8 * unit) == 0)


def test_fitted_toml_reads_back(tmp_path):
    """Every kind of value survives, NaN is left out, and odd names are quoted."""
    table = {"x": 1.25, "n": 3, "s": 'a "quote"', "l": [1.0, 2.5], "b": True, "none": float("nan"), "odd name": 1.0}
    write_toml({"a/b c": table}, tmp_path / "f.toml", "why")
    back = tomllib.loads((tmp_path / "f.toml").read_text())["a"]["b c"]
    del table["none"]
    assert back == table


@pytest.mark.skipif(not (DATA / "gpu_failures").is_dir(), reason="no measured data: set FLYBALL_DATA")
def test_measured_inputs_agree_with_the_plant():
    """Fault rate, KV transfer of H100 and load times are within their targets, and every table has a source."""
    rows, tables = {}, {}
    for reader in (fleet_inputs.faults, fleet_inputs.kv_transfer, fleet_inputs.model_load, fleet_inputs.inlet):
        found, findings = reader(DATA)
        tables |= found
        rows |= {(r["check"], r["sku"]): r for r in findings}
    assert rows["fault rate", "H100-SXM"]["passed"]
    assert rows["KV transfer between nodes", "H100-SXM"]["passed"]
    assert rows["role change: model load", "any"]["passed"]
    assert all(t["source"] for t in tables.values())
    summer = tables["inlet"]["summer_economiser_c"]
    assert np.all(np.diff(summer) >= 0) and summer[0] >= 20


def test_the_packaged_inputs_name_their_sources():
    """Every table of envs/profiles/fleet.toml says where it is from, and the plant's own numbers lie near it."""
    from flyball.envs.hardware import PROFILES
    from flyball.experiments.calibrate.fleet_inputs import FAULTS_PER_GPU_HOUR

    tables = tomllib.loads((PROFILES / "fleet.toml").read_text())
    for name in ("cap_response", "kv_transfer", "curtailment"):
        assert all(t["source"] for t in tables.pop(name).values())
    assert all(t["source"] for t in tables.values())
    assert tables["faults"]["faults_per_gpu_hour"] == pytest.approx(FAULTS_PER_GPU_HOUR, rel=0.1)


def test_a_folder_with_other_data_says_which_column_is_missing(tmp_path):
    """A measured file of another shape is the user's to mend."""
    from flyball.fleet.errors import BadInput

    (tmp_path / "gpu_failures").mkdir()
    (tmp_path / "gpu_failures/llama3_405b_54d_16384xH100.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadInput, match="category"):
        fleet_inputs.check_fleet_inputs(tmp_path)
