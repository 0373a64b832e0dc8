"""The emulated GPUs of one node: the table that a simulator or a test shares with the NVML library."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...fleet.skus import SKUS
from ..errors import EmulatorError

MAGIC = int.from_bytes(b"FLYVML01", "little")
VERSION = 1
EVENTS = 16
"""Events kept per GPU; older ones are lost, as in a driver's queue."""

XID_CRITICAL_ERROR = 0x8  # nvmlEventTypeXidCriticalError
SW_POWER_CAP = 0x4  # nvmlClocksEventReasonSwPowerCap

MISSING_FIELD_VALUES, MISSING_EVENTS, MISSING_MARGIN_TEMPERATURE, MISSING_POWER_V2 = 1, 2, 4, 8
"""Bits of the header's `missing`: functions that answer FunctionNotFound, as with an old driver."""

HEADER = np.dtype(
    [
        ("magic", "u8"),
        ("version", "u8"),
        ("gpus", "u8"),
        ("missing", "u8"),
        ("init_calls", "u8"),
        ("driver_version", "S32"),
    ]
)
GPU = np.dtype(
    [
        # written by the plant
        ("power_w", "f8"),  # mean of the last second
        ("power_now_w", "f8"),  # instantaneous
        ("energy_j", "f8"),
        ("temp_c", "f8"),
        ("mem_temp_c", "f8"),
        ("util_frac", "f8"),
        ("mem_util_frac", "f8"),
        ("sm_clock_mhz", "f8"),
        ("sm_clock_max_mhz", "f8"),
        ("mem_clock_mhz", "f8"),
        ("mem_clock_max_mhz", "f8"),
        ("mem_total_bytes", "f8"),
        ("mem_used_bytes", "f8"),
        ("slowdown_c", "f8"),
        ("shutdown_c", "f8"),
        ("power_violation_s", "f8"),
        ("thermal_violation_s", "f8"),
        ("hw_thermal_violation_s", "f8"),
        ("brake_violation_s", "f8"),
        ("event_reasons", "u8"),  # beyond those that follow from power and clock
        ("ecc_corrected", "u8"),
        ("ecc_uncorrected", "u8"),
        ("recovery_action", "u8"),
        # limits; cap_w is written through NVML
        ("cap_w", "f8"),
        ("cap_min_w", "f8"),
        ("cap_max_w", "f8"),
        ("cap_default_w", "f8"),
        ("out_of_band_w", "f8"),  # a BMC's limit; the tightest wins
        ("locked_clock_mhz", "f8"),  # ceiling, 0 for none
        ("has_persistence", "u8"),
        ("has_mig", "u8"),
        # faults
        ("is_lost", "u8"),
        ("is_forbidden", "u8"),
        ("is_write_ignored", "u8"),
        ("has_thresholds", "u8"),  # 0: margins instead of thresholds, as on newer parts
        # events
        ("event_head", "u8"),
        ("event_type", "u8", (EVENTS,)),
        ("event_data", "u8", (EVENTS,)),
        # calls that would write, counted whether they succeed or not
        ("set_power_calls", "u8"),
        ("set_clock_calls", "u8"),
        ("set_mode_calls", "u8"),
        # identity
        ("uuid", "S48"),
        ("name", "S64"),
        ("serial", "S32"),
        ("bus_id", "S32"),
    ]
)
"""One record per GPU; the same records are a struct in nvml_emulator.c, and a test compares the two."""


@dataclass(frozen=True)
class Product:
    """What an emulated product reports beside its cap range (`fleet.skus`)."""

    name: str
    sm_clock_max_mhz: int
    mem_clock_max_mhz: int
    mem_gb: int


# Boost clocks and memory: the products' data sheets (A100 80GB, H100 SXM, H200 SXM, HGX B200, GB200 NVL72);
# clocks of B300 and GB300 are their forerunners'; memory clocks as nvidia-smi prints them on H100 and A100, taken over
# for the newer parts.
PRODUCTS = {
    "A100-SXM": Product("NVIDIA A100-SXM4-80GB", 1410, 1593, 80),
    "H100-SXM": Product("NVIDIA H100 80GB HBM3", 1980, 2619, 80),
    "H200-SXM": Product("NVIDIA H200", 1980, 3201, 141),
    "B200-SXM": Product("NVIDIA B200", 1965, 3996, 180),
    "B300-SXM": Product("NVIDIA B300", 1965, 3996, 288),
    "GB200-NVL72": Product("NVIDIA GB200", 2062, 3996, 186),
    "GB300-NVL72": Product("NVIDIA GB300", 2062, 3996, 288),
}


