"""A shadow log as a report reads it: with its site, its gaps, its limits in force, and the quality of its data."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from ...fleet.errors import BadInput
from ...fleet.tables import NEVER_S, SERVICE_SNAPSHOT, UNKNOWN_W
from ...fleet.topology import Fleet, Node, PowerDomain, Service, Slo, Timing
from ...serving.shadow import ShadowLog, read_shadow_log
from ...serving.store import open_store

GAP_STEPS = 3.0
"""A pause longer than this many control intervals is a gap: nothing may be carried over it."""

START_S = 30.0
"""After a start of the service its arbiter raises caps from the smallest legal ones: left out of comparisons."""

JITTER_FRAC = 0.2
"""Rows off the control interval by more than this share count as irregular."""

GAPS_LISTED = 12

NODE_FEATURES = ("power_w", "demand_w", "util_frac", "clock_frac", "temp_c", "cap_w")
SERVICE_FEATURES = tuple(n for n in SERVICE_SNAPSHOT.names or () if n != "age_s")

CANNOT_JUDGE = {
    "node.power_w": "the draw of GPUs, and with it the check of the replay's power where there is no meter",
    "node.demand_w": "how many watts a node would use without a cap; the arbiter took its largest legal cap instead",
    "node.cap_w": "what the incumbent did: nodes without a read-back are left out",
    "domain.meter_w": "the site's true power: violations of the incumbent are judged in the plant only",
    "service.arrival_rps": "anything that needs the load: no replay",
    "service.prompt_tokens": "anything that needs the length of prompts: no replay",
    "service.output_tokens": "anything that needs the length of answers: no replay",
    "service.ttft_s": "whether the replay's time to first token is right",
    "service.itl_s": "whether the replay's time between tokens is right",
    "service.reject_frac": "whether the servers reject early; the replay assumes that they do",
}
"""What a report cannot say where a feature is missing throughout."""


@dataclass(frozen=True)
class Shadow:
    """A shadow log with its site.

    Attributes:
        log: Rows in the order of time.
        fleet: The site, rebuilt from the log.
        policy: {"name", "params"} of the policy that proposed.
        first_s: Time of the first row that the database holds.
        last_s: Time of the last.
        irregular: {"backwards", "duplicates"}: rows that the clock put out of order, before they were sorted.
    """

    log: ShadowLog
    fleet: Fleet
    policy: dict[str, Any]
    first_s: float
    last_s: float
    irregular: dict[str, int]

    @cached_property
    def known(self) -> np.ndarray:
        """Nodes with fresh telemetry and a cap read back, shape (T, N)."""
        node = self.log.node
        fresh = (node["is_silent"] == 0) & (node["age_s"] <= self.fleet.timing.stale_s)
        return fresh & (node["cap_w"] != UNKNOWN_W)

    @cached_property
    def is_settled(self) -> np.ndarray:
        """Rows at which the arbiter had left its start behind, shape (T,)."""
        starts = np.array([self.log.time_s[self.log.epoch == e].min() for e in np.unique(self.log.epoch)])
        began_s = starts[np.searchsorted(np.unique(self.log.epoch), self.log.epoch)]
        return self.log.time_s >= began_s + START_S

    @cached_property
    def weight_s(self) -> np.ndarray:
        """Time that each row stands for, shape (T,): until the next one, a control interval at gaps and at the end."""
        control_s = self.fleet.timing.control_s
        step_s = np.diff(self.log.time_s, append=self.log.time_s[-1] + control_s)
        return np.where(step_s > GAP_STEPS * control_s, control_s, step_s)

    @cached_property
    def runs(self) -> list[slice]:
        """Rows without a gap between them, oldest first."""
        cuts = np.flatnonzero(np.diff(self.log.time_s) > GAP_STEPS * self.fleet.timing.control_s) + 1
        edges = [0, *cuts.tolist(), len(self.log)]
        return [slice(a, b) for a, b in pairwise(edges)]

    @cached_property
    def in_force_w(self) -> np.ndarray:
        """Limits in force, shape (T, D): a cut that came without notice is in force after its grace."""
        out = self.log.domain["limit_w"].copy()
        for run in self.runs:
            part, time_s = self.log.domain[run], self.log.time_s[run]
            for d in range(out.shape[1]):
                limit_w = part["limit_w"][:, d]
                for r in np.flatnonzero(np.diff(limit_w) < 0) + 1:
                    if not was_announced(part[:, d], time_s, int(r), self.fleet.timing.grace_s):
                        until_s = time_s[r] + self.fleet.timing.grace_s
                        late = (time_s >= time_s[r]) & (time_s < until_s)
                        out[run, d][late] = np.maximum(out[run, d][late], limit_w[r - 1])
        return out


def was_announced(domain: np.ndarray, time_s: np.ndarray, row: int, grace_s: float) -> bool:
    """Whether the lower limit of a row was announced at least the grace ahead.

    Args:
        domain: `DOMAIN_SNAPSHOT` of one domain, shape (T,).
        time_s: Shape (T,).
        row: Where the limit is lower than in the row before.
        grace_s: Of an un-noticed cut.
    """
    before = domain[row - 1]
    if before["next_in_s"] >= NEVER_S or before["next_limit_w"] > domain["limit_w"][row]:
        return False
    starts_s = time_s[row - 1] + before["next_in_s"]
    first = row - 1
    while first > 0 and domain["next_in_s"][first - 1] < NEVER_S:
        first -= 1
    return bool(starts_s - time_s[first] >= grace_s)


def read_shadow(db_url: str, from_s: float | None, to_s: float | None) -> Shadow:
    """Read a time range of a shadow log.

    Raises:
        BadInput: no such database, a range without rows (with the range that has them), a site that changed within it.
    """
    if from_s is not None and to_s is not None and from_s >= to_s:
        raise BadInput(f"--from {from_s:.0f} is not before --to {to_s:.0f}; exchange them")
    with open_store(db_url) as store:
        epochs = {e.epoch: e for e in store.epochs()}
        span = store.shadow_span()
    if span is None:
        raise BadInput(f"{db_url} has no shadow log; run `flyball serve --mode shadow` on it first")
    low_s, high_s = (-1e18 if from_s is None else from_s), (1e18 if to_s is None else to_s)
    if low_s > span[1] or high_s <= span[0]:
        raise BadInput(
            f"the shadow log goes from {span[0]:.0f} to {span[1]:.0f} (Unix seconds); move --from/--to into it"
        )
    log = read_shadow_log(db_url, low_s, high_s)
    step_s = np.diff(log.time_s)
    irregular = {"backwards": int((step_s < 0).sum()), "duplicates": int((step_s == 0).sum())}
    log = _in_order(log)
    site = epochs[int(log.epoch[-1])].site
    policy = site.get("policy", {"name": log.policy})
    return Shadow(log, recorded_fleet(site, log.fleet_hash), policy, span[0], span[1], irregular)


def _in_order(log: ShadowLog) -> ShadowLog:
    """The rows in the order of time, each time once: the row that was written last counts."""
    order = np.argsort(log.time_s, kind="stable")
    time_s = log.time_s[order]
    kept = order[np.append(time_s[1:] != time_s[:-1], True)]
    rows = ("time_s", "epoch", "node", "domain", "service", "plan", "plan_fleet", "is_fallback")
    return replace(log, **{name: getattr(log, name)[kept] for name in rows})


def recorded_fleet(site: dict[str, Any], fleet_hash: str) -> Fleet:
    """The site as the service that wrote the log knew it.

    Raises:
        BadInput: if the log does not hold it, or this version reads it differently.
    """
    try:
        told = site["fleet"]
        fleet = Fleet.build(
            told["name"],
            [PowerDomain(**d) for d in told["domains"]],
            [Node(**n) for n in told["nodes"]],
            [Service(**{**s, "slo": Slo(**s["slo"])}) for s in told["services"]],
            timing=Timing(**told["timing"]),
            deepest_cut_frac=told["deepest_cut_frac"],
            max_drain_frac=told["max_drain_frac"],
        )
    except (KeyError, TypeError):
        fleet = None
    if fleet is None or fleet.hash != fleet_hash:
        raise BadInput("this log was written by another version of Flyball; report on it with that version")
    return fleet


# ── quality ─────────────────────────────────────────────────────────────────────────────────────────────
def data_quality(shadow: Shadow, from_s: float | None, to_s: float | None) -> dict[str, Any]:
    """How much of what should be in the log is there, and what cannot be judged because it is not.

    Args:
        shadow: The log.
        from_s: Start that was asked for; None for the log's.
        to_s: End that was asked for.
    """
    log, timing, fleet = shadow.log, shadow.fleet.timing, shadow.fleet
    step_s = np.diff(log.time_s)
    expected = round((log.time_s[-1] - log.time_s[0]) / timing.control_s) + 1
    is_gap = step_s > GAP_STEPS * timing.control_s
    is_off = ~is_gap & (np.abs(step_s - timing.control_s) > JITTER_FRAC * timing.control_s)
    gaps = [{"start_s": float(log.time_s[i]), "seconds": float(step_s[i])} for i in np.flatnonzero(is_gap)]
    features = _features(shadow)
    missing = [f["feature"] for f in features if f["missing_frac"] == 1.0]
    silent = log.node["is_silent"] == 1
    return {
        "rows": len(log),
        "expected_rows": int(expected),
        "coverage_frac": min(len(log) / expected, 1.0),
        "asked_from_s": from_s,
        "asked_to_s": to_s,
        "gaps": sorted(gaps, key=lambda g: -g["seconds"])[:GAPS_LISTED],
        "gap_count": len(gaps),
        "gap_s": float(sum(g["seconds"] for g in gaps)),
        "starts": len(np.unique(log.epoch)),
        "irregular_rows": int(is_off.sum()),
        "backwards": shadow.irregular["backwards"],
        "duplicates": shadow.irregular["duplicates"],
        "known_frac": float(shadow.known.mean()),
        "known_when_settled_frac": float(shadow.known[shadow.is_settled].mean()) if shadow.is_settled.any() else 0.0,
        "fallback_frac": float(log.is_fallback.mean()),
        "never_heard": [fleet.nodes[i].name for i in np.flatnonzero((log.node["age_s"] >= NEVER_S).all(0))],
        "silent_nodes": _worst_silent(shadow, silent),
        "features": features,
        "missing": missing,
        "cannot_judge": [{"feature": f, "text": CANNOT_JUDGE[f]} for f in missing if f in CANNOT_JUDGE],
    }


def _features(shadow: Shadow) -> list[dict[str, Any]]:
    """Missing and stale share of every feature over rows and tokens."""
    log, stale_s = shadow.log, shadow.fleet.timing.stale_s
    out = []
    for kind, table, names, age in (
        ("node", log.node, NODE_FEATURES, "age_s"),
        ("domain", log.domain, ("meter_w",), "meter_age_s"),
        ("service", log.service, SERVICE_FEATURES, "age_s"),
    ):
        is_never, is_stale = table[age] >= NEVER_S, table[age] > stale_s
        for name in names:
            values = table[name]
            absent = (values == UNKNOWN_W) if values.dtype.kind == "i" else ~np.isfinite(values)
            gone = absent | is_never
            out.append(
                {
                    "feature": f"{kind}.{name}",
                    "missing_frac": float(gone.mean()),
                    "stale_frac": float((~gone & is_stale).mean()),
                }
            )
    return out


def _worst_silent(shadow: Shadow, silent: np.ndarray, count: int = 8) -> list[dict[str, Any]]:
    """Nodes that were silent the longest, those never heard left out."""
    share = silent[shadow.is_settled].mean(0) if shadow.is_settled.any() else silent.mean(0)
    order = [i for i in np.argsort(-share, kind="stable")[:count] if 0 < share[i] < 1]
    return [{"node": shadow.fleet.nodes[i].name, "silent_frac": float(share[i])} for i in order]
