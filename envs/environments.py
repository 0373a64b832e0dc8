"""One class per environment id. Its docstring is its page: tables are filled in from `fleet.schema` below.

`python -m flyball.experiments.env_pages docs/envs` writes the pages; a test holds them to the classes.
"""

import inspect
from collections.abc import Callable

from ..fleet.schema import FLEET_BIDS, FLEET_FEATURES, KINDS, NODE_FEATURES, POOL_BIDS, POOL_FEATURES, Field
from .core import CHANNELS, CORRECTION_WEIGHT, TRIP_COST_WS
from .gym_env import LIMIT, FlyballEnv


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows])


def field_table(fields: tuple[Field, ...]) -> str:
    """Column, name, unit, range and meaning of the fields of one kind of token."""
    rows = [
        [str(i), f"`{f.name}`", f.unit, f"{f.low:g} to {f.high:g}", f.meaning] for i, f in enumerate(fields)
    ]  # a unit of 1 is a share or a ratio
    return markdown_table(["column", "name", "unit", "range", "meaning"], rows)


def action_text(env_id: str) -> str:
    """What the agent owns, from `CHANNELS` and the schema."""
    channels = CHANNELS[env_id]
    own = [(k, f) for k in ("pool", "node", "fleet") for f in KINDS[k][1] if f.name in getattr(channels, k)]
    counts = {"pool": "P pools", "node": "N nodes", "fleet": "once"}
    rows = [[f"{k} ({counts[k]})", f"`{f.name}`", f"{f.low:g} to {f.high:g}", f.meaning] for k, f in own]
    sizes = [
        f"{len(getattr(channels, k))} {letter}".removeprefix("1 ")
        for k, letter in (("pool", "P"), ("node", "N"))
        if getattr(channels, k)
    ] + [str(len(channels.fleet))] * bool(channels.fleet)
    return "\n\n".join(
        [
            f"`Box(-1, 1, ({' + '.join(sizes)},), float32)`, token by token: the pools in the order of "
            "`chat/prefill`, `chat/decode`, ... with the channels of each side by side, then the nodes, then the "
            "fleet. P is twice the number of services (or `pad_pools`), N the number of nodes. Zero is the neutral "
            "bid; NaN is read as zero and anything else is clipped.",
            markdown_table(["token", "channel", "range", "meaning"], rows),
            "`env.unwrapped.action_slots()` names every number; `base_action()` is the action that bids what the "
            "background would.",
        ]
    )


def observation_text(env_id: str) -> str:
    """What is seen, from the schema."""
    has_nodes = bool(CHANNELS[env_id].node)
    sizes = [f"{len(POOL_FEATURES)} P", "P", f"{len(POOL_BIDS)} P"]
    order = ["pool features", "pool mask", "the background's bids for the pools"]
    if has_nodes:
        sizes += [f"{len(NODE_FEATURES)} N", "N"]
        order += ["node features", "node mask"]
    sizes += [str(len(FLEET_FEATURES)), str(len(FLEET_BIDS))]
    order += ["fleet features", "the background's bid for the fleet"]
    keys = [
        ["`pool`", f"(P, {len(POOL_FEATURES)}) float32", "features of every pool"],
        ["`pool_mask`", "(P,) int8", "1 where the pool exists, 0 for a service without nodes"],
        ["`base_pool`", f"(P, {len(POOL_BIDS)}) float32", "what the background bids now: `watts`, `nodes`, `clock`"],
        ["`fleet`", f"({len(FLEET_FEATURES)},) float32", "features of the whole fleet"],
        ["`base_fleet`", f"({len(FLEET_BIDS)},) float32", "what the background bids now: `spend`"],
    ]
    if has_nodes:
        keys += [
            ["`node`", f"(N, {len(NODE_FEATURES)}) float32", "features of every node"],
            ["`node_mask`", "(N,) int8", "1 where the node exists"],
        ]
    parts = [
        f'`obs="flat"`: `Box(-{LIMIT:g}, {LIMIT:g}, ({" + ".join(sizes)},), float32)`: {", ".join(order)}, each '
        "token by token. With `pad_pools` the missing pools are zeros and their mask is 0: fleets of different "
        "numbers of services then share one box. `env.unwrapped.observation_slots()` names every number.",
        '`obs="tokens"`: a `Dict`, for networks that share weights across tokens:',
        markdown_table(["key", "shape and type", "content"], keys),
        "Features of a pool; a unit of 1 is a share or a ratio, TDP a share of the largest cap:",
        field_table(POOL_FEATURES),
    ]
    if has_nodes:
        parts += ["Features of a node:", field_table(NODE_FEATURES)]
    parts += ["Features of the fleet:", field_table(FLEET_FEATURES)]
    return "\n\n".join(parts)


