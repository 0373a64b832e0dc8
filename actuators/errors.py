"""Errors of the actuators; NVML's codes map to the few classes that are acted on differently (`nvml.py`).

FlyballError
├── BadInput
│   ├── AgentRefused      the service refuses this agent: wrong token, unknown node
│   └── EmulatorError     the emulated NVML cannot be built, found or read
└── GpuError              NVML answered with an error
    ├── GpuLost           fell off the bus: its draw is unknown until a person or a reboot acts
    ├── GpuForbidden      this process may read but not write
    ├── GpuUnsupported    this product or driver has no such reading or call: treat it as missing
    ├── GpuOutOfRange     the argument is outside the product's range
    ├── NvmlUnavailable   no library or no driver: nothing can be read on this node
    └── GpuInconclusive   anything else: no answer, so nothing may be concluded and nothing is changed
"""

from ..fleet.errors import BadInput, FlyballError


class AgentRefused(BadInput):
    """The service refuses this agent, and trying again with the same settings cannot help.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class EmulatorError(BadInput):
    """The emulated NVML cannot be built, found or read; the message says what to do."""


class GpuError(FlyballError):
    """NVML answered with an error.

    Attributes:
        code: NVML's return code.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class GpuLost(GpuError):
    """The GPU fell off the bus or needs a reset: what it draws is unknown."""


class GpuForbidden(GpuError):
    """The process lacks the right to write; caps need root or CAP_SYS_ADMIN."""


class GpuUnsupported(GpuError):
    """The product or the driver has no such reading or call."""


class GpuOutOfRange(GpuError):
    """The value is outside what the product accepts."""


class NvmlUnavailable(GpuError):
    """There is no NVML library or no driver on this node."""


class GpuInconclusive(GpuError):
    """NVML gave no usable answer; nothing may be concluded from it."""
