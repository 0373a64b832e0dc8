"""NVML, thinly: the GPUs of this node, their readings, and the few writes that a governor needs.

Milliwatts and millijoules exist only in this module. Caps in force and lowest legal caps are rounded up and
highest legal caps down, so that whole watts never understate what may be drawn nor ask for what is refused.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pynvml

from .errors import (
    GpuError,
    GpuForbidden,
    GpuInconclusive,
    GpuLost,
    GpuOutOfRange,
    GpuUnsupported,
    NvmlUnavailable,
)

NOT_RUNNING = (
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
)
ERRORS = {
    **dict.fromkeys(NOT_RUNNING, NvmlUnavailable),
    pynvml.NVML_ERROR_GPU_IS_LOST: GpuLost,
    pynvml.NVML_ERROR_RESET_REQUIRED: GpuLost,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: GpuLost,
    pynvml.NVML_ERROR_NO_PERMISSION: GpuForbidden,
    pynvml.NVML_ERROR_NOT_SUPPORTED: GpuUnsupported,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: GpuUnsupported,
    pynvml.NVML_ERROR_DEPRECATED: GpuUnsupported,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: GpuUnsupported,
    pynvml.NVML_ERROR_INVALID_ARGUMENT: GpuOutOfRange,
}
"""NVML's codes by what is done about them; every other code is inconclusive."""

SW_POWER_CAP = 0x4
"""Clock event reason: the power cap holds the clocks down (nvmlClocksEventReasonSwPowerCap)."""

# Field ids: nvml.h, NVML_FI_DEV_*; one call reads them all.
_POWER_AVERAGE, _POWER_NOW, _ENERGY, _POWER_VIOLATION, _THERMAL_VIOLATION = 185, 186, 83, 74, 75
_ECC_CORRECTED, _ECC_UNCORRECTED, _RECOVERY, _CAP, _ENFORCED = 3, 4, 230, 192, 190
_FIELDS = (
    _POWER_AVERAGE,
    _POWER_NOW,
    _ENERGY,
    _POWER_VIOLATION,
    _THERMAL_VIOLATION,
    _ECC_CORRECTED,
    _ECC_UNCORRECTED,
    _RECOVERY,
    _CAP,
    _ENFORCED,
)
_VALUE_MEMBERS = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal"}  # nvmlValueType_t


@dataclass(frozen=True)
class Gpu:
    """One GPU as this process can reach it; key everything by `uuid`, an index moves when a GPU is lost.

    Attributes:
        handle: NVML's handle; None for a GPU that was already lost when this process started, whose uuid is
            then a placeholder and whose range is taken from its siblings.
    """

    uuid: str
    name: str
    serial: str
    cap_min_w: int
    cap_max_w: int
    cap_default_w: int
    sm_clock_max_mhz: int
    handle: object = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one instant; NaN or None is a reading that this product or driver does not give.

    Attributes:
        power_w: Instantaneous where the driver offers it, else the mean of the last second.
        power_mean_w: Mean of the last second (Ampere and later).
        cap_w: The limit set through NVML, whole watts rounded up.
        enforced_cap_w: The tightest of VBIOS, in-band and out-of-band limits.
        power_violation_s: Time since boot in which the power cap held the clocks down.
        event_reasons: NVML's clock event reasons, a bit mask.
        recovery_action: NVML's field 230: 0 none, 1 GPU reset, 2 node reboot, 3 drain, 4 drain and reset.
        xids: Codes of the XID events since the last reading.
    """

    uuid: str
    power_w: float
    power_mean_w: float
    cap_w: int
    enforced_cap_w: int
    cap_min_w: int
    cap_max_w: int
    cap_default_w: int
    temp_c: float
    sm_clock_mhz: float
    sm_clock_max_mhz: int
    util_frac: float
    mem_util_frac: float
    energy_j: float
    power_violation_s: float
    thermal_violation_s: float
    event_reasons: int
    ecc_corrected: int
    ecc_uncorrected: int
    recovery_action: int
    xids: tuple[int, ...] = ()

    @property
    def is_capped(self) -> bool:
        """Whether the driver says that the power cap holds the clocks down now."""
        return bool(self.event_reasons & SW_POWER_CAP)

    @property
    def clock_frac(self) -> float:
        return self.sm_clock_mhz / self.sm_clock_max_mhz if self.sm_clock_max_mhz else math.nan

    @property
    def is_foreign_limit(self) -> bool:
        """Whether something else than NVML limits this GPU more tightly; it is reported, never fought."""
        return self.enforced_cap_w < self.cap_w


def _call(function: Callable, *arguments):
    """Call NVML and translate its error; the single place where codes become classes."""
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        code = error.value
        kind = ERRORS.get(code, GpuInconclusive)
        raise kind(f"{function.__name__}: {error}{_HINTS.get(kind, '')}", code) from None


_HINTS = {
    NvmlUnavailable: "; check that the NVIDIA driver is loaded and libnvidia-ml.so.1 can be found",
    GpuForbidden: "; run the agent as root or with CAP_SYS_ADMIN",
}


def _or(missing, function: Callable, *arguments):
    """The call's value, or `missing` where the product or driver has no such call."""
    try:
        return _call(function, *arguments)
    except GpuUnsupported:
        return missing


