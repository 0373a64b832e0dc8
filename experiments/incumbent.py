"""The incumbent: a static cap table per stage, and a shadow run beside it with the plant instead of a fleet."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..envs.core import Core
from ..envs.episode_start import EVENT_STREAM
from ..envs.events import event_times
from ..envs.plant import Plant
from ..envs.scenario import Scenario
from ..fleet.errors import BadInput
from ..fleet.snapshot import Snapshot
from ..fleet.tables import DECODE, NEVER_S, PREFILL
from ..fleet.topology import Fleet
from ..policies.base import Policy
from ..serving.budget import BudgetEvent
from ..serving.clock import ManualClock
from ..serving.engine import Engine, Mode
from ..serving.store import Store
from ..serving.telemetry import NodeReport
from ..serving.view import View

if TYPE_CHECKING:
    from ..actuators.emulator.state import EmulatedGpus

POLICY_DEADLINE_S = 60.0
"""The first decision compiles kernels; a clock that waits for the policy makes a deadline meaningless."""


@dataclass(frozen=True)
class CapTable:
    """One cap per GPU and stage, whatever the load: what most sites run today.

    Attributes:
        prefill_w: Cap per GPU of prefill nodes.
        decode_w: Cap per GPU of decode nodes.
    """

    prefill_w: int
    decode_w: int

    @classmethod
    def provision(cls, fleet: Fleet, limit_frac: float = 1.0, prefill_ratio: float = 1.2) -> "CapTable":
        """The largest table whose caps, with every declared bound, fit a share of every limit.

        A table that nobody changes must fit the lowest limit that it will ever meet.

        Args:
            fleet: The site, in the stages of its file.
            limit_frac: Share of every domain's `peak_w` to fit.
            prefill_ratio: Prefill cap / decode cap.

        Raises:
            BadInput: if even the smallest legal caps do not fit.
        """
        low_w, high_w = 0, int((fleet.node_static["cap_max_w"] / fleet.node_static["gpus"]).max())
        if not _fits(fleet, cls(0, 0), limit_frac):
            raise BadInput(f"site {fleet.name}: its smallest caps exceed {limit_frac:.0%} of a limit; raise limit_frac")
        while low_w < high_w:
            middle_w = (low_w + high_w + 1) // 2
            if _fits(fleet, cls(int(prefill_ratio * middle_w), middle_w), limit_frac):
                low_w = middle_w
            else:
                high_w = middle_w - 1
        return cls(int(prefill_ratio * low_w), low_w)

    def caps_w(self, fleet: Fleet, stage: np.ndarray) -> np.ndarray:
        """Node caps within the legal range, shape of `stage` (..., N), int64; parked nodes get the smallest."""
        static = fleet.node_static
        per_gpu_w = np.where(stage == PREFILL, self.prefill_w, np.where(stage == DECODE, self.decode_w, 0))
        return np.clip(per_gpu_w * static["gpus"], static["cap_min_w"], static["cap_max_w"])


def _fits(fleet: Fleet, table: CapTable, limit_frac: float) -> bool:
    static = fleet.node_static
    bound_w = table.caps_w(fleet, static["stage"]) + static["non_gpu_max_w"]
    return all(
        bound_w[d["node_start"] : d["node_end"]].sum() + d["unmanaged_w"] <= int(limit_frac * d["peak_w"])
        for d in fleet.domain_static
    )


def write_caps(gpus: "EmulatedGpus", cap_w: int) -> None:
    """Put one node's cap on its emulated GPUs from the hardware's side, as a BMC would: no NVML call is counted.

    Args:
        gpus: The node's GPUs.
        cap_w: Of the node; each GPU gets an equal share within its range.
    """
    table = gpus.table
    table["cap_w"] = np.clip(cap_w // len(gpus), table["cap_min_w"], table["cap_max_w"])


def command(plant: Plant, cap_w: np.ndarray, stage: np.ndarray) -> np.ndarray:
    """Fill the plant's plan with caps and stages that no arbiter has seen, and return its rows for `tick_under`.

    Args:
        plant: Where they are to be in force.
        cap_w: Shape (N,) or (B, N), watts.
        stage: The same shape.
    """
    rows = plant.plan.node
    rows["cap_w"], rows["stage"] = cap_w, stage
    rows["seq"] = plant.node["ack_seq"] + (rows["cap_w"] != plant.node["cap_w"])
    rows["clock_frac"] = 1.0
    return rows


Incumbent = Callable[[Plant, View | None], np.ndarray]
"""Node caps (N,) in watts, from the plant and what Flyball proposed last, which most incumbents do not read."""

Hears = Callable[[int, Snapshot], Snapshot | None]
"""What of a tick's telemetry reaches the service; None is a service that is down."""


