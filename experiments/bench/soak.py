"""Soak: random fleets under hostile bids and networks, with the possible-cap check at every tick.

Volume comes from `referee.fast`; every so many batches one site is also played with everything that may go wrong, event
by event, before the exact referee.
"""

import time
from collections.abc import Callable

import numpy as np

from ...fleet.errors import BadInput
from ..referee.adversary import Adversary, Trouble
from ..referee.fast import FastWorld
from ..referee.sites import random_site
from ..referee.world import World

NODE_SETTLEMENTS = 10_000_000
"""A minute's worth, or less."""

BATCH, TICKS, EXACT_TICKS = 256, 60, 40

EVERYTHING = Trouble(0.2, 2000, 0.2, 0.02, True, 0.02, 0.0, 0.1, 0.1)


def figures(
    progress: Callable[[str, float], None], node_settlements: int = NODE_SETTLEMENTS, seed: int = 0
) -> dict[str, float]:
    """Soak.

    Args:
        progress: Called with a label and the share done.
        node_settlements: At least so many.
        seed: Of everything.

    Returns:
        `node_settlements` and `violations`, the exact referee's included (of what is drawn); and beside them
        `node_settlements_per_cpu_s`, `sites`, `lost_messages`, `cuts`, `exact_node_settlements`, `exact_events`,
        `exact_excused`, `reboots`, `restarts`, `repeated`.

    Raises:
        BadInput: if nothing is to be settled.
    """
    if node_settlements < 1:
        raise BadInput("--node-settlements must be at least 1")
    rng = np.random.default_rng(seed)
    out = dict.fromkeys(
        ("node_settlements", "violations", "sites", "lost_messages", "cuts", "exact_node_settlements", "exact_events",
         "exact_excused", "reboots", "restarts", "repeated"), 0
    )  # fmt: skip
    started = time.process_time()
    while out["node_settlements"] < node_settlements:
        fleet = random_site(rng, nodes=int(rng.integers(1, 49)))
        world = FastWorld(fleet, BATCH, rng)
        for _ in range(TICKS):
            world.step()
        out["sites"] += 1
        out["node_settlements"] += BATCH * TICKS * len(fleet.nodes)
        out["violations"] += world.violations
        out["lost_messages"] += world.lost
        out["cuts"] += world.cuts
        if out["sites"] % 4 == 1:
            _play_exactly(rng, out)
        progress(f"{out['violations']} violations", min(1.0, out["node_settlements"] / node_settlements))
    return {**out, "node_settlements_per_cpu_s": out["node_settlements"] / (time.process_time() - started)}


def _play_exactly(rng: np.random.Generator, out: dict[str, int]) -> None:
    world = World(random_site(rng), trusts_network=False)
    adversary = Adversary(world, rng, None, EVERYTHING)
    adversary.play(EXACT_TICKS)
    out["exact_node_settlements"] += adversary.events["settlements"]
    out["exact_events"] += world.referee.events
    out["exact_excused"] += world.referee.excused
    out["violations"] += sum(v.invariant == "possible draw" for v in world.referee.violations)
    for name in ("reboots", "restarts", "repeated"):
        out[name] += adversary.events[name]
