"""What a power cap does to throughput and draw: the plant's clock, voltage and power law, fitted to measured sweeps.

The law is `envs.physics` (MODEL.md sections 2-4) in array form: `voltage`, `relative_rate`, and the busy power with
the dynamic watts of a workload split between the clock tree, memory and arithmetic. What is added is the *stall
share*: a training job waits for its host part of the time, draws the stall power then, and the cap acts on its busy
part alone. The plant has the same split in `util_frac`, which duty-cycles a node's draw.

A device has one set of shapes (`Device`), a workload three numbers (`Workload`). `fit_device` fits both at once;
`fit_workloads` finds a new workload's three numbers with the device held, from as few caps as there are.
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ...envs.physics import PHI_MIN
from ...fleet.errors import BadInput

MEMORY_EXPONENT, COMPUTE_EXPONENT = 1.0, 0.5
"""Of the relative rate in the draw of memory and of arithmetic, as in `envs.physics.busy_power_w` (a test compares).

Sweeps hardly tell forms apart: held-out caps give 4.8, 4.5 and 3.7 % on V100 and 4.1, 4.4 and 4.7 % on RTX 6000 with
(0.5, 1), (1, 0.5) and (1, 1).
"""

BISECTIONS = 30
"""Halvings of the clock's range: 1e-9 of it."""

ZEUS_COLUMNS = ("power_limit", "time_per_epoch", "average_power")
"""Columns that a sweep needs; all others name the workload."""

DRAW_WEIGHT = 0.5
"""Weight of a draw's relative residual beside that of a throughput's: the throughput is what is asked for."""

PULL = 0.02
"""Relative error of a point that a distance of `PRIOR_STD` from the neighbours is worth."""

BELIEF_PULL = 0.15
"""Relative error of a point that a distance of `BELIEF_STD` is worth."""

IDLE_STD = 0.01
"""Scatter of an idle GPU's draw over the highest cap."""

PRIOR_STD = 0.1
"""How far the shapes of different workloads on a device are believed to scatter, as a share of their range; a weak
pull that keeps a workload which no cap binds (whose share of compute cannot be seen) at its neighbours' shape."""


@dataclass(frozen=True)
class Device:
    """Shapes that all workloads of a GPU product share.

    Attributes:
        v_min: Voltage floor as a fraction of the voltage at full clock.
        phi_knee: Clock fraction at which the floor is reached.
        phi_mem: Clock fraction below which memory-bound work slows down too.
        kappa: Share of the memory's draw that does not follow the core's voltage.
        clock_frac: Share of a workload's dynamic watts spent whatever it does (clock tree, schedulers).
        static_w: Draw of a busy GPU that follows neither clock nor work: leakage, memory refresh, fans, regulators.
        stall_w: Draw while the workload waits for its host.
    """

    v_min: float
    phi_knee: float
    phi_mem: float
    kappa: float
    clock_frac: float
    static_w: float
    stall_w: float


LOW = Device(0.45, 0.40, 0.18, 0.0, 0.0, 10.0, 10.0)
HIGH = Device(0.95, 0.98, 0.98, 1.0, 1.0, 110.0, 130.0)
START = Device(0.65, 0.60, 0.55, 0.5, 0.2, 45.0, 45.0)
"""Bounds and start of the search; the start is MODEL.md section 2."""


BELIEF_STD = Device(0.08, 0.08, 0.12, 0.25, 0.25, 0.1, 0.08)
"""How far shapes are believed to lie from `START` before any measurement, from the ranges that scenarios draw (watts
over the highest cap): what a half of the data leaves open stays where the model had it."""


@dataclass(frozen=True)
class Workload:
    """What distinguishes workloads on one device.

    Attributes:
        compute_frac: Compute-bound share of the busy time (cb of MODEL.md section 3).
        dynamic_w: Busy draw at full clock above `static_w`; may exceed what the highest cap lets through.
        stall_frac: Share of the time at full clock in which the GPU waits for its host.
    """

    compute_frac: float
    dynamic_w: float
    stall_frac: float


@dataclass(frozen=True)
class Sweep:
    """One workload's throughput and draw under several caps.

    Attributes:
        name: Of the workload.
        cap_w: Caps, ascending, shape (C,).
        rate: Throughput under each, over that under the highest cap.
        draw_w: Mean draw under each.
        free_w: Draw under the highest cap.
    """

    name: str
    cap_w: np.ndarray
    rate: np.ndarray
    draw_w: np.ndarray
    free_w: float

    def at(self, chosen: np.ndarray) -> "Sweep":
        """The same at some caps; rates stay relative to the highest cap of the whole sweep."""
        return Sweep(self.name, self.cap_w[chosen], self.rate[chosen], self.draw_w[chosen], self.free_w)