class EmulatedGpus:
    """The hardware's side of one node's emulated GPUs.

    `table` is a view of the shared records (`GPU`, shape (G,)): whoever plays the hardware writes
    power, temperature and clocks there, whole columns at a time, and reads `cap_w`.

    Attributes:
        path: The state file; `FLYBALL_NVML_STATE` names it to the library.
        header: `HEADER`, shape (1,), a view of the file.
        table: `GPU`, shape (G,), a view of the file.
    """

    def __init__(self, path: Path, header: np.ndarray, table: np.ndarray):
        self.path, self.header, self.table = path, header, table

    @classmethod
    def create(cls, path: Path | str, gpus: Sequence[str], node: str = "node") -> "EmulatedGpus":
        """Write a new state file with idle GPUs at their default caps.

        Args:
            path: The file to make; an existing one is replaced.
            gpus: One SKU name of `fleet.skus.SKUS` per GPU.
            node: Name from which UUIDs and serial numbers are derived: the same name gives the same GPUs.

        Raises:
            EmulatorError: for a SKU that has no emulated product.
        """
        path = Path(path)
        header, table = np.zeros(1, HEADER), np.zeros(len(gpus), GPU)
        header["magic"], header["version"], header["gpus"] = MAGIC, VERSION, len(gpus)
        header["driver_version"] = b"580.95.05"
        for i, (row, sku_name) in enumerate(zip(table, gpus, strict=True)):
            if sku_name not in PRODUCTS:
                raise EmulatorError(f"no emulated GPU {sku_name!r}; use one of {', '.join(sorted(PRODUCTS))}")
            _fill(row, sku_name, node, i)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.{os.getpid()}")
        scratch.write_bytes(header.tobytes() + table.tobytes())
        os.replace(scratch, path)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> "EmulatedGpus":
        """Map an existing state file, for reading and writing.

        Raises:
            EmulatorError: if there is none, or another version of Flyball made it.
        """
        path = Path(path)
        if not path.is_file():
            raise EmulatorError(f"no emulated GPUs at {path}; make them with EmulatedGpus.create")
        if path.stat().st_size < HEADER.itemsize:
            raise EmulatorError(f"{path} is not a file of emulated GPUs; make it anew with EmulatedGpus.create")
        raw = np.memmap(path, np.uint8, "r+")
        header = raw[: HEADER.itemsize].view(HEADER)
        count = int(header["gpus"][0])
        size = HEADER.itemsize + count * GPU.itemsize
        if header["magic"][0] != MAGIC or header["version"][0] != VERSION or len(raw) < size:
            raise EmulatorError(f"{path} was made by another version; make it anew with EmulatedGpus.create")
        return cls(path, header, raw[HEADER.itemsize : size].view(GPU))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def caps_w(self) -> np.ndarray:
        """Caps in force, shape (G,), watts: the tighter of NVML's and the out-of-band one."""
        return np.minimum(self.table["cap_w"], self.table["out_of_band_w"])

    @property
    def setter_calls(self) -> int:
        """Calls of any NVML setter since the file was made, by any process, refused ones included."""
        return sum(int(self.table[n].sum()) for n in ("set_power_calls", "set_clock_calls", "set_mode_calls"))

    def set_power_w(self, power_w) -> None:
        """Set instantaneous and mean power; a number or one per GPU, watts."""
        self.table["power_w"] = power_w
        self.table["power_now_w"] = power_w

    def raise_xid(self, gpu: int, xid: int, is_lost: bool = False) -> None:
        """Queue a critical XID event on one GPU.

        Args:
            gpu: Index in `table`.
            xid: The driver's code, for instance 48 (double-bit ECC) or 79 (fell off the bus).
            is_lost: Whether every later call on this GPU says that it is lost, as after XID 79.
        """
        row = self.table[gpu]
        slot = int(row["event_head"]) % EVENTS
        row["event_type"][slot] = XID_CRITICAL_ERROR
        row["event_data"][slot] = xid
        if is_lost:
            row["is_lost"] = 1
        # last, so that a reader that sees the new head sees the event
        row["event_head"] += 1

    def elapse(self, dt_s: float) -> None:
        """Integrate energy and the power-violation time over a step in which power and clocks held.

        Args:
            dt_s: Length of the step, seconds.
        """
        t = self.table
        t["energy_j"] += t["power_now_w"] * dt_s
        is_capped = (t["power_now_w"] >= 0.97 * self.caps_w) & (t["sm_clock_mhz"] < t["sm_clock_max_mhz"])
        t["power_violation_s"] += np.where(is_capped, dt_s, 0.0)

    def reboot(self) -> None:
        """What a host's reboot does: caps at the driver's default, clocks unlocked, lost GPUs back."""
        t = self.table
        t["cap_w"] = t["cap_default_w"]
        for name in ("locked_clock_mhz", "is_lost", "energy_j", "power_violation_s", "recovery_action"):
            t[name] = 0


def _fill(row, sku_name: str, node: str, index: int) -> None:
    sku, product = SKUS[sku_name], PRODUCTS[sku_name]
    identity = uuid.uuid5(uuid.NAMESPACE_DNS, f"{node}.{index}.emulated.flyball")
    row["power_w"] = row["power_now_w"] = round(sku.parked_max_w / 1.15)  # fleet.skus rounds idle up by 15 %
    row["temp_c"], row["mem_temp_c"] = 30.0, 35.0
    row["sm_clock_mhz"] = row["sm_clock_max_mhz"] = product.sm_clock_max_mhz
    row["mem_clock_mhz"] = row["mem_clock_max_mhz"] = product.mem_clock_max_mhz
    row["mem_total_bytes"] = product.mem_gb * 1e9
    row["slowdown_c"], row["shutdown_c"] = 87.0, 92.0  # nvidia-smi -q -d TEMPERATURE on H100
    row["cap_min_w"], row["cap_max_w"] = sku.cap_min_w, sku.cap_max_w
    row["cap_w"] = row["cap_default_w"] = row["out_of_band_w"] = sku.cap_max_w
    row["has_persistence"] = 1
    row["has_thresholds"] = sku_name == "A100-SXM"  # Hopper and later report margins
    row["uuid"] = f"GPU-{identity}".encode()
    row["name"] = product.name.encode()
    row["serial"] = str(identity.int % 10**13).encode()
    row["bus_id"] = f"00000000:{0x10 + index:02X}:00.0".encode()
