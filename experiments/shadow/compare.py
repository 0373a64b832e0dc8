"""What was done beside what would have been done: where the two disagree, by how much, and what bound the proposal."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ...fleet.plan import Reason
from ...fleet.tables import DECODE, NEVER_S, PARKED, PREFILL
from ..charts import REASON_WORDS
from .log import Shadow

DIFFER_FRAC = 0.02
"""Caps that differ by less than this share of the largest legal cap agree: the driver's own regulation is as coarse."""

TOP = 8
"""Nodes and moments told one by one."""

BINS = 480
HEAT_BINS, HEAT_NODES = 160, 48

STAGES = {PREFILL: "prefill", DECODE: "decode", PARKED: "parked"}
WORDS = {Reason.GRANTED: "its bid was granted as it was", **REASON_WORDS}
"""Why a proposed cap is what it is, for people."""


def kilowatts(power_w: float, is_signed: bool = False) -> str:
    """Watts for people; kW from 10 kW on."""
    sign = "+" if is_signed else ""
    text = f"{power_w / 1e3:{sign},.1f} kW" if abs(power_w) >= 1e4 else f"{power_w:{sign},.0f} W"
    return text.replace("-", "−")


def clock(time_s: float) -> str:
    """A moment in UTC, for people."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count != 1 else ''}"


class Comparison:
    """Both sides' caps as arrays, and the tables made of them; rows of a start of the service are left out."""

    def __init__(self, shadow: Shadow):
        self.shadow, self.fleet = shadow, shadow.fleet
        log, static = shadow.log, shadow.fleet.node_static
        self.static = static
        self.known = shadow.known & shadow.is_settled[:, None]
        self.weight_s = np.broadcast_to(shadow.weight_s[:, None], self.known.shape)
        self.stage = log.node["stage"]
        self.incumbent_w, self.proposed_w = log.incumbent_cap_w, log.proposed_cap_w
        self.diff_w = np.where(self.known, self.proposed_w - self.incumbent_w, 0).astype(float)
        self.is_cap = np.abs(self.diff_w) > DIFFER_FRAC * static["cap_max_w"]
        self.is_stage = self.known & (log.plan["stage"] != self.stage)
        self.differs = self.is_cap | self.is_stage
        self.reason = log.plan["reason"]

    # ── tables ──────────────────────────────────────────────────────────────────────────────────────────
    def tables(self) -> dict[str, Any]:
        """Everything that the report says of the two sides."""
        return {
            "node_hours": self._hours(self.known),
            "differs_frac": self._share(self.differs, self.known),
            "cap_differs_frac": self._share(self.is_cap, self.known),
            "stage_differs_frac": self._share(self.is_stage, self.known),
            "lower_frac": self._share(self.is_cap & (self.diff_w < 0), self.known),
            "higher_frac": self._share(self.is_cap & (self.diff_w > 0), self.known),
            "by_stage": self._by_stage(),
            "stage_moves": self._stage_moves(),
            "by_domain": self._by_domain(),
            "by_reason": self._by_reason(),
            "nodes": self._nodes(),
            "moments": self._moments(),
        }

    def _hours(self, where: np.ndarray) -> float:
        return float(self.weight_s[where].sum()) / 3600.0

    def _share(self, part: np.ndarray, whole: np.ndarray) -> float | None:
        total = float(self.weight_s[whole].sum())
        return float(self.weight_s[part & whole].sum()) / total if total > 0 else None

    def _mean(self, values: np.ndarray, where: np.ndarray) -> float:
        return float(np.average(values[where], weights=self.weight_s[where]))

    def _by_stage(self) -> list[dict[str, Any]]:
        out = []
        gpus = self.static["gpus"]
        for s, service in enumerate(self.fleet.services):
            for stage, name in STAGES.items():
                here = self.known & (self.static["service"] == s) & (self.stage == stage)
                if not here.any():
                    continue
                out.append(
                    {
                        "service": service.name,
                        "stage": name,
                        "node_hours": self._hours(here),
                        "incumbent_w_gpu": self._mean(self.incumbent_w / gpus, here),
                        "proposed_w_gpu": self._mean(self.proposed_w / gpus, here),
                        "differs_frac": self._share(self.differs, here),
                        "lower_frac": self._share(self.is_cap & (self.diff_w < 0), here),
                        "higher_frac": self._share(self.is_cap & (self.diff_w > 0), here),
                        "move_frac": self._share(self.is_stage, here),
                    }
                )
        return out

    def _stage_moves(self) -> list[dict[str, Any]]:
        """Proposed changes of stage by kind, in node-hours for which they stood."""
        out = []
        plan = self.shadow.log.plan["stage"]
        for a, from_name in STAGES.items():
            for b, to_name in STAGES.items():
                where = self.is_stage & (self.stage == a) & (plan == b)
                if where.any():
                    out.append({"from": from_name, "to": to_name, "node_hours": self._hours(where)})
        return sorted(out, key=lambda row: -row["node_hours"])

    def possible_w(self, cap_w: np.ndarray) -> np.ndarray:
        """Most that every domain could draw under caps, shape (T, D); unknown nodes count at their largest cap."""
        node_w = np.where(self.shadow.known, cap_w, self.static["cap_max_w"]) + self.static["non_gpu_max_w"]
        return np.stack(
            [node_w[:, d["node_start"] : d["node_end"]].sum(1) + d["unmanaged_w"] for d in self.fleet.domain_static],
            1,
        )

    def _by_domain(self) -> list[dict[str, Any]]:
        log, rows = self.shadow.log, self.shadow.is_settled
        weight_s = self.shadow.weight_s[rows]
        incumbent, proposed = self.possible_w(self.incumbent_w)[rows], self.possible_w(self.proposed_w)[rows]
        in_force = self.shadow.in_force_w[rows]
        meter = np.where(log.domain["meter_age_s"] <= self.fleet.timing.stale_s, log.domain["meter_w"], np.nan)[rows]
        out = []
        for d, domain in enumerate(self.fleet.domains):
            span = slice(self.fleet.domain_static["node_start"][d], self.fleet.domain_static["node_end"][d])
            here = np.zeros_like(self.known)
            here[:, span] = self.known[:, span]
            metered = np.isfinite(meter[:, d])
            over_w = np.where(metered, np.maximum(meter[:, d] - in_force[:, d], 0.0), 0.0)
            out.append(
                {
                    "domain": domain.name,
                    "depth": int(self.fleet.domain_static["depth"][d]),
                    "limit_w": float(np.average(in_force[:, d], weights=weight_s)),
                    "lowest_limit_w": int(in_force[:, d].min()),
                    "incumbent_w": float(np.average(incumbent[:, d], weights=weight_s)),
                    "proposed_w": float(np.average(proposed[:, d], weights=weight_s)),
                    "incumbent_over_frac": float(np.average(incumbent[:, d] > in_force[:, d], weights=weight_s)),
                    "proposed_over_frac": float(np.average(proposed[:, d] > in_force[:, d], weights=weight_s)),
                    "metered_w": float(np.average(meter[metered, d], weights=weight_s[metered]))
                    if metered.any()
                    else None,
                    "metered_over_ws": float((over_w * weight_s).sum()) if metered.any() else None,
                    "differs_frac": self._share(self.differs, here),
                }
            )
        return out

    def _by_reason(self) -> list[dict[str, Any]]:
        out = []
        total_s = float(self.weight_s[self.differs].sum())
        for reason in Reason:
            here = self.differs & (self.reason == reason)
            if not here.any():
                continue
            bound = self.shadow.log.plan["bound_domain"][here]
            named = Counter(self.fleet.domains[d].name for d in bound[bound >= 0].tolist())
            out.append(
                {
                    "reason": reason.name,
                    "words": WORDS[reason],
                    "frac": float(self.weight_s[here].sum()) / total_s,
                    "node_hours": self._hours(here),
                    "lower_hours": self._hours(here & (self.diff_w < 0)),
                    "higher_hours": self._hours(here & (self.diff_w > 0)),
                    "mean_diff_w": self._mean(self.diff_w, here),
                    "domains": [name for name, _ in named.most_common(3)],
                }
            )
        return sorted(out, key=lambda row: -row["node_hours"])

    def _nodes(self) -> list[dict[str, Any]]:
        """Nodes with the largest mean distance, and why."""
        total_s = np.maximum((self.weight_s * self.known).sum(0), 1e-9)
        distance_w = (np.abs(self.diff_w) * self.weight_s * self.differs).sum(0) / total_s
        out = []
        for i in np.argsort(-distance_w, kind="stable")[:TOP]:
            here = np.zeros_like(self.known)
            here[:, i] = self.differs[:, i]
            if not here.any():
                continue
            known = np.zeros_like(self.known)
            known[:, i] = self.known[:, i]
            row = {
                "node": self.fleet.nodes[i].name,
                "stage": STAGES[Counter(self.stage[:, i][self.known[:, i]].tolist()).most_common(1)[0][0]],
                "incumbent_w": self._mean(self.incumbent_w, known),
                "proposed_w": self._mean(self.proposed_w, known),
                "distance_w": float(distance_w[i]),
                "differs_frac": self._share(here, known),
                **self._why(here),
            }
            row["sentence"] = (
                f"{row['node']} ({row['stage']}) held {kilowatts(row['incumbent_w'])} on average and would have held "
                f"{kilowatts(row['proposed_w'])}; they differ {100 * row['differs_frac']:.0f} % of the time, mainly: "
                f"{row['because']}"
            )
            out.append(row)
        return out

    def _why(self, here: np.ndarray) -> dict[str, Any]:
        """The commonest reason among some disagreements, with the domain that bound and its limit then."""
        log = self.shadow.log
        reason = Reason(Counter(self.reason[here].tolist()).most_common(1)[0][0])
        rows, nodes = np.nonzero(here & (self.reason == reason))
        bound = log.plan["bound_domain"][rows, nodes]
        moves = int(self.is_stage[here].sum())
        domain, limit_w = None, None
        because = WORDS[reason]
        if (bound >= 0).any():
            d = Counter(bound[bound >= 0].tolist()).most_common(1)[0][0]
            at = rows[bound == d]
            domain, limit_w = self.fleet.domains[d].name, int(np.median(self._met_w(d)[at]))
            because = f"{because}: {domain} with {kilowatts(limit_w)}"
        if moves * 2 > here.sum():
            to = Counter(log.plan["stage"][here & self.is_stage].tolist()).most_common(1)[0][0]
            because = f"Flyball would move it to {STAGES[to]}; its cap: {because}"
        return {"reason": reason.name, "because": because, "domain": domain, "limit_w": limit_w}

    def _met_w(self, d: int) -> np.ndarray:
        """The limit that proposals had to meet, shape (T,): one announced to start at once counts already."""
        domain = self.shadow.log.domain[:, d]
        soon = domain["next_in_s"] <= self.fleet.timing.grace_s + 2 * self.fleet.timing.tick_s
        return np.where(soon, np.minimum(domain["limit_w"], domain["next_limit_w"]), domain["limit_w"])

    def _moments(self) -> list[dict[str, Any]]:
        """The rows at which the two sides are furthest apart, each the furthest of its neighbourhood."""
        log = self.shadow.log
        total_w = (np.abs(self.diff_w) * self.differs).sum(1)
        left = total_w.copy()
        apart_s = max(60.0, (log.time_s[-1] - log.time_s[0]) / (3 * TOP))
        out: list[dict[str, Any]] = []
        while len(out) < TOP and left.max() > 0:
            r = int(left.argmax())
            left[np.abs(log.time_s - log.time_s[r]) <= apart_s] = 0.0
            here = np.zeros_like(self.known)
            here[r] = self.differs[r]
            out.append(self._moment(r, here, float(total_w[r])))
        return sorted(out, key=lambda m: m["time_s"])

    def _moment(self, r: int, here: np.ndarray, total_w: float) -> dict[str, Any]:
        log = self.shadow.log
        up, down = int((self.diff_w[r] > 0)[here[r]].sum()), int((self.diff_w[r] < 0)[here[r]].sum())
        net_w = float(self.diff_w[r].sum())
        moves = int(self.is_stage[r].sum())
        row = {
            "time_s": float(log.time_s[r]),
            "time": clock(float(log.time_s[r])),
            "nodes": int(here[r].sum()),
            "higher": up,
            "lower": down,
            "moves": moves,
            "distance_w": total_w,
            "net_w": net_w,
            **self._why(here),
        }
        parts = [f"raise {_nodes(up)}" if up else "", f"lower {_nodes(down)}" if down else ""]
        parts = [p for p in parts if p]
        next_w, next_in_s = log.domain["next_limit_w"][r], log.domain["next_in_s"][r]
        soon = [
            f"; {self.fleet.domains[d].name} is to get {kilowatts(int(next_w[d]))} in {next_in_s[d]:.0f} s"
            for d in np.flatnonzero((next_in_s < NEVER_S) & (next_w != log.domain["limit_w"][r]))[:1]
        ]
        row["sentence"] = (
            f"Flyball would {' and '.join(parts) or 'move nodes'} by {kilowatts(total_w)} in all "
            f"(net {kilowatts(net_w, True)}"
            + (f", {moves} proposed to change stage" if moves else "")
            + f"), mainly: {row['because']}{soon[0] if soon else ''}"
        )
        return row

    # ── over time ───────────────────────────────────────────────────────────────────────────────────────
    def series(self) -> dict[str, list]:
        """Both sides over time, at most BINS points: means over bins, limits at their lowest."""
        log, shadow = self.shadow.log, self.shadow
        edges = np.linspace(0, len(log), min(BINS, len(log)) + 1).astype(int)[:-1]
        rows = np.diff(np.append(edges, len(log)))

        def mean(values: np.ndarray) -> list:
            finite = np.isfinite(values)
            count = np.add.reduceat(finite.astype(float), edges)
            total = np.add.reduceat(np.where(finite, values, 0.0), edges)
            return [float(t / c) if c else None for t, c in zip(total, count, strict=True)]

        settled = shadow.is_settled
        hidden = lambda values: np.where(settled, values, np.nan)  # noqa: E731
        meter = np.where(log.domain["meter_age_s"] <= self.fleet.timing.stale_s, log.domain["meter_w"], np.nan)[:, 0]
        out: dict[str, list] = {
            "time_s": log.time_s[edges].tolist(),
            "in_force_w": np.minimum.reduceat(shadow.in_force_w[:, 0], edges).tolist(),
            "incumbent_w": mean(self.possible_w(self.incumbent_w)[:, 0].astype(float)),
            "proposed_w": mean(hidden(self.possible_w(self.proposed_w)[:, 0].astype(float))),
            "metered_w": mean(meter),
            "differs_nodes": (np.add.reduceat(self.differs.sum(1), edges) / rows).tolist(),
        }
        gpus = self.static["gpus"]
        for stage in (PREFILL, DECODE):
            here = self.known & (self.stage == stage)
            count = (here * gpus).sum(1)
            for name, cap_w in (("incumbent", self.incumbent_w), ("proposed", self.proposed_w)):
                with np.errstate(invalid="ignore", divide="ignore"):
                    per_gpu = np.where(count > 0, (here * cap_w).sum(1) / count, np.nan)
                out[f"{name}_w_gpu:{STAGES[stage]}"] = mean(per_gpu)
        for reason in Reason:
            nodes = (self.differs & (self.reason == reason)).sum(1)
            if nodes.any():
                out[f"reason:{reason.name}"] = (np.add.reduceat(nodes, edges) / rows).tolist()
        return out

    def heat(self) -> dict[str, Any]:
        """Mean difference in watts per GPU, nodes by time; nodes that differ most where there are many."""
        log = self.shadow.log
        edges = np.linspace(0, len(log), min(HEAT_BINS, len(log)) + 1).astype(int)[:-1]
        distance = np.abs(self.diff_w).sum(0)
        shown = np.sort(np.argsort(-distance, kind="stable")[:HEAT_NODES])
        per_gpu = np.where(self.known, self.diff_w, np.nan)[:, shown] / self.static["gpus"][shown]
        finite = np.isfinite(per_gpu)
        count = np.add.reduceat(finite.astype(float), edges, axis=0)
        total = np.add.reduceat(np.where(finite, per_gpu, 0.0), edges, axis=0)
        means = np.where(count > 0, total / np.maximum(count, 1.0), np.nan)
        return {
            "nodes": [self.fleet.nodes[i].name for i in shown],
            "time_s": log.time_s[edges].tolist(),
            "w_gpu": [[round(v, 1) if np.isfinite(v) else None for v in row] for row in means.T.tolist()],
        }
