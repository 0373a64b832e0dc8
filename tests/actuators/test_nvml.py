"""The NVML module over the emulated library."""

import math

from flyball.actuators.emulator.state import MISSING_EVENTS, MISSING_FIELD_VALUES


def test_a_reading_is_in_our_units(gpus, nvml_script):
    """Watts, joules, fractions and degrees; milliwatts do not leave the module."""
    gpus.set_power_w(431.25)
    gpus.table["power_now_w"] = 455.5
    gpus.table["util_frac"], gpus.table["sm_clock_mhz"] = 0.5, 990
    gpus.elapse(2.0)
    out = nvml_script("""
from dataclasses import asdict
gpus = nvml.open_gpus()
reading = nvml.read(gpus[0])
out = {**asdict(reading), "clock_frac": reading.clock_frac, "margin": nvml.thermal_margin_c(gpus[0])}
""")
    assert out["power_w"] == 455.5 and out["power_mean_w"] == 431.25 and out["energy_j"] == 911.0
    assert (out["cap_min_w"], out["cap_w"], out["cap_max_w"]) == (200, 700, 700)
    assert out["util_frac"] == 0.5 and out["clock_frac"] == 0.5 and out["margin"] == 57.0


def test_an_old_driver_gives_the_same_reading(gpus, nvml_script):
    """Without field values and events, power, caps and energy come from the single calls."""
    gpus.set_power_w(321.0)
    gpus.elapse(1.0)
    gpus.header["missing"] = MISSING_FIELD_VALUES | MISSING_EVENTS
    out = nvml_script("""
gpus = nvml.open_gpus()
watch = nvml.XidWatch(gpus)
reading = nvml.read(gpus[0])
out = [reading.power_w, reading.cap_w, reading.enforced_cap_w, reading.energy_j, watch.poll()]
out.append(str(reading.power_violation_s))
""")
    assert out == [321.0, 700, 700, 321.0, {}, "nan"]


def test_whole_watts_never_understate_a_cap(gpus, nvml_script):
    """A cap between two watts is read as the higher one, and the range is rounded inward."""
    gpus.table["cap_w"], gpus.table["cap_min_w"], gpus.table["cap_max_w"] = 310.5, 200.2, 699.9
    out = nvml_script("gpus = nvml.open_gpus(); r = nvml.read(gpus[0]); out = [r.cap_w, r.cap_min_w, r.cap_max_w]")
    assert out == [311, 201, 699]


def test_errors_map_to_what_is_done_about_them(gpus, nvml_script):
    """Range, permission and loss each have their class, and a refused write says how to be allowed."""
    gpus.table["is_forbidden"][1] = 1
    out = nvml_script("""
from flyball.actuators.emulator.state import EmulatedGpus
gpus = nvml.open_gpus()
plant = EmulatedGpus.open(sys.argv[1])
out = [code(nvml.set_cap_w, gpus[0], 100), code(nvml.set_cap_w, gpus[1], 300)]
try:
    nvml.set_cap_w(gpus[1], 300)
except GpuForbidden as error:
    out.append(str(error))
plant.table["is_lost"][2] = 1
out += [code(nvml.read, gpus[2]), code(nvml.set_cap_w, gpus[2], 300)]
nvml.close_gpus()
out.append(code(nvml.read, gpus[0]))
""")
    assert out[:2] == ["GpuOutOfRange", "GpuForbidden"] and "root" in out[2]
    assert out[3:] == ["GpuLost", "GpuLost", "NvmlUnavailable"]


def test_a_write_is_read_back(gpus, nvml_script):
    """A write that the hardware ignores is visible in the value returned."""
    gpus.table["is_write_ignored"][1] = 1
    out = nvml_script("gpus = nvml.open_gpus(); out = [nvml.set_cap_w(gpus[0], 400), nvml.set_cap_w(gpus[1], 400)]")
    assert out == [400, 700]


def test_a_tighter_limit_of_another_owner_is_seen(gpus, nvml_script):
    """A BMC's lower limit shows as the enforced one and is marked foreign."""
    gpus.table["out_of_band_w"][0] = 350
    out = nvml_script("""
readings = [nvml.read(g) for g in nvml.open_gpus()[:2]]
out = [[r.cap_w, r.enforced_cap_w, r.is_foreign_limit] for r in readings]
""")
    assert out == [[700, 350, True], [700, 700, False]]


def test_xids_are_delivered_once_and_only_from_now_on(gpus, nvml_script):
    """Events from before the watch are not delivered, later ones exactly once, a lost GPU's too."""
    gpus.raise_xid(0, 31)
    out = nvml_script("""
from flyball.actuators.emulator.state import EmulatedGpus
gpus = nvml.open_gpus()
watch = nvml.XidWatch(gpus)
plant = EmulatedGpus.open(sys.argv[1])
out = [watch.poll()]
plant.raise_xid(3, 48)
plant.raise_xid(3, 79, is_lost=True)
out += [watch.poll(), watch.poll(), gpus[3].uuid]
watch.close()
""")
    assert out[0] == {} and out[1] == {out[3]: [48, 79]} and out[2] == {}


def test_a_gpu_lost_before_the_start_is_listed_at_its_siblings_maximum(gpus, nvml_script):
    """A GPU that cannot be reached at start is counted, not forgotten."""
    gpus.table["is_lost"][5] = 1
    out = nvml_script("""
gpus = nvml.open_gpus()
out = [len(gpus), gpus[-1].uuid, gpus[-1].cap_max_w, code(nvml.read, gpus[-1])]
""")
    assert out == [8, "unreachable-5", 700, "GpuLost"]


def test_clock_ceilings_lock_and_unlock(gpus, nvml_script):
    """A share of the maximum locks the SM clock; 1 unlocks it."""
    nvml_script("""
gpus = nvml.open_gpus()
for g in gpus: nvml.set_clock_ceiling(g, 0.5)
nvml.set_clock_ceiling(gpus[0], 1.0)
out = None
""")
    assert gpus.table["locked_clock_mhz"].tolist() == [0.0] + [990.0] * 7


def test_reading_a_node_is_cheap(nvml_script):
    """Eight GPUs are read in well under the 3 ms of CPU that a tick may cost."""
    out = nvml_script("""
import time
gpus = nvml.open_gpus()
watch = nvml.XidWatch(gpus)
best = 1.0
for _ in range(20):
    start = time.process_time()
    watch.poll()
    for g in gpus: nvml.read(g)
    best = min(best, time.process_time() - start)
out = best
""")
    assert math.isfinite(out) and out < 0.003
