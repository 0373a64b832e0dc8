"""One live run in progress: what the script has happen at which moment, and what was seen of it."""

import math
import time
from dataclasses import dataclass, field

import numpy as np

from ...fleet.topology import Fleet
from ..emulation.announcements import event_id
from ..emulation.emulation import Emulation
from ..emulation.second import Second
from ..processes import ServiceProcess
from .result import Happening
from .script import LiveScript

LATEST_KILL = 0.8
"""Share of the grace after which the service is killed even if a cap still stands above the cut."""


@dataclass
class Director:
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
        self.last_cap_w = self.emulation.nodes.caps_w()

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
        cordoned, drained = self.emulation.nodes.ordered(self.xid_node)
        if cordoned and drained:
            name, took_s = self.fleet.nodes[self.xid_node].name, t_s - self.times["xid"]
            self.note("fault", t_s, f"{name} is cordoned and drained, {took_s:.1f} s after its XID", "cordoned")

    def _watch_events(self, t_s: float) -> None:
        reporter, script = self.emulation.reporter, self.script
        assert reporter is not None
        for i, (frac, start_s) in enumerate(
            ((script.first_frac, script.first_cut_s), (script.second_frac, script.second_cut_s))
        ):
            at_s = reporter.accepted.get(event_id(self.emulation.scenario, i))
            if at_s is None:
                continue
            notice = f"{script.notice_s:g} s ahead" if i == 0 else "without notice"
            text = f"a cut to {100 * frac:.0f} % from {start_s:g} s on is announced {notice} and accepted"
            self.note("budget", at_s - self.began_s, text, f"accepted {i}")

    def _kill(self, t_s: float) -> None:
        """During the second cut: after it was accepted, before its grace is over."""
        script = self.script
        if "accepted 1" not in self.times:
            return
        cap_w = self.emulation.nodes.caps_w()
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
        fallback_w = self.emulation.nodes.owned()[1]
        cap_w = self.emulation.nodes.caps_w()
        least_w = np.maximum(fallback_w, self.emulation.nodes.floors_w())
        if (cap_w <= least_w).all():
            took_s = t_s - self.times["killed"]
            total_kw = self.emulation.bounds_w(cap_w)[0] / 1e3
            text = f"every node is at its fallback, {took_s:.1f} s after the kill: {total_kw:.1f} kW at most"
            self.note("node", t_s, text, "fallen")

    def _watch_return(self, t_s: float) -> None:
        """Which nodes obey the new service, and whether any cap rose before its node did."""
        epoch_before = self.times.get("epoch")
        cap_w = self.emulation.nodes.caps_w()
        rose = np.zeros(len(cap_w), bool) if self.last_cap_w is None else cap_w > self.last_cap_w
        # read after the caps: an agent writes its state before the caps that go with it
        epoch = self.emulation.nodes.owned()[0]
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
