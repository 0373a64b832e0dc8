"""A whole fleet on this machine: one real agent per node on emulated GPUs, and the plant in real time behind them.

Caps come from where the agents wrote them, the emulated NVML's state files; power, temperature, clocks and faults
go back there. What model servers and meters would say goes to the service over HTTP. Nothing between telemetry and
cap is short-circuited.
"""

import contextlib
import json
import math
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..actuators.emulator.build import library_path
from ..actuators.emulator.state import EmulatedGpus
from ..actuators.lease import UNKNOWN_W, boottime_s
from ..envs.episode_start import EVENT_STREAM
from ..envs.episodes import read_file
from ..envs.events import event_times
from ..envs.faults import REBOOT_S, RESET_S
from ..envs.limits import DEMANDED, IN_FORCE
from ..envs.load import make_load
from ..envs.model import PlantModel
from ..envs.plant import Plant
from ..envs.scenario import Scenario, check_scenario, load_scenario
from ..fleet.arbiter.health import xid_action
from ..fleet.errors import BadInput
from ..fleet.plan import Reason
from ..fleet.tables import PARKED
from ..fleet.topology import Fleet
from ..serving.view import domain_sums
from .incumbent import CapTable, write_caps
from .processes import ServiceFailed, ServiceLink, last_line, spawn, stop_all

POLL_S = 0.1
"""Between two looks at the caps in force."""

SUBSTEPS = 10
"""Physics steps per tick: as fine as the caps are looked at."""

RETRY_S = 0.2
FELL_OFF_THE_BUS = 79

UNLEASED, LEASED, FALLEN, DRAINED = range(4)
"""What holds a node's cap: nothing of ours yet, a lease, its fallback; or a lease that drains it."""


def site_scenario(site: str | Path, base: str = "steady", **changes: Any) -> Scenario:
    """A scenario on another site.

    Args:
        site: Site file or name.
        base: Name of the scenario.
        **changes: Fields of `Scenario` to replace.

    Raises:
        BadInput: if there is no such site or scenario, or the two do not fit.
    """
    scenario = replace(load_scenario(base), site=str(site), **changes)
    scenario.fleet  # noqa: B018 - a site that cannot be read is refused under its own name
    check_scenario(scenario)
    return scenario


@dataclass(frozen=True)
class LimitMeter:
    """Watts against limits, added up.

    Attributes:
        violation_ws: Above limits in force, summed over domains.
        overshoot_ws: Above demanded limits that the grace let through.
        overshoot_s: Longest time in one go above a demanded limit.
        margin_w: Least distance to a limit in force.
        over_since_s: When the watts rose above a demanded limit; NaN while they are not.
    """

    violation_ws: float = 0.0
    overshoot_ws: float = 0.0
    overshoot_s: float = 0.0
    margin_w: float = math.inf
    over_since_s: float = math.nan

    def add(self, watts: np.ndarray, demanded_w: np.ndarray, in_force_w: np.ndarray, t_s: float, dt_s: float):
        """One sample of every domain that stands for the `dt_s` before `t_s`."""
        over_force_w = np.maximum(watts - in_force_w, 0.0)
        over_demand_w = np.maximum(watts - np.maximum(demanded_w, 0), 0.0) - over_force_w
        is_over = bool((watts > demanded_w).any())
        since_s = (t_s - dt_s if math.isnan(self.over_since_s) else self.over_since_s) if is_over else math.nan
        return LimitMeter(
            self.violation_ws + float(over_force_w.sum()) * dt_s,
            self.overshoot_ws + float(over_demand_w.sum()) * dt_s,
            max(self.overshoot_s, t_s - since_s) if is_over else self.overshoot_s,
            min(self.margin_w, float((in_force_w - watts).min())),
            since_s,
        )


