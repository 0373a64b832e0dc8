"""Small random sites and emulated nodes for the arbiter's tests; nothing here imports the arbiter's kernels."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from flyball.fleet.bids import Bids
from flyball.fleet.snapshot import Snapshot
from flyball.fleet.tables import NEVER_S, PARKED
from flyball.fleet.topology import Fleet, Node, PowerDomain, Service, Timing

LOAD_S = 3


def build_site(
    racks=(4, 4),
    oversubscription=1.4,
    reserve=0,
    mean_frac=0.0,
    services=1,
    skus=("H100-SXM",),
    decode_every=2,
    window_s=60.0,
    **timing,
) -> Fleet:
    """A root with racks of 8-GPU nodes; limits are nameplate / `oversubscription`, each rack a bit more generous."""
    node_w, nodes, domains = 8 * 700 + 2800, [], []
    total = sum(racks)
    root_w = int(total * node_w / oversubscription)
    domains.append(
        PowerDomain("root", root_w, mean_w=int(mean_frac * root_w), window_s=window_s, unknown_reserve=reserve)
    )
    for r, size in enumerate(racks):
        peak_w = int(size * node_w / (oversubscription * 0.93))
        domains.append(PowerDomain(f"rack{r}", peak_w, "root", unknown_reserve=reserve))
        for k in range(size):
            i = len(nodes)
            stage = "decode" if i % decode_every == 0 else "prefill"
            sku = skus[i % len(skus)]
            nodes.append(Node(f"n{i}", f"rack{r}", sku, 8, 2800, f"s{k % services}", stage, f"rack{r}"))
    return Fleet.build(
        "test",
        domains,
        nodes,
        [Service(f"s{s}", "llama-70b", priority=100 + s) for s in range(services)],
        timing=Timing(**timing),
    )


def warm_snapshot(fleet: Fleet, state, demand_w=None, batch=1, time_s=1.0) -> Snapshot:
    """Every node serves, is fresh, and has read back the state's commands."""
    sn = Snapshot.unknown(fleet, batch, time_s)
    node = sn.node
    node["is_silent"], node["is_up"], node["age_s"] = 0, 1, 0.5
    node["stage"] = state.node["stage_cmd"]
    node["cap_w"], node["ack_seq"] = state.node["cap_cmd_w"], state.node["seq"]
    node["demand_w"] = fleet.node_static["cap_max_w"] if demand_w is None else demand_w
    node["util_frac"], node["power_w"], node["temp_c"], node["clock_frac"] = 0.5, 3000.0, 60.0, 0.9
    for name in sn.service.dtype.names:
        sn.service[name] = 0.4
    return sn


def follow(snapshot: Snapshot, state, plan, dt_s=1.0) -> Snapshot:
    """The next snapshot when every command was applied and read back at once."""
    sn = snapshot.copy()
    sn.time_s[:] += dt_s
    sn.node["cap_w"], sn.node["ack_seq"] = plan.node["cap_w"], plan.node["seq"]
    sn.node["stage"] = plan.node["stage"]
    return sn


def bids_of(fleet: Fleet, rng: np.random.Generator, kind: str, tick: int, batch=1) -> Bids:
    """Hostile bids of one kind, as the referee's adversary makes them; "power" are bids for watts alone."""
    from flyball.experiments.referee.adversary import hostile_bids

    return hostile_bids(fleet, rng, "watts" if kind == "power" else kind, tick, batch)


@dataclass
class EmulatedNode:
    """A node that obeys what reaches it: caps, a firmware that lags, an agent that drops old sequences."""

    cap_max_w: int
    non_gpu_w: int
    parked_w: int
    cap_w: int
    stage: int
    seq: int = 1
    lagging: list = field(default_factory=list)  # (until_s, cap that may still be in force)
    loading_until_s: float = -1.0
    is_alive: bool = True

    def receive(self, row, now_s: float, lag_s: float) -> None:
        if not self.is_alive or row["seq"] <= self.seq:
            return
        self.seq = int(row["seq"])
        self.lagging.append((now_s + lag_s, self.cap_w))
        self.cap_w = int(row["cap_w"])
        if int(row["stage"]) != self.stage:
            self.stage = int(row["stage"])
            self.loading_until_s = now_s + LOAD_S if self.stage != PARKED else -1.0

    def reboot(self) -> None:
        """Comes back with its factory cap and no memory of leases."""
        self.cap_w, self.seq, self.lagging = self.cap_max_w, 0, []
        self.is_alive = False

    def draw_w(self, now_s: float) -> int:
        """The most that the node can draw now."""
        if self.is_alive and self.stage == PARKED:
            return self.parked_w + self.non_gpu_w
        self.lagging = [(t, w) for t, w in self.lagging if t > now_s]
        return max([self.cap_w, *(w for _, w in self.lagging)]) + self.non_gpu_w


