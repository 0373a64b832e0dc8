"""What a picture shows: the last minutes of one environment, and what happened in them."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from ..fleet.plan import Shed
from ..fleet.tables import NEVER_S, PARKED
from .core import Core

WINDOW_S = 300.0
"""History kept."""

STAGE_WORDS = ("prefill", "decode", "parked")

SHED_WORDS = {
    Shed.EMERGENCY_CAP: "decode floors given up",
    Shed.PARK: "nodes parked to fit the limit",
    Shed.INFEASIBLE: "the limit is below what parked nodes draw",
}


@dataclass(frozen=True)
class Moment:
    """Something worth a mark.

    Attributes:
        time_s: When it was seen.
        kind: "limit", "notice", "fault", "repair", "move", "trip" or "shed".
        text: For people.
        label: Short, for the chart; empty for none.
    """

    time_s: float
    kind: str
    text: str
    label: str = ""


@dataclass(frozen=True)
class Row:
    """One control interval.

    Attributes:
        time_s: Its end.
        power_w: Site power.
        demanded_w: The root limit demanded.
        in_force_w: The root limit in force.
        ttft: Mean TTFT over its target, the worst service's.
        itl: The same of ITL.
        queue: The same of the wait that the prefill queue means.
        good_tok_s: Tokens of requests that met their targets.
        spoilt_tok_s: Tokens rejected, lost or late.
    """

    time_s: float
    power_w: float
    demanded_w: float
    in_force_w: float
    ttft: float
    itl: float
    queue: float
    good_tok_s: float
    spoilt_tok_s: float


class History:
    """Rows and moments of one environment of a core; call `note` after every step."""

    def __init__(self, core: Core, env: int = 0):
        self.core, self.env = core, env
        steps = round(WINDOW_S / core.fleet.timing.control_s)
        self.rows: deque[Row] = deque(maxlen=steps + 1)
        self.moments: deque[Moment] = deque(maxlen=40)
        self._before: dict = {}

    def start(self) -> None:
        """Forget everything; the present is where differences are taken from."""
        self.rows.clear()
        self.moments.clear()
        self._before = self._look()

    def note(self) -> None:
        """Keep what the last step did."""
        now, before = self._look(), self._before or self._look()
        self._before = now
        dt_s = max(now["time_s"] - before["time_s"], 1e-9)
        fleet, heard = self.core.fleet, self.core.plant.snapshot.service[self.env]
        targets = fleet.service_static
        serving = now["tokens"] - before["tokens"]
        self.rows.append(
            Row(
                now["time_s"],
                now["power_w"],
                now["demanded_w"],
                now["in_force_w"],
                _worst(heard["ttft_s"], targets["ttft_s"]),
                _worst(heard["itl_s"], targets["itl_s"]),
                _worst(heard["backlog_s"], targets["ttft_s"]),
                float(serving[0] / dt_s),
                float(serving[1] / dt_s),
            )
        )
        self._limits(before, now)
        self._nodes(before, now)

    def _look(self) -> dict:
        plant, b = self.core.plant, self.env
        tick = max(int(plant.tick[b]) - 1, 0)
        node, s = plant.node[b], plant.service[b]
        told = plant.snapshot.domain[b, 0]
        spoilt = float((s["late_tok"] + s["rejected_tok"] + s["lost_tok"]).sum())
        return {
            "time_s": float(plant.time_s[b]),
            "ticks": int(plant.tick[b]),
            "power_w": float(plant.domain["power_w"][b, 0]),
            "demanded_w": float(plant.limits[b, tick, 0, 0]),
            "in_force_w": float(plant.limits[b, tick, 0, 1]),
            "limits_w": plant.limits[b, tick, :, 0].copy(),
            "notice_s": float(told["next_in_s"]),
            "next_w": float(told["next_limit_w"]),
            "tokens": np.array([float((s["served_tok"] - s["late_tok"]).sum()), spoilt]),
            "stage": node["stage"].copy(),
            "is_down": node["down_s"] > 0,
            "xid": node["xid"].copy(),
            "is_tripped": plant.domain["is_tripped"][b].copy(),
            "shed": int(plant.plan.fleet["shed_level"][b]),
        }

    def _add(self, kind: str, text: str, label: str = "", time_s: float | None = None) -> None:
        self.moments.append(Moment(self._before["time_s"] if time_s is None else time_s, kind, text, label))

    def limit_steps(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """The root's limit demanded and in force over the rows kept: (time, watts) at every change and at the ends."""
        plant, tick_s = self.core.plant, self.core.fleet.timing.tick_s
        if not self.rows:
            return [], []
        end = int(plant.tick[self.env])
        start = max(end - round((self.rows[-1].time_s - self.rows[0].time_s) / tick_s), 0)
        out: list[list[tuple[float, float]]] = []
        for column in (0, 1):
            watts = plant.limits[self.env, start : max(end, start + 1), 0, column].astype(float)
            at = [0, *(np.flatnonzero(np.diff(watts)) + 1)]
            now_s = float(plant.time_s[self.env])
            out.append([*((now_s - (end - start - i) * tick_s, watts[i]) for i in at), (now_s, watts[-1])])
        return out[0], out[1]

    def _limits(self, before: dict, now: dict) -> None:
        fleet, plant = self.core.fleet, self.core.plant
        ticks = slice(int(before["ticks"]), int(now["ticks"]))
        for d, domain in enumerate(fleet.domains):
            was, is_ = int(before["limits_w"][d]), int(now["limits_w"][d])
            if was == is_:
                continue
            share = is_ / domain.peak_w - 1.0
            label = f"{share:+.0%}".replace("-", "−") if is_ < domain.peak_w else "full"
            where = "site limit" if d == 0 else f"limit of {domain.name}"
            text = f"{where} {label} of nominal" if is_ < domain.peak_w else f"{where} back to nominal"
            last = self.moments[-1] if self.moments else None
            is_same = last is not None and last.kind == "limit" and last.text.startswith(where)
            if is_same and last and now["time_s"] - last.time_s <= 2 * fleet.timing.control_s:
                self.moments.pop()  # a ramp is one event
            changed = np.flatnonzero(plant.limits[self.env, ticks, d, 0] != was)
            self._add("limit", text, label, before["time_s"] + float(changed[0]) * fleet.timing.tick_s)
        if now["notice_s"] < NEVER_S and before["notice_s"] >= NEVER_S:
            next_share = f"{now['next_w'] / fleet.domains[0].peak_w - 1:+.0%}".replace("-", "−")
            at_s = now["time_s"] + now["notice_s"]
            clock = f"{int(at_s) // 60}:{int(at_s) % 60:02d}"
            self._add("notice", f"announced: site limit {next_share} from {clock}", "notice")

    def _nodes(self, before: dict, now: dict) -> None:
        fleet = self.core.fleet

        def who(mask: np.ndarray) -> str:
            index = np.flatnonzero(mask)
            return fleet.nodes[int(index[0])].name if len(index) == 1 else f"{len(index)} nodes"

        for d in np.flatnonzero((now["is_tripped"] > 0) & (before["is_tripped"] == 0)):
            self._add("trip", f"breaker of {fleet.domains[int(d)].name} tripped", "trip")
        broke = now["is_down"] & ~before["is_down"]
        if broke.any():
            xids = sorted({int(x) for x in now["xid"][broke] if x})
            self._add("fault", f"{who(broke)} down" + (f" (XID {xids[0]})" if len(xids) == 1 else ""), "fault")
        mended = ~now["is_down"] & before["is_down"]
        if mended.any():
            self._add("repair", f"{who(mended)} back")
        for stage, word in enumerate(STAGE_WORDS):
            moved = (now["stage"] == stage) & (before["stage"] != stage) & ~broke
            if moved.any():
                self._add("move", f"{who(moved)}: {'park' if stage == PARKED else 'load ' + word}")
        if now["shed"] > before["shed"] and now["shed"] in SHED_WORDS:
            self._add("shed", SHED_WORDS[Shed(now["shed"])], "shed")


def _worst(values: np.ndarray, targets: np.ndarray) -> float:
    """Largest of the values over their targets; 0 where none of them is known."""
    known = np.isfinite(values) & (targets > 0)
    return float((values[known] / targets[known]).max()) if known.any() else 0.0
