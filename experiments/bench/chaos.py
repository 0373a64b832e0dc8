"""Chaos: everything that may go wrong, counted by kind, with every moment judged by the exact referee.

Random small sites, the arbiter, the agents' own lease rules and emulated nodes (`referee.world`), played by
`referee.adversary` with hostile bids. What is added here: meters, which read what is drawn and freeze, and a count of
each kind of trouble. The referee shares no code with the arbiter and sees every event.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...fleet.arbiter.settle import settle
from ...fleet.errors import BadInput
from ..referee.adversary import Adversary, Trouble
from ..referee.sites import random_site
from ..referee.world import Settle, World
from .soak import EVERYTHING

EVENTS = 300_000
"""About half a minute's worth."""

TICKS = 40
"""Of one site: several leases, graces and windows long."""

MIXES: tuple[Trouble, ...] = (
    EVERYTHING,
    replace(EVERYTHING, jump=0.05),
    replace(EVERYTHING, cut=0.25, deep=True),
    replace(EVERYTHING, loss=0.5, restart=0.05),
)
"""Played in turn. Means over windows are judged only where the clock does not jump."""

KINDS = (
    "lost_acknowledgements", "duplicated_acknowledgements", "reordered_acknowledgements",
    "lost_commands", "duplicated_commands", "reordered_commands",
    "lease_expiries", "service_restarts", "node_reboots", "gpu_faults", "meter_freezes", "limit_changes", "clock_jumps",
)  # fmt: skip
"""Kinds of trouble; an acknowledgement is a report in which a node reads its cap back."""

LIMIT_BREACHES = ("possible draw", "window")
"""Invariants of docs/specification.md about watts above a limit in force, at once and as a mean."""

FREEZE = 0.01
"""Chance per meter and tick that it freezes, for `FREEZE_TICKS`."""

FREEZE_TICKS = (2, 30)

METER_NOISE_FRAC = 0.01
"""A class 1 meter's error (IEC 62053-21), and the flicker without which no reading is believed."""


def figures(
    progress: Callable[[str, float], None], events: int = EVENTS, seed: int = 0, settle_with: Settle = settle
) -> dict[str, float | str | None]:
    """Chaos.

    Args:
        progress: Called with a label and the share done.
        events: At least so many troubles.
        seed: Of everything.
        settle_with: The arbiter; another one to see whether breaches are noticed.

    Returns:
        `events` (troubles of every kind in `KINDS`, which are figures too), `limit_breaches` (moments with watts above
        a limit in force, at once or over a window), `first_breach` (what, and the site and seed of it; None
        without one), `other_violations` (of promises other than about watts drawn, some of which assume a network that
        delivers) and `first_other_violation`, `excused` (moments above a limit while a lost or late command of a cut is
        awaited, or more nodes are unknown than the reserve stands for), `judged_events`, `sites`, `node_settlements`,
        `events_per_cpu_s`.

    Raises:
        BadInput: if nothing is to happen.
    """
    if events < 1:
        raise BadInput("--events must be at least 1")
    kinds: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    totals = dict.fromkeys(("judged_events", "sites", "node_settlements", "excused", "other_violations"), 0)
    breaches, first, first_other = 0, None, None
    started = time.process_time()
    while kinds.total() < events:
        site = totals["sites"]
        rng = np.random.default_rng([seed, site])
        trouble = MIXES[site % len(MIXES)]
        world = CountingWorld(
            random_site(rng), settle_with, trusts_clock=not trouble.jump, trusts_network=trouble.is_network_right
        )
        adversary = CountingAdversary(world, rng, None, trouble)
        adversary.play(TICKS)
        found = world.referee.violations
        over = [v for v in found if v.invariant in LIMIT_BREACHES]
        other = [v for v in found if v.invariant not in LIMIT_BREACHES]
        where = f"site {site} of seed {seed}"
        if over and first is None:
            first = f"{over[0]} ({where})"
        if other and first_other is None:
            first_other = f"{other[0]} ({where})"
        breaches += len(over)
        kinds.update(adversary.counts())
        totals["sites"] += 1
        totals["judged_events"] += world.referee.events
        totals["node_settlements"] += adversary.events["settlements"]
        totals["excused"] += world.referee.excused
        totals["other_violations"] += len(other)
        progress(f"{breaches} limit breaches", min(1.0, kinds.total() / events))
    return {
        "events": kinds.total(), "limit_breaches": breaches, "first_breach": first,
        "first_other_violation": first_other, **kinds, **totals,
        "events_per_cpu_s": kinds.total() / max(time.process_time() - started, 1e-9),
    }  # fmt: skip


