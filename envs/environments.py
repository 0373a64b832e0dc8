"""One class per environment id. Its docstring is its page: `page_text` fills in what every page has, with its tables.

`python -m flyball.experiments.env_pages docs/envs` writes the pages; a test holds them to the classes.
"""

from .gym_env import FlyballEnv
from .page_text import documented


@documented("Power-v0")
class PowerEnv(FlyballEnv):
    """Share a site's watts between the stages of its services, step by step.

    ## Description

    A site has less power than its GPUs would draw. Prefill is pinned at the power cap and gives tokens for watts almost
    evenly; decode gives most of its rate at half the cap and collapses below a floor. Which of them is short changes
    with bursts, mixes and cuts of the feed, within seconds. Every step (5 s) the agent bids for each pool's watts and
    says whether slack of power windows should be spent or saved; the background policy moves nodes between stages.

    Bids are not commands. The arbiter spreads each pool's watts over its nodes, down a tree of power limits, every
    second, and no bid can exceed a limit: what is to be learned is value, not safety.

    <<sections>>
    """


@documented("Stages-v0")
class StagesEnv(FlyballEnv):
    """Move nodes between prefill and decode, while the background policy shares the watts.

    ## Description

    A bid above 0 asks for more nodes in a pool, below 0 for fewer. A move takes the time to load the other stage's
    model (30 to 60 s by default, drawn and hidden), in which the node serves nothing; the arbiter rounds pools up,
    keeps a margin of decode nodes, and holds moves to a rate and a dwell. The difficulty is delay: a node asked for now
    serves in the next burst, or misses it.

    <<sections>>
    """


@documented("Remediation-v0")
class RemediationEnv(FlyballEnv):
    """Drain nodes that are about to fail or run hot, and say which should receive new work.

    ## Description

    Nodes fail, some twenty times as often as others; hot ones throttle. A drained node gets no new requests and loses
    none when it fails, but serves nothing either. The agent sees every node and bids for each; the arbiter never drains
    more than the allowed share of a failure domain. Scenarios with faults or heat are the ones to learn on:
    `scenario="faults"` or `"thermal"`.

    <<sections>>
    """


@documented("Factory-v0")
class FactoryEnv(FlyballEnv):
    """Everything at once: watts, nodes and clocks of the pools, drains and order of the nodes, slack of the fleet.

    ## Description

    The agent owns every bid channel, and the background policy is only the base of residual actions. A clock ceiling
    saves energy where a cap does not bind; it can only ever lower draw. The action has one number per node and channel
    beside those of the pools: share weights or exploration noise between nodes.

    <<sections>>
    """


@documented("PowerRaw-v0")
class PowerRawEnv(FlyballEnv):
    """Power without an arbiter: bids become caps unchecked, limits can be exceeded, breakers trip.

    ## Description

    For constrained and safe reinforcement learning. A watt bid of -1 sets every GPU of a pool to its lowest legal cap,
    +1 to its highest, and the value between is linear; nothing else is moved or checked. What that does to limits is in
    `info["cost"]`. A breaker that carries more than its rating heats along its trip curve; when it trips, everything
    below it is down for 15 minutes and its requests are lost. Site files without `breaker_w` have breakers of
    `peak_w` / 0.8.

    Nothing is settled, so what the arbiter would have averaged is not there: `util_fast`, `util_slow`,
    `log_rate_trend`, `good_fast`, `reject_fast` and `bank` read as if nothing were known, and `reward_correction` is 0.

    <<sections>>
    """


ENVIRONMENTS: dict[str, type[FlyballEnv]] = {
    "Power-v0": PowerEnv,
    "Stages-v0": StagesEnv,
    "Remediation-v0": RemediationEnv,
    "Factory-v0": FactoryEnv,
    "PowerRaw-v0": PowerRawEnv,
}
"""Class of every id."""
