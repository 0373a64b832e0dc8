"""Everything that may go wrong, drawn at random: bids, network, clock, reboots, restarts, limits."""

from dataclasses import dataclass

import numpy as np

from ...fleet.bids import Bids
from ...fleet.topology import Fleet
from .world import World

BID_KINDS = ("random", "constant", "alternating", "nan", "wild", "watts")


@dataclass(frozen=True)
class Trouble:
    """What goes wrong, and how often.

    Attributes:
        loss: Share of commands, and of reports, that are lost.
        delay_ms: Largest delay of each.
        repeat: Share delivered twice.
        reboot: Chance per node and tick, as long as every domain's reserve covers it.
        reserve_only: False lets more nodes reboot than reserves cover.
        restart: Chance per tick that the service starts again.
        jump: Chance per tick that the clock that the controller reads jumps.
        cut: Chance per tick that some limit changes, noticed or not.
        fault: Chance per node and tick of a fatal XID.
        deep: Whether limits may fall to what parked nodes draw; else smallest caps fit them with the reserve.
    """

    loss: float = 0.0
    delay_ms: int = 0
    repeat: float = 0.0
    reboot: float = 0.0
    reserve_only: bool = True
    restart: float = 0.0
    jump: float = 0.0
    cut: float = 0.0
    fault: float = 0.0
    deep: bool = False

    @property
    def is_network_right(self) -> bool:
        return not (self.loss or self.delay_ms > 400 or self.reboot or self.restart)


def hostile_bids(fleet: Fleet, rng: np.random.Generator, kind: str, tick: int, batch: int = 1) -> Bids:
    """Bids of one kind."""
    bids = Bids.neutral(batch, fleet.pools, len(fleet.nodes))
    for table in (bids.pool, bids.node, bids.fleet):
        if kind == "random":
            table[...] = rng.uniform(-1.5, 1.5, table.shape)
        elif kind == "constant":
            table[...] = 1.0
        elif kind == "alternating":
            table[...] = 1.0 if tick % 2 else -1.0
        elif kind == "nan":
            table[...] = np.nan
        elif kind == "wild":
            table[...] = rng.choice([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0], table.shape)
    if kind == "watts":
        bids.pool[:, :, 0] = rng.uniform(-1, 1, bids.pool.shape[:2])
    return bids


def least_limits(fleet: Fleet) -> list[int]:
    """The lowest limit of every domain that smallest caps fit with the reserve, watts."""
    out = []
    for row in fleet.domain_static:
        nodes = fleet.node_static[int(row["node_start"]) : int(row["node_end"])]
        jumps = sorted((nodes["cap_max_w"] - nodes["cap_min_w"]).tolist(), reverse=True)
        floor = int(row["unmanaged_w"]) + int(row["non_gpu_max_w"]) + int(nodes["cap_min_w"].sum())
        out.append(floor + sum(jumps[: int(row["unknown_reserve"])]))
    return out


def parked_limits(fleet: Fleet) -> list[int]:
    """The lowest limit of every domain that parked nodes fit with the reserve, watts."""
    out = []
    for row in fleet.domain_static:
        nodes = fleet.node_static[int(row["node_start"]) : int(row["node_end"])]
        jumps = sorted((nodes["cap_max_w"] - nodes["parked_max_w"]).tolist(), reverse=True)
        floor = int(row["unmanaged_w"]) + int(row["non_gpu_max_w"]) + int(nodes["parked_max_w"].sum())
        out.append(floor + sum(jumps[: int(row["unknown_reserve"])]))
    return out