@dataclass(frozen=True)
class DeviceFit:
    """A fitted device and the workloads that it was fitted with."""

    device: Device
    workloads: dict[str, Workload]


# ── the law ──────────────────────────────────────────────────────────────────────────────────────────────────
def voltage(phi, device: Device):
    """`envs.physics.voltage` over arrays."""
    return np.maximum(device.v_min, 1.0 - (1.0 - device.v_min) * (1.0 - phi) / (1.0 - device.phi_knee))


def relative_rate(phi, compute_frac, device: Device):
    """`envs.physics.relative_rate` over arrays."""
    return 1.0 / (compute_frac / phi + (1.0 - compute_frac) * np.maximum(1.0, device.phi_mem / phi))


def busy_power_w(phi, compute_frac, dynamic_w, device: Device):
    """`envs.physics.busy_power_w` over arrays, the dynamic watts split by the device and the workload."""
    squared = voltage(phi, device) ** 2
    rate = relative_rate(phi, compute_frac, device)
    memory = (1.0 - compute_frac) * rate**MEMORY_EXPONENT * (device.kappa + (1.0 - device.kappa) * squared)
    compute = compute_frac * rate**COMPUTE_EXPONENT * squared
    c = device.clock_frac
    return device.static_w + dynamic_w * (c * phi * squared + (1.0 - c) * (memory + compute))


def respond(device: Device, compute_frac, dynamic_w, stall_frac, cap_w):
    """Throughput and draw under caps; arguments broadcast.

    Returns:
        (throughput over that without a cap, mean draw in watts, clock fraction of the busy part).
    """
    shape = np.broadcast_shapes(*(np.shape(x) for x in (compute_frac, dynamic_w, stall_frac, cap_w)))
    low, high = np.full(shape, PHI_MIN), np.ones(shape)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        is_over = busy_power_w(middle, compute_frac, dynamic_w, device) > cap_w
        high = np.where(is_over, middle, high)
        low = np.where(is_over, low, middle)
    is_free = busy_power_w(1.0, compute_frac, dynamic_w, device) <= cap_w
    phi = np.where(is_free, 1.0, low)
    busy_s = (1.0 - stall_frac) / relative_rate(phi, compute_frac, device)
    busy_w = busy_power_w(phi, compute_frac, dynamic_w, device)
    total_s = stall_frac + busy_s
    return 1.0 / total_s, (stall_frac * device.stall_w + busy_s * busy_w) / total_s, phi


def predict(device: Device, workload: Workload, cap_w) -> tuple[np.ndarray, np.ndarray]:
    """(throughput over that without a cap, draw in watts) of one workload under caps of any shape."""
    rate, draw_w, _ = respond(
        device, workload.compute_frac, workload.dynamic_w, workload.stall_frac, np.asarray(cap_w, float)
    )
    return rate, draw_w


# ── measurements ─────────────────────────────────────────────────────────────────────────────────────────────
def read_sweeps(path: Path) -> list[Sweep]:
    """Sweeps from a CSV with `ZEUS_COLUMNS`; rows with equal other columns are one workload.

    Repeated rows of a cap are averaged. Workloads with fewer than three caps are left out.

    Raises:
        BadInput: naming the file and what is wrong with it.
    """
    try:
        with open(path, newline="") as f:
            rows = list(csv.DictReader(f))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); give a CSV with {', '.join(ZEUS_COLUMNS)}") from None
    missing = [c for c in ZEUS_COLUMNS if not rows or c not in rows[0]]
    if missing:
        raise BadInput(f"{path}: needs the columns {', '.join(ZEUS_COLUMNS)}; missing: {', '.join(missing)}")
    table: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for line, row in enumerate(rows, 2):
        name = "/".join(str(v) for k, v in row.items() if k not in ZEUS_COLUMNS)
        try:
            cap_w, time_s, draw_w = (float(row[c]) for c in ZEUS_COLUMNS)
        except (TypeError, ValueError):
            raise BadInput(f"{path} line {line}: {', '.join(ZEUS_COLUMNS)} must be numbers") from None
        if not (0 < cap_w < 1e5 and 0 < time_s < 1e9 and 0 < draw_w < 1e5):
            raise BadInput(f"{path} line {line}: caps, times and draws must be positive and finite; mend or drop it")
        table.setdefault(name, {}).setdefault(cap_w, []).append((time_s, draw_w))
    out = []
    for name, caps in table.items():
        if len(caps) < 3:
            continue
        swept_w = np.array(sorted(caps))
        mean = np.array([np.mean(caps[c], axis=0) for c in swept_w])
        out.append(Sweep(name, swept_w, mean[-1, 0] / mean[:, 0], mean[:, 1], float(mean[-1, 1])))
    if not out:
        raise BadInput(f"{path}: no workload with at least three caps; sweep more caps")
    return out