def _ceil_w(milliwatts: int) -> int:
    return -(-milliwatts // 1000)


def open_gpus() -> list[Gpu]:
    """Initialise NVML in this process and list its GPUs, lost ones included.

    Raises:
        NvmlUnavailable: if there is no library or driver.
    """
    _call(pynvml.nvmlInit)
    gpus: list[Gpu] = []
    lost = []
    for index in range(_call(pynvml.nvmlDeviceGetCount)):
        try:
            gpus.append(_describe(_call(pynvml.nvmlDeviceGetHandleByIndex, index)))
        except (GpuLost, GpuInconclusive):
            lost.append(index)
    largest_w = max((g.cap_max_w for g in gpus), default=0)
    smallest_w = min((g.cap_min_w for g in gpus), default=0)
    return gpus + [
        Gpu(f"unreachable-{index}", "unreachable", "", smallest_w, largest_w, largest_w, 0) for index in lost
    ]


def close_gpus() -> None:
    """Shut NVML down in this process; caps stay as they are."""
    try:
        _call(pynvml.nvmlShutdown)
    except NvmlUnavailable:
        return


def _describe(handle) -> Gpu:
    low_mw, high_mw = _call(pynvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
    default_mw = _or(high_mw, pynvml.nvmlDeviceGetPowerManagementDefaultLimit, handle)
    return Gpu(
        uuid=_call(pynvml.nvmlDeviceGetUUID, handle),
        name=_call(pynvml.nvmlDeviceGetName, handle),
        serial=_or("", pynvml.nvmlDeviceGetSerial, handle),
        cap_min_w=_ceil_w(low_mw),
        cap_max_w=high_mw // 1000,
        cap_default_w=default_mw // 1000,
        sm_clock_max_mhz=_or(0, pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
        handle=handle,
    )


def _reach(gpu: Gpu):
    if gpu.handle is None:
        raise GpuLost(f"{gpu.uuid} was lost before this process started", pynvml.NVML_ERROR_GPU_IS_LOST)
    return gpu.handle


def _read_fields(handle) -> dict[int, float]:
    out: dict[int, float] = {}
    values = _or((), pynvml.nvmlDeviceGetFieldValues, handle, _FIELDS)
    for value in values:
        if value.nvmlReturn == pynvml.NVML_SUCCESS:
            out[value.fieldId] = getattr(value.value, _VALUE_MEMBERS.get(value.valueType, "ullVal"))
    return out


def read(gpu: Gpu, xids: Sequence[int] = ()) -> GpuReading:
    """Read one GPU.

    Args:
        gpu: From `open_gpus`.
        xids: Events that `XidWatch.poll` gave for it, to travel with the reading.

    Raises:
        GpuLost: if the GPU cannot be reached.
        GpuInconclusive: if power or cap could not be read; nothing may be concluded.
    """
    handle = _reach(gpu)
    fields = _read_fields(handle)
    mean_mw = fields.get(_POWER_AVERAGE)
    if mean_mw is None:
        mean_mw = _call(pynvml.nvmlDeviceGetPowerUsage, handle)
    energy_mj = fields.get(_ENERGY)
    if energy_mj is None:
        energy_mj = _or(math.nan, pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    cap_mw = int(fields[_CAP]) if _CAP in fields else _call(pynvml.nvmlDeviceGetPowerManagementLimit, handle)
    enforced_mw = (
        int(fields[_ENFORCED]) if _ENFORCED in fields else _or(cap_mw, pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    )
    util = _or(None, pynvml.nvmlDeviceGetUtilizationRates, handle)
    return GpuReading(
        uuid=gpu.uuid,
        power_w=fields.get(_POWER_NOW, mean_mw) / 1000.0,
        power_mean_w=mean_mw / 1000.0,
        cap_w=_ceil_w(cap_mw),
        enforced_cap_w=_ceil_w(enforced_mw),
        cap_min_w=gpu.cap_min_w,
        cap_max_w=gpu.cap_max_w,
        cap_default_w=gpu.cap_default_w,
        temp_c=float(_or(math.nan, _temperature, handle)),
        sm_clock_mhz=float(_or(math.nan, pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM)),
        sm_clock_max_mhz=gpu.sm_clock_max_mhz,
        util_frac=util.gpu / 100.0 if util else math.nan,
        mem_util_frac=util.memory / 100.0 if util else math.nan,
        energy_j=energy_mj / 1000.0,
        power_violation_s=fields.get(_POWER_VIOLATION, math.nan) / 1e9,
        thermal_violation_s=fields.get(_THERMAL_VIOLATION, math.nan) / 1e9,
        event_reasons=_or(0, _event_reasons, handle),
        ecc_corrected=int(fields.get(_ECC_CORRECTED, 0)),
        ecc_uncorrected=int(fields.get(_ECC_UNCORRECTED, 0)),
        recovery_action=int(fields.get(_RECOVERY, 0)),
        xids=tuple(xids),
    )


def _temperature(handle) -> int:
    try:
        return pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU)
    except pynvml.NVMLError_FunctionNotFound:
        return pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)  # drivers before 570


def _event_reasons(handle) -> int:
    try:
        return pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except pynvml.NVMLError_FunctionNotFound:
        return pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)  # the name before driver 535


def thermal_margin_c(gpu: Gpu) -> float:
    """Degrees until this GPU slows down, from its margin or from its threshold; NaN where it has neither."""
    handle = _reach(gpu)
    margin = _or(None, pynvml.nvmlDeviceGetMarginTemperature, handle)
    if margin is not None:
        return float(margin)
    threshold = _or(None, pynvml.nvmlDeviceGetTemperatureThreshold, handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    return math.nan if threshold is None else float(threshold - _call(_temperature, handle))


def read_cap_w(gpu: Gpu) -> int:
    """The cap set through NVML now, whole watts rounded up.

    Raises:
        GpuError: as `read`.
    """
    return _ceil_w(_call(pynvml.nvmlDeviceGetPowerManagementLimit, _reach(gpu)))


def set_cap_w(gpu: Gpu, cap_w: int) -> int:
    """Set a cap and return what was read back, which may differ: some writes succeed and do nothing.

    The version 1 call, because `nvmlDeviceSetPowerManagementLimit_v2` of nvidia-ml-py 13 returns success
    whatever the library answered.

    Raises:
        GpuOutOfRange: outside `cap_min_w` .. `cap_max_w`.
        GpuForbidden: without the right to write.
        GpuLost: if the GPU cannot be reached.
    """
    _call(pynvml.nvmlDeviceSetPowerManagementLimit, _reach(gpu), int(cap_w) * 1000)
    return read_cap_w(gpu)


def set_clock_ceiling(gpu: Gpu, clock_frac: float) -> None:
    """Lock the SM clock below a share of its maximum, or unlock it with 1; it only ever lowers draw.

    Raises:
        GpuError: as `set_cap_w`.
    """
    handle = _reach(gpu)
    if clock_frac >= 1.0 or not gpu.sm_clock_max_mhz:
        _call(pynvml.nvmlDeviceResetGpuLockedClocks, handle)
    else:
        _call(pynvml.nvmlDeviceSetGpuLockedClocks, handle, 0, int(clock_frac * gpu.sm_clock_max_mhz))


class XidWatch:
    """Collects XID events of all GPUs of this process since it was made."""

    def __init__(self, gpus: Sequence[Gpu]):
        self._uuids: dict[int, str] = {}
        self._set = _or(None, pynvml.nvmlEventSetCreate)
        for gpu in gpus if self._set is not None else ():
            try:
                _call(
                    pynvml.nvmlDeviceRegisterEvents,
                    _reach(gpu),
                    pynvml.nvmlEventTypeXidCriticalError,
                    self._set,
                )
            except GpuError:
                # events are an extra: a lost or old GPU is noticed by its readings
                continue
            self._uuids[_address(gpu.handle)] = gpu.uuid

    def poll(self) -> dict[str, list[int]]:
        """XID codes by UUID since the last call; never waits."""
        out: dict[str, list[int]] = {}
        while self._uuids:
            try:
                event = _call(pynvml.nvmlEventSetWait_v2, self._set, 0)
            except GpuError:
                break  # a timeout says that there are no more
            uuid = self._uuids.get(_address(event.device))
            if uuid is not None:
                out.setdefault(uuid, []).append(int(event.eventData))
        return out

    def close(self) -> None:
        if self._set is not None:
            _or(None, pynvml.nvmlEventSetFree, self._set)
            self._set, self._uuids = None, {}


def _address(handle) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