def run_beside(
    scenario: Scenario,
    policy: Policy,
    incumbent: Incumbent,
    db_url: str,
    seed: int = 0,
    start_s: float = 1_700_000_000.0,
    hears: Hears = lambda tick, told: told,
    progress: Callable[[str, float], None] | None = None,
) -> None:
    """Run a service in shadow mode beside an incumbent that governs the plant; the log goes to a database.

    Scenario events are announced as they would be by an operator; a ramp as a step to its end.

    Args:
        scenario: What happens, for how long.
        policy: What Flyball would do.
        incumbent: What is done.
        db_url: Where the service logs to.
        seed: Of load, parameters and event times.
        start_s: Unix time of the start.
        hears: Drops or garbles telemetry.
        progress: Called with a label and the share done.
    """
    core = Core(scenario, policy, block="test")
    core.reset([seed])
    plant, fleet = core.plant, scenario.fleet
    plant.node["cap_w"] = plant.snapshot.node["cap_w"] = incumbent(plant, None)
    starts_s = event_times(scenario.budget_events, np.random.default_rng([seed, EVENT_STREAM]))
    due = sorted(
        ((max(at - e.notice_s, 0.0), at, e) for e, at in zip(scenario.budget_events, starts_s, strict=True)), key=_when
    )
    clock = ManualClock(start_s)
    store = Store(db_url)
    try:
        engine = Engine(fleet, policy, store, Mode.SHADOW, clock, policy_deadline_s=POLICY_DEADLINE_S)
        for k in range(plant.ticks):
            elapsed_s = clock.now_s() - start_s
            while due and due[0][0] <= elapsed_s:
                _, at_s, event = due.pop(0)
                engine.announce(_budget_event(fleet, event, start_s + at_s, clock.now_s()))
            told = hears(k, plant.snapshot.copy())
            if told is not None:
                _report(engine, told, clock.now_s())
                engine.tick()
            plant.tick_under(command(plant, incumbent(plant, engine.view), plant.node["stage"]))
            clock.advance(fleet.timing.tick_s)
            if progress is not None and k % plant.control_ticks == 0:
                progress("running in shadow mode", k / plant.ticks)
    finally:
        store.close()


def _when(entry: tuple) -> tuple[float, float]:
    return entry[:2]


def _budget_event(fleet: Fleet, event, at_s: float, now_s: float) -> BudgetEvent:
    """A scenario's event as the service takes it."""
    domain = fleet.domains[fleet.domain_index[event.domain] if event.domain else 0]
    until_s = NEVER_S if event.until_s is None else at_s + event.until_s
    return BudgetEvent(
        f"{domain.name}-{at_s - now_s:.0f}s-{at_s:.0f}",
        domain.name,
        at_s,
        until_s,
        int(domain.peak_w * event.limit_frac),
        now_s,
    )


def _report(engine: Engine, told: Snapshot, now_s: float) -> None:
    """Hand one tick's telemetry to the service as its agents, meters and model servers would."""
    fleet, telemetry = engine.fleet, engine.telemetry
    for i, row in enumerate(told.node[0]):
        if row["age_s"] > 0:
            continue  # this sample was lost on its way
        measured: dict[str, Any] = {
            n: float(row[n]) for n in ("power_w", "demand_w", "util_frac", "clock_frac", "temp_c", "moving_s")
        }
        xid = (int(row["xid"]),) if row["xid"] else ()
        report = NodeReport(
            f"{fleet.nodes[i].name}-boot", now_s, cap_w=int(row["cap_w"]), stage=int(row["stage"]), xid=xid, **measured
        )
        telemetry.report_node(i, report, now_s)
    for d, row in enumerate(told.domain[0]):
        if np.isfinite(row["meter_w"]) and row["meter_age_s"] == 0:
            telemetry.report_domain(d, float(row["meter_w"]), now_s, now_s)
    for s, row in enumerate(told.service[0]):
        if row["age_s"] == 0:
            values = {n: float(row[n]) for n in row.dtype.names if n != "age_s"}
            telemetry.report_service(s, values, now_s, now_s)


def shortened(scenario: Scenario, seconds: float) -> Scenario:
    """The scenario cut to a length; its events stay where they are."""
    return replace(scenario, seconds=seconds, warmup_s=min(scenario.warmup_s, seconds / 4))
