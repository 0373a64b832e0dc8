"""The picture of `render_mode="rgb_array"`: power tree, nodes, history, services and events of one environment."""

import math
from itertools import pairwise

import numpy as np

from ..fleet.tables import DECODE, PARKED, PREFILL
from .canvas import Canvas, width_of
from .core import Core
from .record import WINDOW_S, History, Row

WIDTH, HEIGHT = 1200, 720
LEFT, MIDDLE, RIGHT = 24, 500, 1176
INK, SOFT, FAINT, TRACK = "#1a1a1a", "#6b6b6b", "#d9d9d9", "#eef0f2"
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#9a9a9a",
)  # fmt: skip
"""Okabe and Ito's colours, which people of every colour vision tell apart."""

LIGHT_GREEN = "#7fceb9"

STAGE_COLOUR = {PREFILL: PURPLE, DECODE: GREEN, PARKED: GREY}
MOMENT_COLOUR = {
    "limit": INK, "notice": ORANGE, "fault": VERMILION, "trip": VERMILION, "shed": VERMILION, "repair": GREEN,
    "move": SKY,
}  # fmt: skip
MAX_DOMAINS, MAX_BARS, LAST_MOMENTS = 9, 64, 4


class Recorder:
    """Keeps the history of one environment and draws it.

    Args:
        core: Any core.
        env: Which of its environments.
        title: What the picture is called.
    """

    def __init__(self, core: Core, env: int = 0, title: str = "Flyball"):
        self.core, self.env, self.title = core, env, title
        self.history = History(core, env)

    def start(self) -> None:
        """An episode begins."""
        self.history.start()

    def note(self) -> None:
        """A step was made."""
        self.history.note()

    def frame(self) -> np.ndarray:
        """The present picture, shape (720, 1200, 3), uint8: equal states and histories give equal pictures."""
        c = Canvas(WIDTH, HEIGHT)
        self._header(c)
        self._nodes(c, self._tree(c, 122) + 34)
        rows = list(self.history.rows)
        panels = ((122, 306), (338, 470), (502, 596))
        self._moments(c, panels)
        self._power(c, *panels[0], rows)
        self._latency(c, *panels[1], rows)
        self._tokens(c, *panels[2], rows)
        self._services(c, 626)
        self._ticker(c, 626)
        return c.pixels()

    # ── header ───────────────────────────────────────────────────────────────────────────────────────────
    def _header(self, c: Canvas) -> None:
        core, b = self.core, self.env
        plant = core.plant
        c.text(LEFT, 28, self.title, size=19, is_bold=True)
        x = LEFT + width_of(self.title, 19, True) + 14
        c.text(x, 29, f"{core.scenario.name} on {core.fleet.name}", SOFT, 14)
        clock = f"{_clock(float(plant.time_s[b]))} of {_clock(core.scenario.seconds)}"
        c.text(RIGHT, 28, clock, size=16, anchor="rm", is_bold=True)
        kpis = core.kpis(b)
        tick = max(int(plant.tick[b]) - 1, 0)
        power_w, limit_w = float(plant.domain["power_w"][b, 0]), float(plant.limits[b, tick, 0, 1])
        violation = kpis["budget_violation_ws"]
        trips = int(kpis["breaker_trips"])
        chips = [
            ("site power", f"{power_w / 1e3:.1f} kW", VERMILION if power_w > limit_w else INK),
            ("limit in force", f"{limit_w / 1e3:.1f} kW", INK),
            ("goodput, Mtok/s/MW", _number(kpis["goodput_tok_s_per_mw"] / 1e6, "{:.3f}"), INK),
            ("requests in target", _number(kpis["slo_attainment_frac"], "{:.1%}"), INK),
            ("good tokens per joule", _number(kpis["tokens_per_joule"], "{:.2f}"), INK),
            ("above limits, kW s", f"{violation / 1e3:,.1f}", VERMILION if violation > 0 else INK),
            ("breaker trips", str(trips), VERMILION if trips else INK),
        ]
        width = (RIGHT - LEFT) / len(chips)
        for i, (label, value, colour) in enumerate(chips):
            x = LEFT + i * width
            c.line([(x, 50), (x, 90)], FAINT, 1)
            c.text(x + 10, 61, label, SOFT, 11)
            c.text(x + 10, 81, value, colour, 16, is_bold=True)

    # ── left: tree and nodes ─────────────────────────────────────────────────────────────────────────────
    def _tree(self, c: Canvas, top: float) -> float:
        """Draws the tree; returns where it ends."""
        core, b, fleet = self.core, self.env, self.core.fleet
        plant = core.plant
        tick = max(int(plant.tick[b]) - 1, 0)
        shown = list(range(len(fleet.domains)))
        if len(shown) > MAX_DOMAINS:  # the root, and those nearest to their limits
            load = plant.domain["power_w"][b] / np.maximum(plant.limits[b, tick, :, 1], 1)
            shown = [0, *sorted(np.argsort(-load[1:], kind="stable")[: MAX_DOMAINS - 1] + 1)]
        c.text(LEFT, top, "Power tree", size=13, is_bold=True)
        c.text(MIDDLE - 24, top, "draw | limit, kW", SOFT, 11, "rm")
        x0, x1 = LEFT + 104, MIDDLE - 128
        step = min(26.0, 240.0 / len(shown))
        for i, d in enumerate(shown):
            y = top + 24 + i * step
            peak_w = float(fleet.domains[d].peak_w)
            power_w = float(plant.domain["power_w"][b, d])
            demanded_w, in_force_w = (float(v) for v in plant.limits[b, tick, d])
            scale = (x1 - x0) / (1.08 * peak_w)
            indent = 9 * int(fleet.domain_static["depth"][d])
            c.text(LEFT + indent, y, _short(fleet.domains[d].name, 95 - indent), size=12)
            c.rectangle(x0, y - 7, x0 + peak_w * scale, y + 7, TRACK)
            is_tripped = bool(plant.domain["is_tripped"][b, d])
            colour = VERMILION if power_w > in_force_w else BLUE
            c.rectangle(x0, y - 7, x0 + min(power_w * scale, x1 - x0), y + 7, colour)
            c.line([(x0 + in_force_w * scale, y - 10), (x0 + in_force_w * scale, y + 10)], INK, 2)
            if demanded_w != in_force_w:
                c.line([(x0 + demanded_w * scale, y - 10), (x0 + demanded_w * scale, y + 10)], ORANGE, 2)
            says = "tripped" if is_tripped else f"{power_w / 1e3:.1f} | {in_force_w / 1e3:.1f}"
            c.text(MIDDLE - 24, y, says, VERMILION if is_tripped or power_w > in_force_w else INK, 12, "rm")
        y = top + 24 + len(shown) * step
        c.line([(x0 + 2, y - 5), (x0 + 2, y + 5)], INK, 2)
        c.text(x0 + 8, y, "limit in force", SOFT, 11)
        c.line([(x0 + 106, y - 5), (x0 + 106, y + 5)], ORANGE, 2)
        c.text(x0 + 112, y, "demanded, not yet in force", SOFT, 11)
        return y

    def _nodes(self, c: Canvas, top: float) -> None:
        core, b = self.core, self.env
        node, static = core.plant.node[b], core.fleet.node_static
        count = len(node)
        each = math.ceil(count / MAX_BARS)
        title = "Nodes: draw of the GPUs under their caps"
        c.text(LEFT, top, title, size=13, is_bold=True)
        if each > 1:
            c.text(MIDDLE - 24, top, f"a bar is {each} nodes", SOFT, 11, "rm")
        y0, y1 = top + 24, 562
        x0, x1 = LEFT + 34, MIDDLE - 24
        for share in (0.0, 0.5, 1.0):
            y = y1 - share * (y1 - y0)
            c.line([(x0, y), (x1, y)], FAINT, 1)
            c.text(x0 - 6, y, f"{share:.0%}", SOFT, 10, "rm")
        bars = math.ceil(count / each)
        pitch = (x1 - x0) / bars
        gap = min(4.0, 0.2 * pitch)
        for i in range(bars):
            group = slice(i * each, (i + 1) * each)
            tdp_w = float(static["cap_max_w"][group].sum())
            x, xe = x0 + i * pitch + gap / 2, x0 + (i + 1) * pitch - gap / 2
            draw = y1 - min(float(node["gpu_w"][group].sum()) / tdp_w, 1.1) * (y1 - y0)
            cap = y1 - float(node["cap_w"][group].sum()) / tdp_w * (y1 - y0)
            stages = np.bincount(node["stage"][group], minlength=3)
            is_moving = float((node["moving_s"][group] > 0).mean()) > 0.5
            is_down = float((node["down_s"][group] > 0).mean()) > 0.5
            colour = STAGE_COLOUR[int(stages.argmax())]
            c.rectangle(x, cap, xe, y1, TRACK)
            c.rectangle(x, draw, xe, y1, _light(colour) if is_moving or is_down else colour)
            c.line([(x - gap / 4, cap), (xe + gap / 4, cap)], INK, 1.5)
            mark = "×" if is_down else "→" if is_moving else "d" if node["is_drained"][group].any() else ""
            if mark and pitch >= 6:
                c.text((x + xe) / 2, y1 - 9, mark, VERMILION if is_down else INK, 13, "mm", True)
        self._brackets(c, y1 + 3, x0, (x1 - x0) / (bars * each))
        x = x0
        for word, colour in (("prefill", PURPLE), ("decode", GREEN), ("parked", GREY)):
            c.rectangle(x, 588, x + 10, 598, colour)
            c.text(x + 14, 593, word, SOFT, 11)
            x += 28 + width_of(word, 11)
        c.line([(x, 593), (x + 12, 593)], INK, 1.5)
        c.text(x + 16, 593, "cap", SOFT, 11)
        c.text(x + 48, 593, "→ loading   × down   d drained", SOFT, 11)

    def _brackets(self, c: Canvas, y: float, x0: float, pitch: float) -> None:
        """Which nodes stand under which domain, below their bars."""
        fleet = self.core.fleet
        domain = fleet.node_static["domain"]
        starts = [0, *(np.flatnonzero(np.diff(domain)) + 1), len(domain)]
        for start, end in pairwise(starts):
            xa, xb = x0 + start * pitch, x0 + end * pitch
            c.line([(xa + 3, y), (xb - 3, y)], GREY, 1)
            name = fleet.domains[int(domain[start])].name
            if width_of(name, 10) < xb - xa - 4:
                c.text((xa + xb) / 2, y + 9, name, SOFT, 10, "mm")

    # ── right: history ───────────────────────────────────────────────────────────────────────────────────
    @property
    def _x0(self) -> float:
        return MIDDLE + 62

    def _x(self, time_s: float) -> float:
        now_s = float(self.core.plant.time_s[self.env])
        return RIGHT - (now_s - time_s) / WINDOW_S * (RIGHT - self._x0)

    def _axes(self, c: Canvas, top: float, bottom: float, title: str, ticks: list[tuple[float, str]], legend) -> None:
        """Frame, title, legend and ticks; ticks are (share of the height from the bottom, label)."""
        c.text(MIDDLE + 14, top - 2, title, size=13, is_bold=True)
        x = float(RIGHT)
        for word, colour in reversed(legend):
            x -= width_of(word, 11)
            c.text(x, top - 2, word, SOFT, 11)
            x -= 18
            c.rectangle(x, top - 4, x + 13, top, colour)
            x -= 14
        for share, label in ticks:
            y = bottom - share * (bottom - top - 16)
            c.line([(self._x0, y), (RIGHT, y)], FAINT, 1)
            c.text(self._x0 - 7, y, label, SOFT, 10, "rm")

    def _plot(self, c, top, bottom, rows: list[Row], value, low, high, colour, width=2.0) -> None:
        """A line of one attribute; values outside are drawn at the edge."""
        points: list[tuple[float, float]] = []
        for row in rows:
            share = min(max((value(row) - low) / (high - low), 0.0), 1.0)
            points.append((self._x(row.time_s), bottom - share * (bottom - top - 16)))
        c.line(points, colour, width)

    def _power(self, c: Canvas, top: float, bottom: float, rows: list[Row]) -> None:
        nominal_w = float(self.core.fleet.domains[0].peak_w)
        most_w = max([nominal_w, *(r.power_w for r in rows)]) * 1.04
        least_w = min([0.75 * nominal_w, *(0.97 * r.power_w for r in rows), *(0.97 * r.demanded_w for r in rows)])
        span = most_w - least_w
        step_w = _nice(span / 4)
        ticks = [
            ((w - least_w) / span, f"{w / 1e3:g}")
            for w in np.arange(math.ceil(least_w / step_w) * step_w, most_w, step_w)
        ]
        legend = [("draw", BLUE), ("limit demanded", ORANGE), ("in force", INK)]
        self._axes(c, top, bottom, "Site power, kW", ticks, legend)
        self._plot(c, top, bottom, rows, lambda r: r.power_w, least_w, most_w, BLUE, 2.5)
        demanded, in_force = self.history.limit_steps()
        for steps, colour, width in ((demanded, ORANGE, 4.0), (in_force, INK, 1.5)):
            points: list[tuple[float, float]] = []
            for time_s, watts in steps:
                y = bottom - (watts - least_w) / span * (bottom - top - 16)
                points += [(self._x(time_s), points[-1][1])] if points else []
                points.append((self._x(time_s), y))
            c.line(points, colour, width)

    def _latency(self, c: Canvas, top: float, bottom: float, rows: list[Row]) -> None:
        low, high = math.log2(1 / 8), math.log2(8)
        ticks = [((math.log2(v) - low) / (high - low), w) for v, w in ((0.25, "¼"), (1, "1"), (4, "4"))]
        legend = [("TTFT", ORANGE), ("inter-token", BLUE), ("queue", GREY)]
        several = len(self.core.fleet.services) > 1
        title = "Latency / target, worst service" if several else "Latency / target"
        self._axes(c, top, bottom, title, ticks, legend)
        y = bottom - (-low) / (high - low) * (bottom - top - 16)
        c.line([(self._x0, y), (RIGHT, y)], INK, 1)
        c.text(RIGHT, y - 8, "target", INK, 10, "rm")
        for value, colour, width in (
            (lambda r: r.queue, GREY, 1.5),
            (lambda r: r.itl, BLUE, 2),
            (lambda r: r.ttft, ORANGE, 2),
        ):
            log = lambda r, value=value: math.log2(min(max(value(r), 1e-3), 1e3))  # noqa: E731 (used here alone)
            self._plot(c, top, bottom, rows, log, low, high, colour, width)

    def _tokens(self, c: Canvas, top: float, bottom: float, rows: list[Row]) -> None:
        most = max([1.0, *(r.good_tok_s + r.spoilt_tok_s for r in rows)]) * 1.05
        step = _nice(most / 3)
        ticks = [(v / most, f"{v / 1e3:g}") for v in np.arange(0.0, most, step)]
        self._axes(
            c,
            top,
            bottom,
            "Thousand tokens/s",
            ticks,
            [("in target", LIGHT_GREEN), ("rejected, late or lost", VERMILION)],
        )
        for before, row in pairwise(rows):
            x0, x1 = self._x(before.time_s), self._x(row.time_s)
            good = row.good_tok_s / most * (bottom - top - 16)
            bad = row.spoilt_tok_s / most * (bottom - top - 16)
            c.rectangle(x0, bottom - good, x1, bottom, LIGHT_GREEN)
            c.rectangle(x0, bottom - good - bad, x1, bottom - good, VERMILION)
        y = bottom + 12
        for back_s in range(0, round(WINDOW_S) + 1, 60):
            word = "now" if back_s == 0 else f"−{back_s // 60} min"
            c.text(RIGHT - back_s / WINDOW_S * (RIGHT - self._x0), y, word, SOFT, 10, "rm" if back_s == 0 else "mm")

    def _moments(self, c: Canvas, panels) -> None:
        """Dashed lines through all panels, labelled in the first."""
        now_s = float(self.core.plant.time_s[self.env])
        last_x = -1e9
        for moment in self.history.moments:
            if now_s - moment.time_s > WINDOW_S or not moment.label:
                continue
            x = self._x(moment.time_s)
            colour = MOMENT_COLOUR[moment.kind]
            for top, bottom in panels:
                c.dashes((x, top + (28 if top == panels[0][0] else 16)), (x, bottom), colour, 1.2)
            if x - last_x > 34:
                is_right = x > RIGHT - 44
                c.text(
                    x + (4 if is_right else -4), panels[0][0] + 20, moment.label, colour, 11, "rm" if is_right else "lm"
                )
                last_x = x

    # ── bottom ───────────────────────────────────────────────────────────────────────────────────────────
    def _services(self, c: Canvas, top: float) -> None:
        core, b = self.core, self.env
        heard, fleet = core.plant.snapshot.service[b], core.fleet
        serving = core.plant.serving_nodes()[b]
        heads = ("service", "nodes P | D", "TTFT s", "ITL ms", "queue s", "KV", "in target")
        xs = (LEFT, LEFT + 168, LEFT + 232, LEFT + 286, LEFT + 340, LEFT + 382, MIDDLE - 24)
        c.line([(LEFT, top - 12), (RIGHT, top - 12)], FAINT, 1)
        for x, head, anchor in zip(xs, heads, ("lm", *["rm"] * 6), strict=True):
            c.text(x, top, head, SOFT, 11, anchor)
        for s, service in enumerate(fleet.services[:3]):
            y, row = top + 20 + 19 * s, heard[s]
            target = fleet.service_static[s]
            ok = float(row["ttft_ok_frac"] * row["itl_ok_frac"] * (1.0 - row["reject_frac"]))
            cells = [
                (_short(service.name, 84), INK),
                (f"{serving[2 * s]} | {serving[2 * s + 1]}", INK),
                (_number(float(row["ttft_s"]), "{:.2f}"), VERMILION if row["ttft_s"] > target["ttft_s"] else INK),
                (_number(1e3 * float(row["itl_s"]), "{:.0f}"), VERMILION if row["itl_s"] > target["itl_s"] else INK),
                (_number(float(row["backlog_s"]), "{:.2f}"), INK),
                (_number(float(row["kv_frac"]), "{:.0%}"), INK),
                (_number(ok, "{:.0%}"), VERMILION if ok < 0.9 else INK),
            ]
            for x, (text, colour), anchor in zip(xs, cells, ("lm", *["rm"] * 6), strict=True):
                c.text(x, y, text, colour, 12, anchor)
        if len(fleet.services) > 3:
            c.text(LEFT, top + 77, f"and {len(fleet.services) - 3} more", SOFT, 11)

    def _ticker(self, c: Canvas, top: float) -> None:
        c.text(MIDDLE + 14, top, "events", SOFT, 11)
        moments = list(self.history.moments)[-LAST_MOMENTS:]
        for i, moment in enumerate(reversed(moments)):
            y = top + 20 + 19 * i
            c.rectangle(MIDDLE + 14, y - 5, MIDDLE + 24, y + 5, MOMENT_COLOUR[moment.kind])
            c.text(MIDDLE + 32, y, _clock(moment.time_s), SOFT, 12)
            c.text(MIDDLE + 84, y, moment.text, INK, 12)
        if not moments:
            c.text(MIDDLE + 14, top + 20, "nothing yet", SOFT, 12)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _number(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "–"


def _nice(step: float) -> float:
    """The next of 1, 2, 5 x a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(step, 1e-9)))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= step)


def _short(text: str, pixels: float) -> str:
    while width_of(text) > pixels and len(text) > 2:
        text = text[:-2] + "…"
    return text


def _light(colour: str) -> str:
    """Half way to white."""
    return "#" + "".join(f"{(int(colour[i : i + 2], 16) + 255) // 2:02x}" for i in (1, 3, 5))