class Adversary:
    """Plays a world tick by tick.

    Args:
        world: Played in place.
        rng: Of everything that is drawn.
        kind: Of the bids; None draws one per tick.
        trouble: What goes wrong.
    """

    def __init__(self, world: World, rng: np.random.Generator, kind: str | None, trouble: Trouble):
        self.world, self.rng, self.kind, self.trouble = world, rng, kind, trouble
        self.least_w = parked_limits(world.fleet) if trouble.deep else least_limits(world.fleet)
        self.due: list[tuple[int, int, str, tuple]] = []
        self.events = {"settlements": 0, "lost": 0, "repeated": 0, "reboots": 0, "restarts": 0, "jumps": 0, "cuts": 0}
        self.demand_w = rng.uniform(0.2, 1.1, len(world.nodes)) * fleet_caps(world.fleet)

    def play(self, ticks: int) -> None:
        """So many ticks; stops at the first violation."""
        for tick in range(ticks):
            if self.world.referee.violations:
                return
            self._tick(tick)

    def _tick(self, tick: int) -> None:
        w, rng, trouble = self.world, self.rng, self.trouble
        if rng.random() < trouble.jump:
            w.skew_ms += int(rng.choice([-100_000, -1000, 900, 2000, 10_000_000]))
            self.events["jumps"] += 1
        if rng.random() < trouble.restart:
            w.restart()
            self.events["restarts"] += 1
        if trouble.cut and rng.random() < trouble.cut:
            self._change_limit()
        if trouble.reboot:
            self._reboot()
        w.tick(hostile_bids(w.fleet, rng, self.kind or str(rng.choice(BID_KINDS)), tick))
        self.events["settlements"] += len(w.nodes)
        tick_ms = w.site.timing.tick_ms
        self._post(self.due, "command", w.commands)
        for at in (tick_ms // 5, tick_ms // 2):
            self._run_until(w.now_ms + at)
        for i in range(len(w.nodes)):
            fault = 79 if rng.random() < trouble.fault else 0
            w.report(i, fault)
        self._post(self.due, "report", w.reports)
        self._run_until(w.now_ms + tick_ms - tick_ms // 5 - tick_ms // 2)

    def _post(self, due: list, kind: str, queues: list[list]) -> None:
        """Give every new message its fate: lost, on time, late, twice; it is kept in our list, not the world's."""
        rng, trouble = self.rng, self.trouble
        for i, queue in enumerate(queues):
            for message in queue:
                if rng.random() < trouble.loss:
                    self.events["lost"] += 1
                    continue
                copies = 2 if rng.random() < trouble.repeat else 1
                self.events["repeated"] += copies - 1
                for _ in range(copies):
                    delay = int(rng.integers(0, trouble.delay_ms + 1)) if trouble.delay_ms else 0
                    due.append((self.world.now_ms + 100 + delay, i, kind, message))
            queue.clear()

    def _run_until(self, until_ms: int) -> None:
        w = self.world
        ready = [m for m in self.due if m[0] <= until_ms]
        self.due = [m for m in self.due if m[0] > until_ms]
        order = self.rng.permutation(len(ready))
        for at, i, kind, message in sorted((ready[k] for k in order), key=lambda m: m[0]):
            w.pass_time(max(0, at - w.now_ms))
            if kind == "command":
                w.commands[i].append(message)
                w.deliver(i, len(w.commands[i]) - 1)
            else:
                w.reports[i].append(message)
                demand = float(self.rng.choice([np.nan, self.demand_w[i]], p=[0.1, 0.9]))
                w.hear(i, len(w.reports[i]) - 1, demand_w=demand, util=float(self.rng.uniform(0, 1.2)))
        w.pass_time(max(0, until_ms - w.now_ms))

    def _reboot(self) -> None:
        w = self.world
        for i in range(len(w.nodes)):
            if self.rng.random() >= self.trouble.reboot:
                continue
            if self.trouble.reserve_only and not self._is_covered(i):
                continue
            w.reboot(i)
            # what was on its way to the old boot died with it
            self.due = [m for m in self.due if m[1] != i]
            self.events["reboots"] += 1

    def _is_covered(self, i: int) -> bool:
        """Whether one more unknown node stays within every reserve above it, silent nodes included."""
        referee = self.world.referee
        for d in referee.path[i]:
            unknown = {k for k in referee.below[d] if referee.is_out(k)}
            if not referee.is_strict:
                unknown |= referee.out[d]
            if len(unknown | {i}) > self.world.site.domains[d].unknown_reserve:
                return False
        return True

    def _change_limit(self) -> None:
        w, rng = self.world, self.rng
        d = int(rng.integers(len(w.limit_w)))
        low, high = self.least_w[d], w.site.domains[d].peak_w
        limit = int(rng.integers(low, high + 1)) if high > low else high
        self.events["cuts"] += 1
        if rng.random() < 0.5:
            w.demand(d, limit)
        elif w.next[d] is None:
            w.announce(d, limit, int(rng.integers(1, 16)) * w.site.timing.tick_ms)


def fleet_caps(fleet: Fleet) -> np.ndarray:
    """Largest caps, shape (N,), watts."""
    return fleet.node_static["cap_max_w"].astype(float)
