"""The emulated NVML library under the real pynvml."""

import json
import subprocess
import sys

import pytest

from flyball.actuators.emulator import build
from flyball.actuators.emulator.load import load_emulated
from flyball.actuators.emulator.state import (
    GPU,
    HEADER,
    MISSING_EVENTS,
    MISSING_FIELD_VALUES,
    MISSING_POWER_V2,
    VERSION,
    EmulatedGpus,
)
from flyball.actuators.errors import EmulatorError
from flyball.fleet.skus import SKUS


def test_c_and_numpy_declare_the_same_records():
    """Sizes and offsets of the C structs are those of the NumPy dtypes, field by field."""
    script = """
import ctypes, json, sys
library = ctypes.CDLL(sys.argv[1])
library.flyball_emulator_layout.restype = ctypes.c_size_t
out = (ctypes.c_uint64 * 256)()
n = library.flyball_emulator_layout(out, ctypes.c_size_t(256))
print(json.dumps(list(out[:n])))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(build.library_path())], capture_output=True, text=True, check=True
    )
    layout = json.loads(done.stdout)
    offsets = [GPU.fields[name][1] for name in GPU.names]
    header = [HEADER.fields[name][1] for name in ("missing", "init_calls", "driver_version")]
    assert layout == [VERSION, HEADER.itemsize, GPU.itemsize, *header, *offsets]


def test_every_sku_has_an_emulated_product(tmp_path):
    """Every product that a site may name can be emulated, at its own cap range."""
    for sku in SKUS.values():
        table = EmulatedGpus.create(tmp_path / sku.name, [sku.name]).table
        assert table["cap_min_w"][0] == sku.cap_min_w and table["cap_max_w"][0] == sku.cap_max_w


def test_the_library_is_compiled_once(tmp_path):
    """A second request returns the first one's file, and another source gets another file."""
    first = build.library_path(tmp_path)
    made_at = first.stat().st_mtime_ns
    assert build.library_path(tmp_path) == first and first.stat().st_mtime_ns == made_at
    assert [p.name for p in first.parent.iterdir()] == [build.SONAME]


def test_a_missing_compiler_names_the_package_to_install(tmp_path, monkeypatch):
    """Without a C compiler the message says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorError, match="apt install gcc"):
        build.library_path(tmp_path / "empty")


def test_a_wrong_state_file_is_refused(tmp_path, monkeypatch):
    """No state file, a missing one and one of another kind each say what to do."""
    monkeypatch.delenv("FLYBALL_NVML_STATE", raising=False)
    with pytest.raises(EmulatorError, match="FLYBALL_NVML_STATE"):
        load_emulated()
    with pytest.raises(EmulatorError, match="start the emulation first"):
        load_emulated(tmp_path / "none")
    (tmp_path / "text").write_text("not GPUs " * 100)
    with pytest.raises(EmulatorError, match="anew"):
        EmulatedGpus.open(tmp_path / "text")


def test_real_pynvml_reads_what_the_plant_writes(gpus, nvml_script):
    """Identity, power, temperature, clocks, load, energy, memory, ECC and margins arrive through pynvml."""
    gpus.set_power_w(431.25)
    gpus.table["power_now_w"] = 455.5
    gpus.table["temp_c"][2] = 61
    gpus.table["util_frac"][2] = 0.75
    gpus.table["sm_clock_mhz"][2] = 1200
    gpus.table["ecc_uncorrected"][2] = 3
    gpus.elapse(10.0)
    out = nvml_script("""
