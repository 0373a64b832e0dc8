"""The live part of the demo: service, agents and emulated GPUs close the loop and survive a fault, cuts and a kill."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..envs.scenario import BudgetEvent, Scenario
from ..fleet.errors import BadInput
from ..fleet.topology import Fleet
from ..serving.auth import read_secrets
from ..serving.explain import explain
from ..serving.store import open_store
from .emulate import DRAINED, FALLEN, Emulation, Second, site_scenario
from .processes import ServiceFailed, ServiceProcess

Progress = Callable[[str, float], None]

LATEST_KILL = 0.8
"""Share of the grace after which the service is killed even if a cap still stands above the cut."""


@dataclass(frozen=True)
class LiveScript:
    """What happens in a live run, and when, in seconds from the start of the plant.

    Attributes:
        seconds: Length.
        xid_at_s: A GPU falls off the bus.
        first_cut_s: The first cut starts.
        notice_s: How long before its start it is announced.
        second_cut_s: The second cut starts, without notice; the service is killed during it.
        restart_s: The service starts again.
        lift_s: The nominal limit returns.
        first_frac: Limit after the first cut, as a share of the nominal one.
        second_frac: Limit after the second.
        xid: What is injected.
        settle_s: Between the first leases and the start, so that the run does not begin at the lowest caps.
        site: Site file or name.
        scenario: Whose load and plant are taken.
        kill_after_s: After the second cut; None for the moment at which the caps fit it.
    """

    seconds: float = 150.0
    xid_at_s: float = 12.0
    first_cut_s: float = 82.0
    notice_s: float = 60.0
    second_cut_s: float = 100.0
    restart_s: float = 114.0
    lift_s: float = 132.0
    first_frac: float = 0.85
    second_frac: float = 0.70
    xid: int = 79
    settle_s: float = 6.0
    site: str = "demo-16"
    scenario: str = "demo"
    kill_after_s: float | None = None

    def make_scenario(self) -> Scenario:
        """The scenario that the plant plays."""
        events = (
            BudgetEvent(self.first_frac, self.first_cut_s, "", self.notice_s, self.lift_s - self.first_cut_s),
            BudgetEvent(self.second_frac, self.second_cut_s, "", 0.0, self.lift_s - self.second_cut_s),
        )
        return site_scenario(
            self.site,
            self.scenario,
            name="live",
            summary="A lost GPU, a cut with notice, one without, a killed service and its return.",
            seconds=self.seconds,
            warmup_s=0.0,
            events=events,
        )


FULL = LiveScript()
QUICK = LiveScript(
    seconds=60.0,
    xid_at_s=4.0,
    first_cut_s=22.0,
    notice_s=10.0,
    second_cut_s=28.0,
    restart_s=38.0,
    lift_s=49.0,
    settle_s=4.0,
)


@dataclass(frozen=True)
class Happening:
    """Something that happened, for people.

    Attributes:
        t_s: From the start of the plant.
        kind: budget, fault, service, node or limit.
        text: What.
    """

    t_s: float
    kind: str
    text: str


@dataclass(frozen=True)
class LiveResult:
    """What a live run found.

    Attributes:
        site, nodes, gpus, nominal_w, grace_s, lease_ttl_s: Of the site; `gpus` per node.
        cuts: {"start_s", "notice_s", "limit_frac", "end_s"} of each.
        kpis: Of the contract, and those of `Emulation.kpis`, and what this run asks.
        series: Once per second: `t_s`, `demanded_w`, `in_force_w`, `power_w`, `bound_w` (T,) of the root;
            `cap_w`, `status`, `epoch` (T, N) of the nodes.
        events: In order.
        explanations: Sentences of `flyball explain` about the run.
    """

    scenario: str
    policy: str
    load: str
    load_scale: float
    seed: int
    site: str
    nodes: tuple[str, ...]
    gpus: tuple[int, ...]
    nominal_w: float
    grace_s: float
    lease_ttl_s: float
    cuts: tuple[dict[str, float], ...]
    kpis: dict[str, float]
    series: dict[str, np.ndarray]
    events: tuple[Happening, ...]
    explanations: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "series": {name: values.tolist() for name, values in self.series.items()}}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "LiveResult":
        """The inverse of `to_dict`, from JSON or not."""
        return cls(
            **{
                **content,
                "nodes": tuple(content["nodes"]),
                "gpus": tuple(content["gpus"]),
                "cuts": tuple(content["cuts"]),
                "series": {name: np.array(values) for name, values in content["series"].items()},
                "events": tuple(Happening(**e) for e in content["events"]),
                "explanations": tuple(content["explanations"]),
            }
        )

    def summary(self) -> dict[str, Any]:
        """What `flyball demo --json` prints of it."""
        keys = ("scenario", "policy", "load", "load_scale", "seed", "kpis")
        events = [asdict(e) for e in self.events]
        return {**{k: getattr(self, k) for k in keys}, "events": events, "explanations": list(self.explanations)}


@dataclass
class _Run:
    """One live run in progress: what the script does at which moment, and what was seen."""

    script: LiveScript
    service: ServiceProcess
    emulation: Emulation
    began_s: float = 0.0
    began_unix_s: float = 0.0
    events: list[Happening] = field(default_factory=list)
    seconds: list[Second] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    resynced_s: dict[int, float] = field(default_factory=dict)
    early_rises: int = 0
    xid_node: int = 0
    last_cap_w: np.ndarray | None = None

    @property
    def fleet(self) -> Fleet:
        return self.emulation.fleet

    def note(self, kind: str, t_s: float, text: str, name: str | None = None) -> None:
        """Record what happened; a name makes it happen once."""
        if name is not None:
            if name in self.times:
                return
            self.times[name] = t_s
        self.events.append(Happening(round(t_s, 2), kind, text))

    # ── what happens, ten times a second ────────────────────────────────────────────────────────────────
    def look(self, t_s: float) -> None:
        """Do what is due, and watch."""
        script = self.script
        if t_s >= script.xid_at_s and "xid" not in self.times:
            self._inject(t_s)
        if "xid" in self.times and "cordoned" not in self.times:
            self._watch_cordon(t_s)
        self._watch_events(t_s)
        if t_s >= script.second_cut_s and "killed" not in self.times:
            self._kill(t_s)
        if "killed" in self.times:
            self._watch_fallback(t_s)
        if t_s >= script.restart_s and "killed" in self.times and "restarting" not in self.times:
            self.service.launch()
            self.note("service", t_s, "the service is started again on the same database", "restarting")
        if "restarting" in self.times and "listening" not in self.times and self.service.is_ready():
            self.note("service", t_s, f"the service listens again, epoch {self.service.epoch}", "listening")
        if "killed" in self.times:
            self._watch_return(t_s)
        self.last_cap_w = self.emulation.caps_w()

    def _inject(self, t_s: float) -> None:
        fleet, script = self.fleet, self.script
        # the last prefill node: any would do, and this one leaves the most to the others
        prefill = np.flatnonzero(fleet.node_static["stage"] == 0)
        self.xid_node = int(prefill[-1])
        name = fleet.nodes[self.xid_node].name
        gpu = fleet.nodes[self.xid_node].gpus // 2
        self.emulation.inject_xid(self.xid_node, gpu, script.xid)
        self.note("fault", t_s, f"XID {script.xid} on GPU {gpu} of {name}", "xid")

    def _watch_cordon(self, t_s: float) -> None:
        cordoned, drained = self.emulation.ordered(self.xid_node)
        if cordoned and drained:
            name, took_s = self.fleet.nodes[self.xid_node].name, t_s - self.times["xid"]
            self.note("fault", t_s, f"{name} is cordoned and drained, {took_s:.1f} s after its XID", "cordoned")

    def _watch_events(self, t_s: float) -> None:
        reporter, script = self.emulation.reporter, self.script
        assert reporter is not None
        for i, (frac, start_s) in enumerate(
            ((script.first_frac, script.first_cut_s), (script.second_frac, script.second_cut_s))
        ):
            at_s = reporter.accepted.get(self.emulation.event_id(i))
            if at_s is None:
                continue
            notice = f"{script.notice_s:g} s ahead" if i == 0 else "without notice"
            text = f"a cut to {frac:.0%} from {start_s:g} s on is announced {notice} and accepted"
            self.note("budget", at_s - self.began_s, text, f"accepted {i}")

    def _kill(self, t_s: float) -> None:
        """During the second cut: after it was accepted, before its grace is over."""
        script = self.script
        if "accepted 1" not in self.times:
            return
        cap_w = self.emulation.caps_w()
        nominal_w = self.fleet.domain_static["peak_w"][0]
        has_fitted = self.emulation.bounds_w(cap_w)[0] <= script.second_frac * nominal_w
        grace_s = self.fleet.timing.grace_s
        due_s = LATEST_KILL * grace_s if script.kill_after_s is None else script.kill_after_s
        if t_s - script.second_cut_s < due_s and not (has_fitted and script.kill_after_s is None):
            return
        self.service.kill()
        t_s = time.monotonic() - self.began_s
        after_s = t_s - script.second_cut_s
        self.note("service", t_s, f"the service is killed, {after_s:.1f} s into the second cut", "killed")

    def _watch_fallback(self, t_s: float) -> None:
        if "fallen" in self.times:
            return
        fallback_w = self.emulation.owned()[1]
        cap_w = self.emulation.caps_w()
        least_w = np.maximum(fallback_w, self.emulation.floors_w())
        if (cap_w <= least_w).all():
            took_s = t_s - self.times["killed"]
            total_kw = self.emulation.bounds_w(cap_w)[0] / 1e3
            text = f"every node is at its fallback, {took_s:.1f} s after the kill: {total_kw:.1f} kW at most"
            self.note("node", t_s, text, "fallen")

    def _watch_return(self, t_s: float) -> None:
        """Which nodes obey the new service, and whether any cap rose before its node did."""
        epoch_before = self.times.get("epoch")
        cap_w = self.emulation.caps_w()
        rose = np.zeros(len(cap_w), bool) if self.last_cap_w is None else cap_w > self.last_cap_w
        # read after the caps: an agent writes its state before the caps that go with it
        epoch = self.emulation.owned()[0]
        if epoch_before is None:
            epoch_before = self.times["epoch"] = float(epoch.max())
        is_back = epoch > epoch_before
        self.early_rises += int((rose & ~is_back).sum())
        for i in np.flatnonzero(is_back):
            self.resynced_s.setdefault(int(i), t_s)
        if is_back.all():
            self.note("node", t_s, "every node has resynchronised with the new service", "resynced")
        if (rose & is_back).any():
            self.note("node", t_s, "the first cap rises, under a lease of the new service", "risen")

    # ── what it came to ─────────────────────────────────────────────────────────────────────────────────
    def kpis(self) -> dict[str, float]:
        """KPIs of the contract, and what this run asks; NaN for what did not happen."""
        t, script = self.times, self.script

        def after(name: str, since: str) -> float:
            return t[name] - t[since] if name in t and since in t else math.nan

        given_w = self._given_w()
        return {
            **self.emulation.kpis(),
            "interventions": float(np.nansum([s.interventions for s in self.seconds])),
            "overshoot_allowed_ws": self.emulation.overshoot_allowed_ws,
            "grace_s": self.fleet.timing.grace_s,
            "cordon_s": after("cordoned", "xid"),
            "freed_w": given_w[0],
            "given_w": given_w[1],
            "kill_s": t["killed"] - script.second_cut_s if "killed" in t else math.nan,
            "fallback_s": after("fallen", "killed"),
            "restart_s": after("listening", "restarting"),
            "resync_s": after("resynced", "listening"),
            "rises_before_resync": float(self.early_rises),
            "epoch_before": t.get("epoch", math.nan),
            "epoch_after": float(self.service.epoch),
        }

    def _given_w(self) -> tuple[float, float]:
        """What the broken node's cap gave up and the others' caps gained: means before the fault and after it."""
        if "cordoned" not in self.times:
            return math.nan, math.nan
        # after the announced cut has begun to be met, caps fall for another reason
        until_s = self.script.first_cut_s - self.fleet.timing.grace_s - 2 * self.fleet.timing.tick_s
        before = [s.cap_w for s in self.seconds if s.t_s <= self.times["xid"]]
        after = [s.cap_w for s in self.seconds if self.times["cordoned"] + self.fleet.timing.grace_s < s.t_s <= until_s]
        if not before or not after:
            return math.nan, math.nan
        change_w = np.mean(after, 0) - np.mean(before, 0)
        return float(-change_w[self.xid_node]), float(change_w.sum() - change_w[self.xid_node])


def run_live(
    out: Path,
    policy: str,
    progress: Progress,
    load: str | None = None,
    script: LiveScript = FULL,
    seed: int = 1_000_000,
) -> LiveResult:
    """Start everything, let it all happen, and say what came of it.

    Args:
        out: Folder for the database, the emulated GPUs and the logs; what an earlier run left there goes.
        policy: As of the command line.
        progress: Called with a label and the share done.
        load: Trace or rate table; generated load if None.
        script: What happens when: `FULL`, `QUICK` or another.
        seed: Of load and of the plant's parameters.

    Raises:
        BadInput: an unknown site, policy or load file, or a part that could not be started.
        ServiceFailed: if the parts do not find each other.
    """
    scenario = script.make_scenario()
    out = fresh_folder(out)
    service = ServiceProcess(script.site, out, policy)
    progress("starting the service", 0.0)
    service.launch()
    try:
        return _run(script, scenario, service, out, load, seed, policy, progress)
    finally:
        service.stop()


def _run(
    script: LiveScript,
    scenario: Scenario,
    service: ServiceProcess,
    out: Path,
    load: str | None,
    seed: int,
    policy: str,
    progress: Progress,
) -> LiveResult:
    service.wait_ready()
    with Emulation(scenario, out, service.url, read_secrets(service.tokens), seed, load) as emulation:
        run = _Run(script, service, emulation)
        progress(f"{len(emulation.agents)} agents ask for leases", 0.0)
        emulation.wait_for_agents(emulation.has_leases)
        settled_s = time.monotonic() + script.settle_s
        emulation.wait_for_agents(lambda: time.monotonic() >= settled_s)
        run.began_s, run.began_unix_s = time.monotonic(), time.time()
        for second in emulation.run(script.seconds, run.look):
            run.seconds.append(second)
            label = run.events[-1].text if run.events else "running"
            progress(label, second.t_s / script.seconds)
        emulation.check_agents()
        refused = emulation.reporter.refused if emulation.reporter else []
        if refused:
            raise ServiceFailed(f"the service refused what the emulation said: {refused[0]}")
        kpis = run.kpis()
    service.stop()
    return _result(run, scenario, policy, seed, kpis, _explanations(run))


def _explanations(run: _Run) -> tuple[str, ...]:
    """What `flyball explain` says of the moments that matter."""
    moments = []
    if "cordoned" in run.times:
        moments.append((run.xid_node, run.times["cordoned"] + 2.0))
    other = 0 if run.xid_node else 1
    moments.append((other, run.script.first_cut_s + 1.0))
    if "fallen" in run.times:
        moments.append((other, run.times["fallen"] + 2.0))
    moments.append((other, run.script.seconds - 1.0))
    with open_store(run.service.db) as store:
        return tuple(
            explain(store, run.fleet.nodes[node].name, run.began_unix_s + t_s).sentence for node, t_s in moments
        )


def _result(
    run: _Run, scenario: Scenario, policy: str, seed: int, kpis: dict[str, float], explanations: tuple[str, ...]
) -> LiveResult:
    fleet, script, seconds = run.fleet, run.script, run.seconds
    root = {
        name: np.array([getattr(s, name)[0] for s in seconds])
        for name in ("demanded_w", "in_force_w", "power_w", "bound_w")
    }
    nodes = {name: np.array([getattr(s, name) for s in seconds]) for name in ("cap_w", "status", "epoch")}
    run.events.sort(key=lambda e: e.t_s)
    return LiveResult(
        scenario=scenario.name,
        policy=policy,
        load=run.emulation.load_source,
        load_scale=run.emulation.load_scale,
        seed=seed,
        site=fleet.name,
        nodes=tuple(n.name for n in fleet.nodes),
        gpus=tuple(n.gpus for n in fleet.nodes),
        nominal_w=float(fleet.domains[0].peak_w),
        grace_s=fleet.timing.grace_s,
        lease_ttl_s=fleet.timing.lease_ttl_s,
        cuts=(
            {
                "start_s": script.first_cut_s,
                "notice_s": script.notice_s,
                "limit_frac": script.first_frac,
                "end_s": script.lift_s,
            },
            {"start_s": script.second_cut_s, "notice_s": 0.0, "limit_frac": script.second_frac, "end_s": script.lift_s},
        ),
        kpis=kpis,
        series={"t_s": np.array([s.t_s for s in seconds]), **root, **nodes},
        events=tuple(run.events),
        explanations=explanations,
    )


LEFTOVERS = ("flyball.db", "flyball.db-wal", "flyball.db-shm", "service.log")


def fresh_folder(out: Path) -> Path:
    """A folder for one run: state of agents and of a service that were there before would be taken up.

    Raises:
        BadInput: if it cannot be made.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in (*(out / name for name in LEFTOVERS), *(out / "nodes").glob("*"), *(out / "state").glob("*")):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(f"{out}: {error.strerror}; choose another --out") from None
    return out


