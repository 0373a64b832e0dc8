"""A whole fleet on this machine: one real agent per node on emulated GPUs, and the plant in real time behind them.

Caps come from where the agents wrote them, the emulated NVML's state files; power, temperature, clocks and faults
go back there. What model servers and meters would say goes to the service over HTTP. Nothing between telemetry and
cap is short-circuited.
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from ...envs.episode_start import EVENT_STREAM
from ...envs.episodes import read_file
from ...envs.events import event_times
from ...envs.faults import REBOOT_S, RESET_S
from ...envs.limits import DEMANDED, IN_FORCE
from ...envs.load import make_load
from ...envs.model import PlantModel
from ...envs.plant import Plant
from ...envs.scenario import Scenario
from ...fleet.arbiter.health import xid_action
from ...fleet.errors import BadInput
from ...fleet.plan import Reason
from ...fleet.tables import PARKED
from ...fleet.topology import Fleet
from ...serving.view import domain_sums
from ..processes import ServiceFailed
from .announcements import announcements
from .limit_meter import LimitMeter
from .nodes import EmulatedNodes
from .reporter import Reporter, telemetry
from .second import DRAINED, FALLEN, LEASED, UNLEASED, Second

POLL_S = 0.1
"""Between two looks at the caps in force."""

SUBSTEPS = 10
"""Physics steps per tick: as fine as the caps are looked at."""


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
        starts_s = event_times(scenario.budget_events, np.random.default_rng([seed, EVENT_STREAM]))
        self.due = announcements(scenario, starts_s, self.plant)
        self.nodes = EmulatedNodes(self.fleet, folder)
        self.reporter: Reporter | None = None
        self.caps_meter, self.power_meter = LimitMeter(), LimitMeter()
        self._cap_w = self.nodes.caps_w()
        self._written_s = np.zeros(len(self.fleet.nodes))
        self._looked_s: float | None = None
        self._began_s = math.nan
        self._bound_w = np.zeros(len(self.fleet.domains))
        self.nodes.show_stages(self.plant.node[0])

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
        self.reporter = Reporter(self.url, self.secrets["emulation"], self.secrets["operator"])
        self.nodes.start(self.url, self.secrets)
        return self

    def __exit__(self, *_exc) -> None:
        self.nodes.stop()
        if self.reporter is not None:
            self.reporter.stop()

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
                self.nodes.check()
                self._post()
                next_post_s = time.monotonic() + self.tick_s
            time.sleep(POLL_S)

    def has_leases(self, epoch: int = 0) -> bool:
        """Whether every agent obeys a lease of this epoch or a later one."""
        return bool((self.nodes.owned()[0] >= max(epoch, 1)).all())

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
                due_s = min([(k + 1) * self.tick_s, *(told.at_s for told in self.due[:1])])
                time.sleep(min(max(due_s - t_s, 0.001), POLL_S))
            self._look((k + 1) * self.tick_s)
            yield self._tick(k)

    @property
    def tick_s(self) -> float:
        return self.fleet.timing.tick_s

    def inject_xid(self, node: int, gpu: int, xid: int) -> None:
        """Break one GPU: its driver reports the code, and what the node served is lost until it is repaired."""
        self.nodes.raise_xid(node, gpu, xid)
        down_s = {"gpu_reset": RESET_S, "reboot": REBOOT_S}.get(xid_action(xid), 0.0)
        if down_s:
            self.plant.fail(node, xid, down_s)

    # ── caps against limits ─────────────────────────────────────────────────────────────────────────────
    def _look(self, t_s: float) -> None:
        """Note which caps changed, and hold the sum of what the caps allow against the limits."""
        now_s = time.monotonic()
        cap_w = self.nodes.caps_w()
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
        stage, drained = self.nodes.read_commands()
        had_xid = plant.node["xid"][0] != 0
        plant.tick_live(
            self._cap_w[None], self._written_s[None], stage[None], self.nodes.ceilings()[None], drained[None]
        )
        self._written_s[:] = 0.0
        self._pass_on_faults(had_xid)
        self.nodes.show(plant.snapshot.node[0], plant.node[0], self.tick_s)
        self.nodes.show_stages(plant.node[0])
        self._post()
        limits, power_w = plant.limits[0, k], self._mean_power_w()
        t_s = (k + 1) * self.tick_s
        self.power_meter = self.power_meter.add(power_w, limits[:, DEMANDED], limits[:, IN_FORCE], t_s, self.tick_s)
        epoch, fallback_w = self.nodes.owned()
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

    def _pass_on_faults(self, had_xid: np.ndarray) -> None:
        """What broke in the plant is seen by the driver, and what was repaired comes back.

        The host stays up, whatever broke: its agent would otherwise have to be taken away and brought back.
        """
        node = self.plant.node[0]
        node["agent_down"] = 0
        for i in np.flatnonzero(~had_xid & (node["xid"] != 0)):
            self.nodes.raise_xid(int(i), 0, int(node["xid"][i]))
        for i in np.flatnonzero(had_xid & (node["xid"] == 0)):
            self.nodes.repair(int(i))

    def _status(self, epoch: np.ndarray, fallback_w: np.ndarray) -> np.ndarray:
        """What holds every node's cap, shape (N,)."""
        assert self.reporter is not None
        is_served = self.reporter.seen is not None and epoch >= self.reporter.seen["epoch"]
        # a lease lives on for its time after the last answer, give or take a tick
        is_dead = time.monotonic() - self.reporter.seen_s > self.fleet.timing.lease_ttl_s - self.tick_s
        is_low = is_dead & (self._cap_w <= np.maximum(fallback_w, self.nodes.floors_w()))
        drained = np.array([is_drained for _, is_drained in self.nodes.commands])
        status = np.where(drained, DRAINED, LEASED)
        status = np.where(~is_served & is_low, FALLEN, status)
        return np.where(epoch < 1, UNLEASED, status).astype(np.int64)

    def _interventions(self) -> float:
        seen = self.reporter.seen if self.reporter else None
        return math.nan if seen is None else float(sum(r != Reason.GRANTED.name for r in seen["nodes"]["reason"]))

    # ── what the service is told ────────────────────────────────────────────────────────────────────────
    def _post(self) -> None:
        assert self.reporter is not None
        self.reporter.telemetry(telemetry(self.fleet, self.plant.snapshot))

    def _announce(self, t_s: float) -> None:
        assert self.reporter is not None
        while self.due and self.due[0].at_s <= t_s:
            self.reporter.load_target(self.due.pop(0).message(t_s))

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