pynvml.nvmlInit()
h = pynvml.nvmlDeviceGetHandleByIndex(2)
by_uuid = pynvml.nvmlDeviceGetHandleByUUID(pynvml.nvmlDeviceGetUUID(h))
by_bus = pynvml.nvmlDeviceGetHandleByPciBusId(pynvml.nvmlDeviceGetPciInfo(h).busId)
fields = pynvml.nvmlDeviceGetFieldValues(h, [185, 186, 187, 188, 189, 190, 192, 83, 230, 4, 194, 9999])
out = {
    "count": pynvml.nvmlDeviceGetCount(), "uuid": pynvml.nvmlDeviceGetUUID(h),
    "same": pynvml.nvmlDeviceGetIndex(by_uuid) == pynvml.nvmlDeviceGetIndex(by_bus) == 2,
    "name": pynvml.nvmlDeviceGetName(h), "driver": pynvml.nvmlSystemGetDriverVersion(),
    "power": pynvml.nvmlDeviceGetPowerUsage(h), "temp": pynvml.nvmlDeviceGetTemperatureV(h, 0),
    "old_temp": pynvml.nvmlDeviceGetTemperature(h, 0), "clock": pynvml.nvmlDeviceGetClockInfo(h, 1),
    "util": pynvml.nvmlDeviceGetUtilizationRates(h).gpu, "total": pynvml.nvmlDeviceGetMemoryInfo(h).total,
    "total_v2": pynvml.nvmlDeviceGetMemoryInfo(h, pynvml.nvmlMemory_v2).total,
    "energy": pynvml.nvmlDeviceGetTotalEnergyConsumption(h),
    "ecc": pynvml.nvmlDeviceGetTotalEccErrors(h, 1, 0),
    "limits": pynvml.nvmlDeviceGetPowerManagementLimitConstraints(h), "mig": pynvml.nvmlDeviceGetMigMode(h),
    "threshold": code(pynvml.nvmlDeviceGetTemperatureThreshold, h, 1),
    "margin": pynvml.nvmlDeviceGetMarginTemperature(h), "persistence": pynvml.nvmlDeviceGetPersistenceMode(h),
    "fields": [f.value.uiVal for f in fields[:7]], "field_energy": fields[7].value.ullVal,
    "field_margin": fields[10].value.siVal, "unknown_field": fields[11].nvmlReturn,
}
pynvml.nvmlShutdown()
""")
    assert out["count"] == 8 and out["uuid"] == gpus.table["uuid"][2].decode() and out["same"]
    assert out["name"] == "NVIDIA H100 80GB HBM3" and out["driver"] == "580.95.05"
    assert out["power"] == 431250 and out["temp"] == out["old_temp"] == 61 and out["clock"] == 1200
    assert out["util"] == 75 and out["total"] == out["total_v2"] == 80 * 10**9
    assert out["energy"] == out["field_energy"] == 4555000 and out["ecc"] == 3
    assert out["limits"] == [200000, 700000] and out["mig"] == [0, 0] and out["persistence"] == 1
    assert out["threshold"] == 3 and out["margin"] == out["field_margin"] == 26
    assert out["fields"] == [431250, 455500, 200000, 700000, 700000, 700000, 700000]
    assert out["unknown_field"] == 3


def test_caps_are_checked_set_and_counted(gpus, nvml_script):
    """A legal cap is in force and read back, an illegal one is refused, and every try is counted."""
    out = nvml_script("""
pynvml.nvmlInit()
h = pynvml.nvmlDeviceGetHandleByIndex(0)
out = [code(pynvml.nvmlDeviceSetPowerManagementLimit, h, mw) for mw in (450000, 199999, 700001)]
out.append(pynvml.nvmlDeviceGetPowerManagementLimit(h))
pynvml.nvmlDeviceSetGpuLockedClocks(h, 0, 1200)
""")
    assert out == [0, 2, 2, 450000]
    assert gpus.caps_w[0] == 450 and gpus.table["set_power_calls"][0] == 3 and gpus.setter_calls == 4
    assert gpus.table["locked_clock_mhz"][0] == 1200


def test_faults_answer_as_the_driver_does(gpus, nvml_script):
    """No permission, a lost GPU and a write that does nothing look as they do on a real driver."""
    gpus.table["is_forbidden"][0] = 1
    gpus.table["is_lost"][1] = 1
    gpus.table["is_write_ignored"][2] = 1
    out = nvml_script("""
pynvml.nvmlInit()
h = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in (0, 2)]
out = {
    "forbidden": code(pynvml.nvmlDeviceSetPowerManagementLimit, h[0], 450000),
    "swallowed": code(pynvml.nvmlDeviceSetPowerManagementLimit_v2, h[0], 0, 450000),
    "lost": code(pynvml.nvmlDeviceGetHandleByIndex, 1),
    "ignored": code(pynvml.nvmlDeviceSetPowerManagementLimit, h[1], 450000),
}
""")
    assert out == {"forbidden": 4, "swallowed": 0, "lost": 15, "ignored": 0}
    assert (gpus.caps_w == 700).all() and gpus.setter_calls == 3


def test_an_old_driver_lacks_functions(gpus, nvml_script):
    """Functions that an old driver does not have answer FunctionNotFound."""
    gpus.header["missing"] = MISSING_FIELD_VALUES | MISSING_EVENTS | MISSING_POWER_V2
    out = nvml_script("""
pynvml.nvmlInit()
h = pynvml.nvmlDeviceGetHandleByIndex(0)
out = [code(pynvml.nvmlDeviceGetFieldValues, h, [186]), code(pynvml.nvmlEventSetCreate),
       code(pynvml.nvmlDeviceGetPowerUsage, h)]
""")
    assert out == [13, 13, 0]


def test_without_a_state_file_there_is_no_driver(tmp_path):
    """The library says that no driver is loaded when it finds no state."""
    script = "import pynvml, sys, ctypes\nctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)\npynvml.nvmlInit()"
    done = subprocess.run(
        [sys.executable, "-c", script, str(build.library_path())],
        capture_output=True,
        text=True,
        env={"FLYBALL_NVML_STATE": str(tmp_path / "none")},
    )
    assert "Driver Not Loaded" in done.stderr