# ── the fit ──────────────────────────────────────────────────────────────────────────────────────────────────
_OWN = 3  # numbers per workload


def _flat(sweeps: Sequence[Sweep]) -> tuple[np.ndarray, ...]:
    """Every point of every sweep: (index of its workload, cap, rate, draw)."""
    index = np.repeat(np.arange(len(sweeps)), [len(s.cap_w) for s in sweeps])
    return index, *(np.concatenate([getattr(s, n) for s in sweeps]) for n in ("cap_w", "rate", "draw_w"))


def _residuals(device: Device, own: np.ndarray, points, top_w: float, centre: np.ndarray) -> np.ndarray:
    """Relative errors of throughput and draw of every point, and each workload's distance from its neighbours."""
    index, cap_w, rate, draw_w = points
    compute, dynamic_w, stall = own[index].T
    ours, ours_w, _ = respond(device, compute, dynamic_w * top_w, stall, cap_w)
    # as a measured rate, relative to what the highest cap lets through
    best, _, _ = respond(device, compute, dynamic_w * top_w, stall, np.full_like(cap_w, top_w))
    error = (ours / best - rate) / rate
    error_w = DRAW_WEIGHT * (ours_w - draw_w) / draw_w
    pull = PULL * (own[:, :2] - centre) / PRIOR_STD
    return np.concatenate([error, error_w, pull.ravel()])


def _sparsity(index: np.ndarray, workloads: int, shared: int):
    """Which residual depends on which number: all on the device's, a point on its own workload's."""
    from scipy.sparse import lil_matrix

    points = len(index)
    out = lil_matrix((2 * points + 2 * workloads + shared, shared + _OWN * workloads), dtype=int)
    out[: 2 * points, :shared] = 1
    out[-shared:, :shared] = np.eye(shared, dtype=int)
    for i, w in enumerate(index):
        for row in (i, points + i):
            out[row, shared + _OWN * w : shared + _OWN * (w + 1)] = 1
    for w in range(workloads):
        for j in range(2):
            out[2 * points + 2 * w + j, shared + _OWN * w + j] = 1
    return out


_OWN_LOW, _OWN_HIGH = np.array([0.0, 0.02, 0.0]), np.array([1.0, 1.6, 0.995])
CENTRE = np.array([0.6, 0.75])
"""Compute share and dynamic watts over the highest cap that a workload is pulled towards, weakly."""


_GRID = np.stack(
    np.meshgrid(
        np.array([0.05, 0.25, 0.45, 0.65, 0.85]),
        np.array([0.3, 0.45, 0.6, 0.75, 0.9, 1.05, 1.25]),
        np.array([0.02, 0.06, 0.12, 0.2, 0.3, 0.45, 0.7, 0.9, 0.98]),
        indexing="ij",
    ),
    -1,
).reshape(-1, _OWN)


def _start(sweeps: Sequence[Sweep], device: Device, top_w: float, centres: np.ndarray) -> np.ndarray:
    """Each workload's best numbers on a grid, as many valleys look alike from within; shape (W, 3)."""
    compute, dynamic, stall = (c[:, None] for c in _GRID.T)
    top, _, _ = respond(device, compute, dynamic * top_w, stall, np.array([top_w]))
    out = np.empty((len(sweeps), _OWN))
    for i, (sweep, centre) in enumerate(zip(sweeps, centres, strict=True)):
        rate, draw_w, _ = respond(device, compute, dynamic * top_w, stall, sweep.cap_w)
        error = np.abs(rate / top - sweep.rate) / sweep.rate
        error_w = DRAW_WEIGHT * np.abs(draw_w - sweep.draw_w) / sweep.draw_w
        pull = np.square(PULL * (_GRID[:, :2] - centre) / PRIOR_STD).sum(-1)
        out[i] = _GRID[np.argmin(np.minimum(error, 0.2).sum(-1) + np.minimum(error_w, 0.2).sum(-1) + pull)]
    return out


