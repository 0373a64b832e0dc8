"""When the referee lets a cut wait: a command that it needs was lost or late, and only then."""

import numpy as np
import pytest

from flyball.experiments.referee.adversary import Adversary, Trouble
from flyball.experiments.referee.events import (
    Applied,
    Command,
    Demanded,
    Passed,
    Planned,
    Site,
    SiteDomain,
    SiteNode,
    SiteService,
    SiteTiming,
)
from flyball.experiments.referee.referee import Referee
from flyball.experiments.referee.sites import random_site
from flyball.experiments.referee.world import World

MOST_W, CUT_W = 6000, 3000


def referee():
    """Of one node that runs its maximum; a tick, a p99 and a lag of a second each: a grace of three."""
    node = SiteNode(
        domain=0, failure_domain=0, service=0, stage=0, cap_min_w=1000, cap_max_w=MOST_W, parked_max_w=300,
        non_gpu_max_w=0,
    )  # fmt: skip
    domain = SiteDomain(parent=-1, peak_w=MOST_W, mean_w=0, window_ms=0, unmanaged_w=0, unknown_reserve=0)
    timing = SiteTiming(1000, 1000, 1000, 5000, 5000, 60_000, 4.0)
    return Referee(Site((node,), (domain,), (SiteService(0, 0),), timing, (0, 1), (1, 1)), [MOST_W])


def sent(time_ms, seq, cap_w):
    return Planned(time_ms, (Command((1, seq), cap_w, 1000, 0, False),), False)


def test_a_cut_waits_for_commands_that_were_lost_one_after_the_other():
    """Every command is replaced before it is late, but the first one was lost: the cut is excused while it waits."""
    judge = referee()
    judge.see(Demanded(0, 0, CUT_W, 0))
    for k in range(3):  # the first two are lost
        judge.see(sent(1000 * k, 2 + k, CUT_W - 10 * k))
    judge.see(Applied(2100, 0, (1, 4), CUT_W - 20, 0))
    judge.see(Passed(3000))  # in force, and the node's firmware lags for another 0.1 s
    assert judge.excused == 1 and not judge.violations
    judge.see(Passed(3100))
    judge.see(Passed(9000))
    assert judge.excused == 1 and not judge.violations


def test_what_was_late_before_a_cut_was_told_is_no_excuse_for_it():
    """A command that came late once does not excuse a controller that answers a later cut too late."""
    judge = referee()
    judge.see(sent(0, 2, MOST_W - 500))
    judge.see(Applied(2500, 0, (1, 2), MOST_W - 500, 0))
    judge.see(Demanded(5000, 0, CUT_W, 5000))
    judge.see(sent(7000, 3, CUT_W))  # two ticks late
    judge.see(Applied(7100, 0, (1, 3), CUT_W, 0))
    judge.see(Passed(8000))
    assert [(v.invariant, v.by) for v in judge.violations] == [("possible draw", MOST_W - 500 - CUT_W)]


@pytest.mark.parametrize("seed", [0, 24, 78])
def test_cuts_and_losses_together_break_no_limit_that_commands_reached_in_time(seed):
    """Sites on which half of all messages are lost while limits change: nothing but what losses excuse."""
    rng = np.random.default_rng(seed)
    world = World(random_site(rng), trusts_network=False)
    Adversary(world, rng, None, Trouble(loss=0.5, cut=0.3)).play(30)
    assert world.referee.excused > 0 and not world.referee.violations