@dataclass(frozen=True)
class Second:
    """What was seen in one second of the emulation.

    Attributes:
        t_s: End of the second, from the start of the plant.
        demanded_w: Limit demanded of each domain, shape (D,).
        in_force_w: Limit in force, shape (D,).
        power_w: Mean draw of each domain in the plant, shape (D,).
        bound_w: Largest sum of caps in force and declared bounds at any look, shape (D,).
        cap_w: Caps in force in the emulated library, shape (N,).
        status: UNLEASED, LEASED, FALLEN or DRAINED, shape (N,).
        epoch: Of the lease that each agent obeys, -1 before the first, shape (N,).
        fallback_w: That each agent would go to, shape (N,).
        stage: Stage that runs, shape (N,).
        interventions: Bids that the last plan did not grant; NaN while no service answers.
    """

    t_s: float
    demanded_w: np.ndarray
    in_force_w: np.ndarray
    power_w: np.ndarray
    bound_w: np.ndarray
    cap_w: np.ndarray
    status: np.ndarray
    epoch: np.ndarray
    fallback_w: np.ndarray
    stage: np.ndarray
    interventions: float


class Reporter:
    """Talks to the service on a thread of its own, so that a dead one never holds up the physics.

    Telemetry that cannot be delivered is dropped; an event is tried again until the service has accepted it.
    """

    def __init__(self, url: str, agent_token: str, operator_token: str):
        self._agent, self._operator = ServiceLink(url, agent_token), ServiceLink(url, operator_token)
        self._work: queue.SimpleQueue[tuple[str, dict] | None] = queue.SimpleQueue()
        self._is_stopping = threading.Event()
        self.accepted: dict[str, float] = {}
        self.refused: list[str] = []
        self.seen: dict[str, Any] | None = None
        self.seen_s = -math.inf
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def telemetry(self, body: dict) -> None:
        """Post what meters and model servers say, and look at the fleet."""
        if self._work.qsize() < 2:  # what has waited longer says nothing new
            self._work.put(("telemetry", body))

    def load_target(self, body: dict) -> None:
        """Announce a budget event; `accepted` gets its id and the time of the answer, on the monotonic clock."""
        self._work.put(("event", body))

    def stop(self) -> None:
        self._is_stopping.set()
        self._work.put(None)
        self._thread.join(5.0)
        self._agent.close()
        self._operator.close()

    def _run(self) -> None:
        while (work := self._work.get()) is not None and not self._is_stopping.is_set():
            kind, body = work
            if kind == "event":
                self._announce(body)
                continue
            try:
                self._agent.call("POST", "/v1/telemetry", body)
                self.seen = self._operator.call("GET", "/v1/fleet")
                self.seen_s = time.monotonic()
            except ServiceFailed:
                self.seen = None
            except BadInput as error:
                self.refused.append(str(error))

    def _announce(self, body: dict) -> None:
        while not self._is_stopping.is_set():
            try:
                self._operator.call("POST", "/v1/load-targets", body)
            except ServiceFailed:
                self._is_stopping.wait(RETRY_S)
            except BadInput as error:
                self.refused.append(str(error))
                return
            else:
                self.accepted[body["id"]] = time.monotonic()
                return