def fit_device(
    sweeps: Sequence[Sweep], top_w: float | None = None, idle_w: float | None = None, belief_pull: float = BELIEF_PULL
) -> DeviceFit:
    """Fit the device's shapes and each workload's three numbers at once, by robust least squares.

    Args:
        sweeps: At least two workloads, some of them hot enough that caps bind.
        top_w: Highest cap, by which rates are relative; the sweeps' highest by default.
        idle_w: Draw of the device while a job waits, which a look at an idle GPU gives; fitted without.
        belief_pull: Weight of `START`; 0 lets a device with many workloads say its shapes alone.

    Raises:
        BadInput: with fewer than two sweeps.
    """
    from scipy.optimize import least_squares

    if len(sweeps) < 2:
        raise BadInput("a fit of a device needs sweeps of at least two workloads")
    top = float(top_w or max(s.cap_w[-1] for s in sweeps))
    points = _flat(sweeps)
    names = list(asdict(START))
    # the powers are scaled so that all numbers are about one
    unit = np.array([top if n.endswith("_w") else 1.0 for n in names])
    shared = len(names)

    def split(x: np.ndarray) -> tuple[Device, np.ndarray]:
        return Device(*(x[:shared] * unit)), x[shared:].reshape(-1, _OWN)

    believed, belief_std = np.array(list(asdict(START).values())) / unit, np.array(list(asdict(BELIEF_STD).values()))
    if idle_w is not None:
        believed[names.index("stall_w")], belief_std[names.index("stall_w")] = idle_w / top, IDLE_STD

    def cost(x: np.ndarray) -> np.ndarray:
        device, own = split(x)
        belief = belief_pull * (x[:shared] - believed) / belief_std
        return np.concatenate([_residuals(device, own, points, top, CENTRE), belief])

    low, high, start = (np.array(list(asdict(d).values())) / unit for d in (LOW, HIGH, START))
    bounds = (
        np.concatenate([low, np.tile(_OWN_LOW, len(sweeps))]) - 1e-9,
        np.concatenate([high, np.tile(_OWN_HIGH, len(sweeps))]) + 1e-9,
    )
    sparsity = _sparsity(points[0], len(sweeps), shared)
    centres = np.tile(CENTRE, (len(sweeps), 1))
    x = np.concatenate([start, _start(sweeps, START, top, centres).ravel()])
    found = least_squares(
        cost, x, bounds=bounds, loss="soft_l1", f_scale=0.05, jac_sparsity=sparsity, max_nfev=60, x_scale=0.1
    )
    device, own = split(found.x)
    return DeviceFit(device, _workloads(sweeps, own, top))


def fit_workloads(
    device: Device, sweeps: Sequence[Sweep], top_w: float, like: Sequence[Workload] = ()
) -> dict[str, Workload]:
    """Each workload's three numbers with the device held.

    Args:
        device: From `fit_device`, of other workloads or other caps.
        sweeps: What is known of each workload: any number of its caps, one included.
        top_w: The device's highest cap.
        like: Workloads of the device that are known; what the caps do not say is taken from those with the nearest
            draw without a cap.
    """
    from scipy.optimize import least_squares

    centres = np.tile(CENTRE, (len(sweeps), 1))
    if like:
        centres = np.array([_nearest(device, like, s, top_w) for s in sweeps])
    out: dict[str, Workload] = {}
    for sweep, centre in zip(sweeps, centres, strict=True):
        points = _flat([sweep])
        x = _start([sweep], device, top_w, centre[None])[0]

        def cost(x: np.ndarray, points=points, centre=centre) -> np.ndarray:
            return _residuals(device, x.reshape(1, -1), points, top_w, centre)

        found = least_squares(
            cost, x, bounds=(_OWN_LOW - 1e-9, _OWN_HIGH + 1e-9), loss="soft_l1", f_scale=0.05, max_nfev=60
        )
        out |= _workloads([sweep], found.x.reshape(1, -1), top_w)
    return out


def _nearest(device: Device, like: Sequence[Workload], sweep: Sweep, top_w: float) -> np.ndarray:
    """Compute share and scaled dynamic watts that workloads with this draw have, weighted by nearness (20 W)."""
    draws = np.array([float(predict(device, w, top_w)[1]) for w in like])
    weight = np.exp(-0.5 * ((draws - sweep.free_w) / 20.0) ** 2) + 1e-9
    shape = np.array([[w.compute_frac, w.dynamic_w / top_w] for w in like])
    return weight @ shape / weight.sum()


def _workloads(sweeps: Sequence[Sweep], own: np.ndarray, top_w: float) -> dict[str, Workload]:
    return {s.name: Workload(float(c), float(d * top_w), float(h)) for s, (c, d, h) in zip(sweeps, own, strict=True)}