REWARDS = f"""
Minus the share of tokens that were spoilt in the step: prompt and output tokens of requests rejected, lost to a fault
or late, over what the fleet could serve in one control interval. Tokens that arrive and are served in time cost
nothing, so the noise of arrivals cancels. A small penalty of {CORRECTION_WEIGHT:g} x the mean squared relative distance
between the caps asked and granted is added.

Both terms are in `info`, and their sum is the reward exactly. The return ranks policies as goodput does; a test holds
it to that.
"""

RAW_REWARDS = """
Minus the share of tokens that were spoilt in the step: prompt and output tokens of requests rejected, lost to a fault
or late, over what the fleet could serve in one control interval. No limit is in the reward: `info["cost"]` has them
apart, as constrained methods want it (`envs.wrappers.CostToReward` puts a Lagrangian weight on it).
"""

START = """
The site's nodes serve the stages that the site file gives them, at an equal share of the limits, with empty queues.
Four things are drawn, each from its own stream:

| seed | draws | reset option |
|---|---|---|
| load | arrivals and lengths | `load_seed` |
| faults | which nodes are lemons, when a node fails | `fault_seed` |
| parameters | hidden physics, meters' bias, noise of writes and telemetry | `parameter_seed` |
| events | when a drawn cut starts | `seed` |

`reset(seed=1)` seeds all four with 1; `reset(seed=1, options={"load_seed": 2})` changes the load and nothing else.
"""

END = """
Episodes are truncated when the scenario's `seconds` are over, after seconds / control_s steps (180 by default); they
never terminate. The state then is like any other: bootstrap from it.
"""

INFO = f"""
| key | when | meaning |
|---|---|---|
| `reward_lost_share` | step | the reward's first term: minus the share of tokens rejected, lost or late |
| `reward_correction` | step | its second term |
| `cost` | step | watt-seconds above limits in force, all domains, plus {TRIP_COST_WS:g} a trip; 0 in the warm-up |
| `good_tok` | step | tokens whose requests met their targets |
| `kpis` | last step | dict of KPIs of the episode; `docs/reference/kpis.md` |
| `load_scale` | reset | how many copies of a load file were laid over each other; 1 for generated load |

In the vector environment every key is an array with a boolean mask `_key`, and `final_obs` and `final_info` belong to
the episodes that ended in the step (`AutoresetMode.SAME_STEP`).
"""

ARGUMENTS = """
```python
gym.make("flyball.envs:flyball/<<id>>", scenario="bursty", obs="flat", action="bids", render_mode=None, overrides=())
gym.make_vec("flyball.envs:flyball/<<id>>", num_envs=8, scenario="bursty")
```

| argument | values |
|---|---|
| `scenario` | a name of `flyball scenarios` or a .toml file |
| `overrides` | keys of the scenario as in `--set`: `("seconds=300", "load.target_util=0.8")` |
| `obs` | `"flat"` or `"tokens"` |
| `action` | `"bids"`: the action is the bid; `"residual"`: it is added to the background's bid |
| `background` | policy that plays what the agent does not own; the scenario's by default |
| `file`, `block` | load from a trace (`envs.traces.read_requests`), and which third of it |
| `pad_pools` | smallest number of pool tokens in the flat boxes |
| `render_mode` | None, `"ansi"` or `"rgb_array"` |

With `"residual"`, zeros play the background policy: learning starts at a baseline instead of below it.
"""

HISTORY = "* v0: first version; a change of meaning will bump it."