def emulate_site(
    scenario: Scenario,
    out: Path,
    policy: str,
    mode: str,
    port: int,
    seed: int,
    load: str | None,
    say: Callable[[str], None],
    status: TextIO,
) -> dict[str, Any]:
    """Run a whole fleet until its time is over or Ctrl-C; what `flyball emulate` calls.

    Args:
        say: Called with lines for people.
        status: Where the line that is written over and over goes.

    Returns:
        {"site", "scenario", "policy", "mode", "load", "load_scale", "seed", "url", "db", "seconds", "kpis"}.
    """
    out = fresh_folder(out)
    service = ServiceProcess(str(scenario.site), out, policy, mode, port)
    done_s, url = 0.0, ""
    try:
        service.start()
        url = service.url
        with Emulation(scenario, out, url, read_secrets(service.tokens), seed, load) as emulation:
            say(f"dashboard: {url}/   (database {service.db}, logs in {out})")
            is_ready = emulation.has_leases if mode == "enforce" else emulation.has_answers
            try:
                emulation.wait_for_agents(is_ready)
                say(f"{len(emulation.agents)} agents on {len(emulation.gpus)} nodes; Ctrl-C stops everything")
                for second in emulation.run(scenario.seconds):
                    done_s = second.t_s
                    _show(status, second, service.is_running)
            except KeyboardInterrupt:
                say("\nstopping")
            result = {
                "site": scenario.fleet.name,
                "scenario": scenario.name,
                "policy": policy,
                "mode": mode,
                "load": emulation.load_source,
                "load_scale": emulation.load_scale,
                "seed": seed,
                "url": url,
                "db": service.db,
                "seconds": done_s,
                "kpis": emulation.kpis(),
            }
    finally:
        service.stop()
    return result


def _show(status: TextIO, second: Second, is_served: bool) -> None:
    """One line, written over the last one on a terminal."""
    drained, fallen = int((second.status == DRAINED).sum()), int((second.status == FALLEN).sum())
    line = (
        f"{second.t_s:6.0f} s  {second.power_w[0] / 1e3:6.1f} kW drawn, {second.bound_w[0] / 1e3:6.1f} kW possible, "
        f"limit {second.in_force_w[0] / 1e3:6.1f} kW"
    )
    line += f", {drained} drained" if drained else ""
    line += f", {fallen} at their fallback" if fallen else ""
    line += "" if is_served else ", NO SERVICE"
    if status.isatty():
        status.write(f"\r\x1b[K{line}")
    elif round(second.t_s) % 10 == 0:
        status.write(f"{line}\n")
    status.flush()