class Emulation:
    """Agents, emulated GPUs and the plant of one scenario; use it as a context manager.

    Args:
        scenario: What happens, for how long, and on what site.
        folder: For state files and logs of the agents.
        url: Of the service.
        secrets: Tokens by name, as the service's token file has them: "operator", "emulation" and one per node.
        seed: Of load, parameters and event times.
        load: Trace or rate table; generated load if None.
    """

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        url: str,
        secrets: dict[str, str],
        seed: int = 0,
        load: str | Path | None = None,
    ):
        self.scenario, self.folder, self.url, self.secrets = scenario, folder, url, secrets
        self.fleet: Fleet = scenario.fleet
        missing = [n for n in ("operator", "emulation", *(n.name for n in self.fleet.nodes)) if n not in secrets]
        if missing:
            raise BadInput(f"the token file has no token {missing[0]!r}; let flyball serve make one for this site")
        self.plant = Plant(scenario, self.fleet, substeps=SUBSTEPS)
        file = read_file(load)
        made = make_load(
            scenario.load,
            PlantModel(self.fleet).capacity_rps,
            scenario.seconds,
            self.tick_s,
            [seed],
            [s.name for s in self.fleet.services],
            file,
            "test",
        )
        self.load_scale, self.load_source = made.scale, made.source
        self._warm_up(seed, made)
        self.starts_s = event_times(scenario.budget_events, np.random.default_rng([seed, EVENT_STREAM]))
        self.gpus = [
            EmulatedGpus.create(self._file(n.name, "gpus"), [n.sku] * n.gpus, n.name) for n in self.fleet.nodes
        ]
        # what a site runs before Flyball comes: a table of caps that fits its limits
        table_w = CapTable.provision(self.fleet).caps_w(self.fleet, self.fleet.node_static["stage"])
        for gpus, cap_w in zip(self.gpus, table_w, strict=True):
            write_caps(gpus, int(cap_w))
        self.agents: list[subprocess.Popen] = []
        self.reporter: Reporter | None = None
        self.caps_meter, self.power_meter = LimitMeter(), LimitMeter()
        self._due = sorted(self._announcements(), key=lambda entry: entry[0])
        self._cap_w = self.caps_w()
        self._written_s = np.zeros(len(self.gpus))
        self._looked_s: float | None = None
        self._began_s = math.nan
        self._drawn_ws = 0.0
        self._bound_w = np.zeros(len(self.fleet.domains))
        self._commands = [(int(stage), False) for stage in self.fleet.node_static["stage"]]
        self._told_stage: list[tuple] = [()] * len(self.gpus)
        self._write_stages()

    def _warm_up(self, seed: int, load) -> None:
        """Compile the physics before real time starts, then begin."""
        plant, n = self.plant, len(self.fleet.nodes)
        plant.reset(np.array([seed]), load)
        plant.fail(0, 0, 0.0)
        plant.tick_live(plant.node["cap_w"], np.zeros(n), plant.node["stage"], np.ones(n), np.zeros(n))
        plant.reset(np.array([seed]), load)
        # agents, their messages and their writes are real here: none is lost that is not really lost
        plant.params["dropout_frac"] = plant.params["lost_write_frac"] = 0.0

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────
    def __enter__(self) -> "Emulation":
        library_path()  # once, not by every agent
        self.reporter = Reporter(self.url, self.secrets["emulation"], self.secrets["operator"])
        self.agents = [self._start_agent(n.name) for n in self.fleet.nodes]
        return self

    def __exit__(self, *_exc) -> None:
        stop_all(self.agents)
        if self.reporter is not None:
            self.reporter.stop()

    def _file(self, node: str, kind: str) -> Path:
        return self.folder / "nodes" / f"{node.replace('/', '_')}.{kind}"

    def _start_agent(self, node: str) -> subprocess.Popen:
        arguments = ["agent", "--server", self.url, "--node", node, "--nvml", "emulated"]
        arguments += ["--state-dir", str(self.folder / "state")]
        arguments += [
            "--stage-file",
            str(self._file(node, "stage")),
            "--command-file",
            str(self._file(node, "command")),
        ]
        env = {"FLYBALL_TOKEN": self.secrets[node], "FLYBALL_NVML_STATE": str(self._file(node, "gpus"))}
        return spawn(arguments, self._file(node, "log"), env)

    def check_agents(self) -> None:
        """Refuse to go on without an agent.

        Raises:
            BadInput: if one ended, with what it said.
        """
        for n, process in zip(self.fleet.nodes, self.agents, strict=True):
            if process.poll() is not None:
                raise BadInput(f"the agent of {n.name} ended: {last_line(self._file(n.name, 'log'))}")

    def wait_for_agents(self, is_ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Hold the plant's clock until the agents are there; caps are looked at from the first moment on.

        Args:
            is_ready: Asked ten times a second.
            timeout_s: Longest wait.

        Raises:
            BadInput: if an agent ended.
            ServiceFailed: if it took too long.
        """
        until_s = time.monotonic() + timeout_s
        next_post_s = 0.0
        while not is_ready():
            if time.monotonic() > until_s:
                raise ServiceFailed(f"not every agent was ready within {timeout_s:g} s; see {self.folder}")
            self._look(0.0)
            if time.monotonic() >= next_post_s:
                self.check_agents()
                self._post()
                next_post_s = time.monotonic() + self.tick_s
            time.sleep(POLL_S)

    def has_leases(self, epoch: int = 0) -> bool:
        """Whether every agent obeys a lease of this epoch or a later one."""
        return bool((self.owned()[0] >= max(epoch, 1)).all())

    def has_answers(self) -> bool:
        """Whether the service hears every agent."""
        seen = self.reporter.seen if self.reporter else None
        return seen is not None and not any(seen["nodes"]["silent"])

    def run(self, seconds: float, on_look: Callable[[float], None] | None = None) -> Iterator[Second]:
        """Play the plant in real time.

        Args:
            seconds: How long.
            on_look: Called with the time since the start at every look at the caps.

        Yields:
            One record per tick, at its end.
        """
        self._began_s = time.monotonic()
        for k in range(min(round(seconds / self.tick_s), self.plant.ticks)):
            while (t_s := time.monotonic() - self._began_s) < (k + 1) * self.tick_s:
                self._announce(t_s)
                self._look(t_s)
                if on_look is not None:
                    on_look(t_s)
                t_s = time.monotonic() - self._began_s
                due_s = min([(k + 1) * self.tick_s, *(at_s for at_s, _ in self._due[:1])])
                time.sleep(min(max(due_s - t_s, 0.001), POLL_S))
            self._look((k + 1) * self.tick_s)
            yield self._tick(k)

    @property
    def tick_s(self) -> float:
        return self.fleet.timing.tick_s

    def inject_xid(self, node: int, gpu: int, xid: int) -> None:
        """Break one GPU: its driver reports the code, and what the node served is lost until it is repaired."""
        is_lost = xid == FELL_OFF_THE_BUS
        self.gpus[node].raise_xid(gpu, xid, is_lost)
        down_s = {"gpu_reset": RESET_S, "reboot": REBOOT_S}.get(xid_action(xid), 0.0)
        if down_s:
            self.plant.fail(node, xid, down_s)

    # ── what agents did ─────────────────────────────────────────────────────────────────────────────────
    def caps_w(self) -> np.ndarray:
        """Caps in force in the emulated library, shape (N,); a GPU that nobody reaches may draw its maximum."""
        return np.array(
            [int(np.where(g.table["is_lost"] != 0, g.table["cap_max_w"], g.caps_w).sum()) for g in self.gpus], np.int64
        )

    def floors_w(self) -> np.ndarray:
        """The lowest caps that can be read back now, shape (N,)."""
        rows = [g.table for g in self.gpus]
        return np.array(
            [int(np.where(t["is_lost"] != 0, t["cap_max_w"], t["cap_min_w"]).sum()) for t in rows], np.int64
        )

    @property
    def setter_calls(self) -> int:
        """NVML setters called by anybody since the start."""
        return sum(g.setter_calls for g in self.gpus)

    def owned(self) -> tuple[np.ndarray, np.ndarray]:
        """Epoch that each agent obeys (-1 for none) and the caps of its fallback, from its state file."""
        epoch = np.full(len(self.gpus), -1, np.int64)
        fallback_w = np.full(len(self.gpus), UNKNOWN_W, np.int64)
        for i, n in enumerate(self.fleet.nodes):
            path = self.folder / "state" / f"{n.name.replace('/', '_')}.json"
            with contextlib.suppress(OSError, ValueError, KeyError):
                content = json.loads(path.read_text())
                epoch[i], fallback_w[i] = content["epoch"], content["fallback_w"]
        return epoch, fallback_w

    def ordered(self, node: int) -> tuple[bool, bool]:
        """Whether the service had an agent cordon and drain its node."""
        content = self._command(node)
        return bool(content.get("cordoned")), bool(content.get("drained"))

    def _command(self, node: int) -> dict:
        try:
            content = json.loads(self._file(self.fleet.nodes[node].name, "command").read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _look(self, t_s: float) -> None:
        """Note which caps changed, and hold the sum of what the caps allow against the limits."""
        now_s = time.monotonic()
        cap_w = self.caps_w()
        in_tick_s = min(max(t_s - self.plant.time_s[0], 0.0), self.tick_s)
        self._written_s = np.where(cap_w != self._cap_w, in_tick_s, self._written_s)
        self._cap_w = cap_w
        bound_w = self.bounds_w(cap_w)
        self._bound_w = np.maximum(self._bound_w, bound_w)
        limits = self.plant.limits[0, int(self.plant.tick[0])]
        dt_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        self.caps_meter = self.caps_meter.add(bound_w, limits[:, DEMANDED], limits[:, IN_FORCE], now_s, dt_s)

    def bounds_w(self, cap_w: np.ndarray) -> np.ndarray:
        """What each domain may draw under some caps, shape (D,): a parked node draws no more than its idle bound."""
        static = self.fleet.node_static
        is_parked = (self.plant.node["stage"][0] == PARKED) & (self.plant.node["moving_s"][0] <= 0.0)
        gpu_w = np.where(is_parked, np.minimum(cap_w, static["parked_max_w"]), cap_w)
        return domain_sums(self.fleet, gpu_w + static["non_gpu_max_w"]) + self.fleet.domain_static["unmanaged_w"]

    # ── one tick ────────────────────────────────────────────────────────────────────────────────────────
    def _tick(self, k: int) -> Second:
        """Let the physics live through the second that has passed, and tell everybody."""
        plant = self.plant
        for i, before in enumerate(self._commands):
            content = self._command(i)
            stage = content.get("stage")
            self._commands[i] = (
                stage if stage in (0, 1, PARKED) else before[0],
                bool(content.get("drained", before[1])),
            )
        stage, drained = (np.array(column)[None] for column in zip(*self._commands, strict=True))
        had_xid = plant.node["xid"][0] != 0
        plant.tick_live(self._cap_w[None], self._written_s[None], stage, self._ceilings()[None], drained)
        self._written_s[:] = 0.0
        self._pass_on_faults(had_xid)
        self._write_gpus()
        self._write_stages()
        self._post()
        limits, power_w = plant.limits[0, k], self._mean_power_w()
        t_s = (k + 1) * self.tick_s
        self.power_meter = self.power_meter.add(power_w, limits[:, DEMANDED], limits[:, IN_FORCE], t_s, self.tick_s)
        epoch, fallback_w = self.owned()
        second = Second(
            t_s,
            limits[:, DEMANDED].copy(),
            limits[:, IN_FORCE].copy(),
            power_w,
            self._bound_w,
            self._cap_w.copy(),
            self._status(epoch, fallback_w),
            epoch,
            fallback_w,
            plant.node["stage"][0].copy(),
            self._interventions(),
        )
        self._bound_w = self.bounds_w(self._cap_w)
        return second

    def _mean_power_w(self) -> np.ndarray:
        """Mean draw of every domain in the last tick, shape (D,): telemetry's means, with the true rest."""
        told, node = self.plant.snapshot.node[0], self.plant.node[0]
        unmanaged_w = self.fleet.domain_static["unmanaged_w"]
        return domain_sums(self.fleet, told["power_w"] + node["non_gpu_w"]) + unmanaged_w

    def _ceilings(self) -> np.ndarray:
        """Clock ceilings that agents have locked, shape (N,)."""
        locked = [g.table["locked_clock_mhz"].max() for g in self.gpus]
        full = [g.table["sm_clock_max_mhz"].max() for g in self.gpus]
        return np.array([mhz / most if mhz > 0 else 1.0 for mhz, most in zip(locked, full, strict=True)])

    def _pass_on_faults(self, had_xid: np.ndarray) -> None:
        """What broke in the plant is seen by the driver, and what was repaired comes back.

        The host stays up, whatever broke: its agent would otherwise have to be taken away and brought back.
        """
        node = self.plant.node[0]
        node["agent_down"] = 0
        for i in np.flatnonzero(~had_xid & (node["xid"] != 0)):
            xid = int(node["xid"][i])
            self.gpus[i].raise_xid(0, xid, is_lost=xid == FELL_OFF_THE_BUS)
        for i in np.flatnonzero(had_xid & (node["xid"] == 0)):
            self.gpus[i].table["is_lost"] = 0

    def _write_gpus(self) -> None:
        """Power, temperature, clock and utilisation as the driver reports them."""
        told, node = self.plant.snapshot.node[0], self.plant.node[0]
        for gpus, mean, truth in zip(self.gpus, told, node, strict=True):
            table = gpus.table
            is_alive = table["is_lost"] == 0
            alive = max(int(is_alive.sum()), 1)
            table["power_w"] = np.where(is_alive, mean["power_w"] / alive, 0.0)
            table["power_now_w"] = np.where(is_alive, truth["gpu_w"] / alive, 0.0)
            table["temp_c"] = truth["temp_c"]
            table["mem_temp_c"] = truth["temp_c"]
            table["util_frac"] = table["mem_util_frac"] = min(truth["util_frac"], 1.0)
            table["sm_clock_mhz"] = truth["phi"] * table["sm_clock_max_mhz"]
            gpus.elapse(self.tick_s)

    def _write_stages(self) -> None:
        """Tell agents which stage runs, where that changed."""
        for i, (n, row) in enumerate(zip(self.fleet.nodes, self.plant.node[0], strict=True)):
            now = (int(row["stage"]), round(float(row["moving_s"]), 1))
            if now != self._told_stage[i]:
                path = self._file(n.name, "stage")
                scratch = path.with_suffix(".new")
                scratch.write_text(json.dumps({"stage": now[0], "moving_s": now[1]}))
                os.replace(scratch, path)
                self._told_stage[i] = now

    def _status(self, epoch: np.ndarray, fallback_w: np.ndarray) -> np.ndarray:
        """What holds every node's cap, shape (N,)."""
        assert self.reporter is not None
        is_served = self.reporter.seen is not None and epoch >= self.reporter.seen["epoch"]
        # a lease lives on for its time after the last answer, give or take a tick
        is_dead = time.monotonic() - self.reporter.seen_s > self.fleet.timing.lease_ttl_s - self.tick_s
        is_low = is_dead & (self._cap_w <= np.maximum(fallback_w, self.floors_w()))
        drained = np.array([is_drained for _, is_drained in self._commands])
        status = np.where(drained, DRAINED, LEASED)
        status = np.where(~is_served & is_low, FALLEN, status)
        return np.where(epoch < 1, UNLEASED, status).astype(np.int64)

    def _interventions(self) -> float:
        seen = self.reporter.seen if self.reporter else None
        return math.nan if seen is None else float(sum(r != Reason.GRANTED.name for r in seen["nodes"]["reason"]))

    # ── what the service is told ────────────────────────────────────────────────────────────────────────
    def _post(self) -> None:
        assert self.reporter is not None
        now_s, snapshot = boottime_s(), self.plant.snapshot
        domains = [
            {"domain": d.name, "meter_w": _known(row["meter_w"]), "sent_at": now_s}
            for d, row in zip(self.fleet.domains, snapshot.domain[0], strict=True)
        ]
        services = [
            {"service": s.name, "sent_at": now_s, **{f: _known(row[f]) for f in row.dtype.names if f != "age_s"}}
            for s, row in zip(self.fleet.services, snapshot.service[0], strict=True)
        ]
        self.reporter.telemetry({"domains": domains, "services": services})

    def _announce(self, t_s: float) -> None:
        assert self.reporter is not None
        while self._due and self._due[0][0] <= t_s:
            _, make = self._due.pop(0)
            self.reporter.load_target(make(t_s))

    def event_id(self, index: int) -> str:
        """Name under which the scenario's event of this index is announced."""
        return f"{self.scenario.name}-{index}"

    def _announcements(self) -> Iterator[tuple[float, Callable[[float], dict]]]:
        """When each event of the scenario is announced, and the message to make then.

        A ramp is announced as one step: down at its start, up at its end, so that the service's limit is never
        above the plant's.
        """
        for i, (event, start_s) in enumerate(zip(self.scenario.budget_events, self.starts_s, strict=True)):
            d = self.fleet.domain_index[event.domain] if event.domain else 0
            start = round(start_s / self.tick_s)
            if start > self.plant.ticks:
                continue
            start_s = start * self.tick_s
            before_w = int(self.plant.limits[0, max(start - 1, 0), d, DEMANDED])
            limit_w = int(self.fleet.domains[d].peak_w * event.limit_frac)
            is_raise = limit_w >= before_w
            at_s = start_s + event.ramp_s if is_raise else max(start_s - event.notice_s, 0.0)
            earlier = [
                self.event_id(k)
                for k, (other, other_s) in enumerate(zip(self.scenario.budget_events, self.starts_s, strict=True))
                if is_raise and other.domain == event.domain and other_s < start_s and other.until_s is None
            ]

            def make(now_s: float, i=i, d=d, start_s=start_s, limit_w=limit_w, event=event, earlier=earlier) -> dict:
                body: dict[str, Any] = {
                    "id": self.event_id(i),
                    "domain": self.fleet.domains[d].name,
                    "limit_w": limit_w,
                    "supersedes": earlier,
                    "reason": f"scenario {self.scenario.name}",
                }
                if start_s > now_s:
                    body["notice_s"] = start_s - now_s
                if event.until_s is not None:
                    body["until_s"] = time.time() + start_s + event.until_s - now_s
                return body

            yield at_s, make

    # ── judgement ───────────────────────────────────────────────────────────────────────────────────────
    def kpis(self) -> dict[str, float]:
        """The plant's KPIs, with limits scored on its power and, apart, on the caps in force.

        `budget_violation_ws` and `overshoot_ws` are the worse of the two.
        """
        power, caps = self.power_meter, self.caps_meter
        return {
            **self.plant.kpis(),
            "budget_violation_ws": max(self.plant.kpis()["budget_violation_ws"], power.violation_ws, caps.violation_ws),
            "overshoot_ws": max(power.overshoot_ws, caps.overshoot_ws),
            "overshoot_s": max(power.overshoot_s, caps.overshoot_s),
            "power_violation_ws": max(power.violation_ws, self.plant.kpis()["budget_violation_ws"]),
            "power_overshoot_ws": power.overshoot_ws,
            "caps_violation_ws": caps.violation_ws,
            "caps_overshoot_ws": caps.overshoot_ws,
            "caps_margin_w": caps.margin_w,
        }

    @cached_property
    def overshoot_allowed_ws(self) -> float:
        """What un-noticed cuts may let through: every lowered watt of every domain for the whole grace."""
        limits = self.plant.limits[0, : self.plant.ticks]
        return float(np.maximum(limits[..., IN_FORCE] - limits[..., DEMANDED], 0).sum()) * self.tick_s


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