class CountingWorld(World):
    """A world that counts what happens inside it."""

    def __init__(self, *args, **kwargs):
        self.expiries = self.faults = 0
        super().__init__(*args, **kwargs)

    def _fall_back(self, i: int) -> None:
        self.expiries += 1
        super()._fall_back(i)

    def report(self, i: int, xid: int = 0) -> None:
        self.faults += xid != 0
        super().report(i, xid)


class CountingAdversary(Adversary):
    """An adversary that also freezes meters, and tells commands from acknowledgements in what it counts."""

    def __init__(self, world: CountingWorld, rng: np.random.Generator, kind: str | None, trouble: Trouble):
        super().__init__(world, rng, kind, trouble)
        self.messages: Counter[str] = Counter()
        self.meter_freezes = 0
        self.frozen_ticks = np.zeros(len(world.site.domains), int)
        self.meter_w = np.full(len(world.site.domains), np.nan)

    def counts(self) -> dict[str, int]:
        """Troubles so far by kind."""
        told, world = self.events, self.world
        return {
            **self.messages,
            "lease_expiries": world.expiries,
            "service_restarts": told["restarts"],
            "node_reboots": told["reboots"],
            "gpu_faults": world.faults,
            "meter_freezes": self.meter_freezes,
            "limit_changes": told["cuts"],
            "clock_jumps": told["jumps"],
        }

    def _tick(self, tick: int) -> None:
        self._freeze_meters()
        super()._tick(tick)
        self._read_meters()

    def _freeze_meters(self) -> None:
        self.frozen_ticks = np.maximum(self.frozen_ticks - 1, 0)
        starts = (self.rng.random(len(self.frozen_ticks)) < FREEZE) & (self.frozen_ticks == 0)
        self.frozen_ticks[starts] = self.rng.integers(*FREEZE_TICKS, size=int(starts.sum()))
        self.meter_freezes += int(starts.sum())

    def _read_meters(self) -> None:
        """What every domain draws, as its meter has it: a frozen one repeats itself and says that it is fresh."""
        world = self.world
        draws = [n.draws_w(world.now_ms) for n in world.referee.nodes]
        for d, inside in enumerate(world.referee.below):
            if not self.frozen_ticks[d]:
                drawn = world.referee.bounds_w[d] + sum(draws[i] for i in inside)
                self.meter_w[d] = drawn * (1 + METER_NOISE_FRAC * self.rng.uniform(-1, 1))
        world.table.domain["meter_w"][0] = self.meter_w
        world.table.domain["meter_age_s"][0] = 0.0

    def _post(self, due: list, kind: str, queues: list[list]) -> None:
        name = {"command": "commands", "report": "acknowledgements"}[kind]
        known, lost, repeated = len(due), self.events["lost"], self.events["repeated"]
        super()._post(due, kind, queues)
        self.messages[f"lost_{name}"] += self.events["lost"] - lost
        self.messages[f"duplicated_{name}"] += self.events["repeated"] - repeated
        latest = {}
        for at, i, what, _ in due[:known]:
            if what == kind:
                latest[i] = max(latest.get(i, at), at)
        # one that arrives before another that was sent before it
        self.messages[f"reordered_{name}"] += sum(at < latest.get(i, at) for at, i, _, _ in due[known:])
