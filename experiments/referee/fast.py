"""The possible-cap check of many environments at once: the referee's rule for raises, on arrays of whole watts.

A second reading of docs/specification.md in NumPy, for volume: what a node may run by commands and reports, what it
truly runs, and both sums under every limit. Commands and reports are lost at random; a quarter of the environments
lose nothing and get un-noticed cuts instead. Reboots, restarts, delays and clocks are left to the exact referee.
"""

import numpy as np

from ...fleet.arbiter import initial_state
from ...fleet.arbiter.settle import make_scratch, settle_kernel
from ...fleet.plan import Plan
from ...fleet.snapshot import Snapshot
from ...fleet.tables import PARKED
from ...fleet.topology import Fleet
from .adversary import BID_KINDS, hostile_bids, least_limits

RING = 24
"""Commands that are remembered one by one; of older ones the largest."""

PROMPT_SHARE = 4
"""One environment in so many loses nothing."""


class FastWorld:
    """B environments of one fleet whose telemetry comes and goes.

    Args:
        fleet: The site; ticks of one second are assumed to cover the firmware's lag.
        batch: B.
        rng: Of everything that is drawn.
    """

    def __init__(self, fleet: Fleet, batch: int, rng: np.random.Generator):
        self.fleet, self.batch, self.rng = fleet, batch, rng
        n = len(fleet.nodes)
        self.static = fleet.node_static
        self.state, self.plan = initial_state(fleet, batch, assume_acked=True), Plan.empty(batch, n)
        self.scratch, self.snapshot = make_scratch(fleet), Snapshot.unknown(fleet, batch, 0.0)
        self.cap = self.state.node["cap_cmd_w"].copy()
        self.before = self.cap.copy()  # what the firmware may still run
        self.seq, self.stage = self.state.node["seq"].copy(), self.state.node["stage_cmd"].copy()
        self.read, self.acked, self.parked = self.cap.copy(), self.seq.copy(), self.stage == PARKED
        self.held, self.held_until = self.cap.copy(), np.zeros((batch, n))
        self.ring = np.zeros((RING, 3, batch, n), np.int64)  # seq, cap, stage
        self.older_seq, self.older_cap = np.zeros((batch, n), np.int64), np.zeros((batch, n), np.int64)
        self.heard_s = np.zeros((batch, n))
        self.tick_count, self.violations, self.lost, self.cuts = 0, 0, 0, 0
        self.is_prompt = np.arange(batch) % PROMPT_SHARE == 0
        self.loss = np.where(self.is_prompt, 0.0, rng.choice([0.05, 0.2, 0.5], batch))[:, None]
        self.limit = np.broadcast_to(fleet.domain_static["peak_w"], (batch, len(fleet.domains))).copy()
        self.past = [self.limit.copy() for _ in range(round(fleet.timing.grace_s / fleet.timing.tick_s) + 1)]
        self.least = np.array(least_limits(fleet))
        self._hear(np.ones((batch, n), bool))

    def _hear(self, is_heard: np.ndarray) -> None:
        """Reports of now arrive."""
        node, now = self.snapshot.node, float(self.tick_count)
        before = self.possible(now)
        self.read = np.where(is_heard, self.cap, self.read)
        self.acked = np.where(is_heard, self.seq, self.acked)
        self.parked = np.where(is_heard, self.stage == PARKED, self.parked)
        self.heard_s = np.where(is_heard, now, self.heard_s)
        is_lower = is_heard & (self.possible(now, False) < before)
        self.held = np.where(is_lower, before, self.held)
        self.held_until = np.where(is_lower, now + self.fleet.timing.firmware_lag_s, self.held_until)
        for name, value in (("cap_w", self.cap), ("ack_seq", self.seq), ("stage", self.stage)):
            node[name] = np.where(is_heard, value, node[name])
        for name, low, high in (("demand_w", 200.0, 6000.0), ("util_frac", 0.0, 1.2)):
            node[name] = np.where(is_heard, self.rng.uniform(low, high, is_heard.shape), node[name])
        node["moving_s"], node["xid"] = 0.0, np.where(self.rng.random(is_heard.shape) < 0.01, 79, 0)

    def possible(self, now: float, with_held: bool = True) -> np.ndarray:
        """What every node's GPUs may draw by commands and reports, shape (B, N), watts."""
        is_live = self.ring[:, 0] > self.acked
        out = np.maximum(self.read, np.where(is_live, self.ring[:, 1], 0).max(0))
        out = np.maximum(out, np.where(self.older_seq > self.acked, self.older_cap, 0))
        stays = self.parked & ~(is_live & (self.ring[:, 2] != PARKED)).any(0) & (self.older_seq <= self.acked)
        if with_held:
            out = np.maximum(out, np.where(self.held_until > now, self.held, 0))
        return np.where(stays, self.static["parked_max_w"], out)

    def charge(self, possible: np.ndarray, silent: np.ndarray) -> np.ndarray:
        """The same summed per domain, reserves at their maximum, shape (B, D)."""
        most = self.static["cap_max_w"]
        draw = np.where(silent, most, possible)
        out = np.empty(self.limit.shape, np.int64)
        for d, row in enumerate(self.fleet.domain_static):
            at = slice(int(row["node_start"]), int(row["node_end"]))
            out[:, d] = draw[:, at].sum(-1) + int(row["unmanaged_w"]) + int(row["non_gpu_max_w"])
            reserve = min(int(row["unknown_reserve"]), at.stop - at.start)
            if reserve:
                jumps = -np.sort(-np.where(silent[:, at], 0, most[at] - draw[:, at]), axis=-1)[:, :reserve]
                left = reserve - silent[:, at].sum(-1)
                out[:, d] += (jumps * (np.arange(reserve) < left[:, None])).sum(-1)
        return out

    def step(self) -> None:
        """One tick: cut, settle, check, deliver, check, report."""
        fleet, rng, sn, st = self.fleet, self.rng, self.snapshot, self.state
        now = float(self.tick_count)
        if rng.random() < 0.2:
            d = int(rng.integers(self.limit.shape[1]))
            low, high = int(self.least[d]), int(fleet.domain_static["peak_w"][d])
            self.limit[self.is_prompt, d] = rng.integers(min(low, high), high + 1, int(self.is_prompt.sum()))
            self.cuts += int(self.is_prompt.sum())
        sn.domain["limit_w"] = sn.domain["next_limit_w"] = self.limit
        sn.time_s[:] = now
        age = now - self.heard_s
        silent = age >= fleet.timing.lease_ttl_s
        sn.node["age_s"], sn.node["is_silent"], sn.node["is_up"] = age, silent, ~silent
        before = self.charge(self.possible(now), silent)
        old_cap, old_seq = st.node["cap_cmd_w"].copy(), st.node["seq"].copy()
        bids = hostile_bids(fleet, rng, str(rng.choice(BID_KINDS)), self.tick_count, self.batch)
        settle_kernel(
            fleet.node_static, fleet.domain_static, fleet.service_static, fleet.static, sn.time_s, sn.node, sn.domain,
            sn.service, st.node, st.domain, st.pool, st.service, st.fleet, bids.pool, bids.node, bids.fleet,
            self.plan.node, self.plan.fleet, self.scratch,
        )  # fmt: skip
        row = self.plan.node
        slot = self.tick_count % RING
        self._forget(slot)
        self.ring[slot] = row["seq"], row["cap_w"], row["stage"]
        after = self.charge(self.possible(now), silent)
        self.violations += int((after > np.maximum(before, self.limit)).sum())
        cap = row["cap_w"]
        self.violations += int(((cap < self.static["cap_min_w"]) | (cap > self.static["cap_max_w"])).sum())
        self.violations += int(((cap > old_cap) & (silent | (age > fleet.timing.stale_s))).sum())
        self.violations += int(((row["seq"] == old_seq) & (cap != old_cap)).sum())
        self._deliver(rng.random(cap.shape) >= self.loss)
        is_heard = rng.random(cap.shape) >= self.loss
        self.lost += int((~is_heard).sum())
        self.tick_count += 1
        self._hear(is_heard)

    def _forget(self, slot: int) -> None:
        is_unanswered = self.ring[slot, 0] > self.acked
        kept = np.where(self.older_seq > self.acked, self.older_cap, 0)
        self.older_cap = np.where(is_unanswered, np.maximum(kept, self.ring[slot, 1]), kept)
        self.older_seq = np.where(is_unanswered, self.ring[slot, 0], self.older_seq)

    def _deliver(self, is_delivered: np.ndarray) -> None:
        """Commands arrive; then what is drawn must fit what is in force."""
        row = self.plan.node
        is_new = is_delivered & (row["seq"] > self.seq)
        self.lost += int((~is_delivered).sum())
        self.before = np.where(self.stage == PARKED, self.static["parked_max_w"], self.cap)
        self.cap = np.where(is_new, row["cap_w"], self.cap)
        self.seq = np.where(is_new, row["seq"], self.seq)
        self.stage = np.where(is_new, row["stage"], self.stage)
        now_w = np.where(self.stage == PARKED, self.static["parked_max_w"], self.cap)
        lagging = np.where(self.stage == PARKED, self.static["parked_max_w"], self.before)
        draw = np.maximum(now_w, lagging)
        self.past = [*self.past[1:], self.limit.copy()]
        in_force = np.maximum.reduce(self.past)
        for d, domain in enumerate(self.fleet.domain_static):
            at = slice(int(domain["node_start"]), int(domain["node_end"]))
            total = draw[:, at].sum(-1) + int(domain["unmanaged_w"]) + int(domain["non_gpu_max_w"])
            self.violations += int((total > in_force[:, d]).sum())