SHARED = {"rewards": REWARDS, "start": START, "end": END, "info": INFO, "arguments": ARGUMENTS, "history": HISTORY}


def documented(env_id: str) -> Callable[[type], type]:
    """Fill the marks of a class docstring with what the id's channels and the schema say."""

    def fill(cls: type) -> type:
        parts = {**SHARED, "actions": action_text(env_id), "observations": observation_text(env_id)}
        if env_id == "PowerRaw-v0":
            parts["rewards"] = RAW_REWARDS
        text = inspect.cleandoc(cls.__doc__ or "")
        for name, part in parts.items():
            text = text.replace(f"<<{name}>>", part.strip())
        cls.__doc__ = text.replace("<<id>>", env_id)
        cls.env_id = env_id  # type: ignore[attr-defined]
        return cls

    return fill


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

    ## Action space

    <<actions>>

    ## Observation space

    <<observations>>

    ## Rewards

    <<rewards>>

    ## Starting state

    <<start>>

    ## Episode end

    <<end>>

    ## Information

    <<info>>

    ## Arguments

    <<arguments>>

    ## Version history

    <<history>>
    """


@documented("Stages-v0")
class StagesEnv(FlyballEnv):
    """Move nodes between prefill and decode, while the background policy shares the watts.

    ## Description

    A bid above 0 asks for more nodes in a pool, below 0 for fewer. A move takes the time to load the other stage's
    model (30 to 60 s by default, drawn and hidden), in which the node serves nothing; the arbiter rounds pools up,
    keeps a margin of decode nodes, and holds moves to a rate and a dwell. The difficulty is delay: a node asked for now
    serves in the next burst, or misses it.

    ## Action space

    <<actions>>

    ## Observation space

    <<observations>>

    ## Rewards

    <<rewards>>

    ## Starting state

    <<start>>

    ## Episode end

    <<end>>

    ## Information

    <<info>>

    ## Arguments

    <<arguments>>

    ## Version history

    <<history>>
    """


@documented("Remediation-v0")
class RemediationEnv(FlyballEnv):
    """Drain nodes that are about to fail or run hot, and say which should receive new work.

    ## Description

    Nodes fail, some twenty times as often as others; hot ones throttle. A drained node gets no new requests and loses
    none when it fails, but serves nothing either. The agent sees every node and bids for each; the arbiter never drains
    more than the allowed share of a failure domain. Scenarios with faults or heat are the ones to learn on:
    `scenario="faults"` or `"thermal"`.

    ## Action space

    <<actions>>

    ## Observation space

    <<observations>>

    ## Rewards

    <<rewards>>

    ## Starting state

    <<start>>

    ## Episode end

    <<end>>

    ## Information

    <<info>>

    ## Arguments

    <<arguments>>

    ## Version history

    <<history>>
    """


@documented("Factory-v0")
class FactoryEnv(FlyballEnv):
    """Everything at once: watts, nodes and clocks of the pools, drains and order of the nodes, slack of the fleet.

    ## Description

    The agent owns every bid channel, and the background policy is only the base of residual actions. A clock ceiling
    saves energy where a cap does not bind; it can only ever lower draw. The action has one number per node and channel
    beside those of the pools: share weights or exploration noise between nodes.

    ## Action space

    <<actions>>

    ## Observation space

    <<observations>>

    ## Rewards

    <<rewards>>

    ## Starting state

    <<start>>

    ## Episode end

    <<end>>

    ## Information

    <<info>>

    ## Arguments

    <<arguments>>

    ## Version history

    <<history>>
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

    ## Action space

    <<actions>>

    ## Observation space

    <<observations>>

    ## Rewards

    <<rewards>>

    ## Starting state

    <<start>>

    ## Episode end

    <<end>>

    ## Information

    <<info>>

    ## Arguments

    <<arguments>>

    ## Version history

    <<history>>
    """


ENVIRONMENTS: dict[str, type[FlyballEnv]] = {
    cls.env_id: cls  # type: ignore[attr-defined]
    for cls in (PowerEnv, StagesEnv, RemediationEnv, FactoryEnv, PowerRawEnv)
}
"""Class of every id."""