class EmulatedFleet:
    """Emulated nodes behind a network that loses, delays and reorders; sums in Python integers."""

    def __init__(self, fleet: Fleet, state, rng: np.random.Generator, loss=0.0, delay_ticks=0):
        self.fleet, self.rng, self.loss, self.delay_ticks = fleet, rng, loss, delay_ticks
        self.nodes = [
            EmulatedNode(int(s["cap_max_w"]), int(s["non_gpu_max_w"]), int(s["parked_max_w"]), int(c), int(s["stage"]))
            for s, c in zip(fleet.node_static, state.node["cap_cmd_w"][0], strict=True)
        ]
        self.now_s = 0.0
        self.in_flight: list = []  # (arrives at, node, row)
        self.heard_at = [0.0] * len(self.nodes)
        self.snapshot = Snapshot.unknown(fleet, 1, 0.0)
        self.limit_w = [int(d.peak_w) for d in fleet.domains]
        self.next_limit_w = list(self.limit_w)
        self.next_at_s = [NEVER_S] * len(fleet.domains)
        self.waits: list = [[] for _ in fleet.domains]  # (until_s, limit still in force)
        for i in range(len(self.nodes)):
            self._report(i)

    def _report(self, i: int) -> None:
        n, row = self.nodes[i], self.snapshot.node[0, i]
        row["cap_w"], row["ack_seq"], row["stage"] = n.cap_w, n.seq, n.stage
        row["moving_s"] = max(0.0, n.loading_until_s - self.now_s)
        row["is_up"] = 1
        row["demand_w"] = self.rng.choice([np.nan, self.rng.uniform(500, 6500)], p=[0.1, 0.9])
        row["util_frac"] = self.rng.uniform(0, 1.2)
        self.heard_at[i] = self.now_s

    def look(self) -> Snapshot:
        """The snapshot of this tick."""
        sn = self.snapshot
        sn.time_s[0] = self.now_s
        for i, heard in enumerate(self.heard_at):
            age = self.now_s - heard
            sn.node["age_s"][0, i] = age
            sn.node["is_silent"][0, i] = age > self.fleet.timing.lease_ttl_s
        for d in range(len(self.limit_w)):
            sn.domain["limit_w"][0, d] = self.limit_w[d]
            sn.domain["next_limit_w"][0, d] = self.next_limit_w[d]
            next_at = self.next_at_s[d]
            sn.domain["next_in_s"][0, d] = NEVER_S if next_at >= NEVER_S else next_at - self.now_s
        return sn.copy()

    def announce(self, d: int, limit_w: int, in_s: float) -> None:
        self.next_limit_w[d], self.next_at_s[d] = limit_w, self.now_s + in_s

    def set_limit(self, d: int, limit_w: int, is_noticed=False) -> None:
        """Demand a limit now; a lower one is in force after the grace unless it was noticed."""
        if limit_w < self.limit_w[d] and not is_noticed:
            self.waits[d].append((self.now_s + self.fleet.timing.grace_s, self.limit_w[d]))
        self.limit_w[d] = limit_w

    def act(self, plan, check) -> None:
        """Send the plan, let a tick pass, and check after every event."""
        check(self)
        for i, row in enumerate(plan.node[0].copy()):
            if self.rng.uniform() >= self.loss:
                late = int(self.rng.integers(0, self.delay_ticks + 1))
                self.in_flight.append((self.now_s + 0.2 + late, i, row))
        self.rng.shuffle(self.in_flight)  # reordering within a tick
        self.now_s += 0.2
        for arrives, i, row in list(self.in_flight):
            if arrives <= self.now_s + 1e-9:
                self.nodes[i].receive(row, self.now_s, self.fleet.timing.firmware_lag_s)
                check(self)
        self.in_flight = [m for m in self.in_flight if m[0] > self.now_s + 1e-9]
        self.now_s += 0.7
        check(self)
        for i, n in enumerate(self.nodes):
            if n.is_alive and self.rng.uniform() >= self.loss:
                self._report(i)
        self.now_s = round(self.now_s + 0.1, 6)
        for d in range(len(self.limit_w)):
            if self.now_s >= self.next_at_s[d]:
                self.set_limit(d, self.next_limit_w[d], is_noticed=True)
                self.next_at_s[d] = NEVER_S
        check(self)

    def in_force_w(self, d: int) -> int:
        self.waits[d] = [(t, w) for t, w in self.waits[d] if t > self.now_s + 1e-9]
        return max([self.limit_w[d], *(w for _, w in self.waits[d])])

    def excess_w(self, d: int) -> int:
        """Largest possible draw of a domain above its limit in force."""
        row = self.fleet.domain_static[d]
        draw = sum(n.draw_w(self.now_s) for n in self.nodes[int(row["node_start"]) : int(row["node_end"])])
        return draw + int(row["unmanaged_w"]) - self.in_force_w(d)

    def assert_within_limits(self, _=None) -> None:
        for d in range(len(self.limit_w)):
            assert self.excess_w(d) <= 0, (self.fleet.domains[d].name, self.now_s, self.excess_w(d))


@dataclass(frozen=True)
class World:
    """The helpers above, handed to tests as one session fixture."""

    site = staticmethod(build_site)
    warm = staticmethod(warm_snapshot)
    follow = staticmethod(follow)
    bids = staticmethod(bids_of)
    emulate = EmulatedFleet


@pytest.fixture(scope="session")
def world() -> World:
    return World()
