"""What the pages of the environments have in common, and the tables that `fleet.schema` fills in."""

import inspect
from collections.abc import Callable

from ..fleet.schema import FLEET_BIDS, FLEET_FEATURES, KINDS, NODE_FEATURES, POOL_BIDS, POOL_FEATURES, Field
from .core import CHANNELS, CORRECTION_WEIGHT, TRIP_COST_WS
from .gym_env import LIMIT


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
gym.make("flyball.envs:flyball/<<id>>", scenario="bursty", obs="flat", action="bids", render_mode=None)
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
| `autoreset` | of the vector environment: `"same_step"` or `"next_step"` |

With `"residual"`, zeros play the background policy: learning starts at a baseline instead of below it.
"""

HISTORY = "* v0: first version; a change of meaning will bump it."

SHARED = {"rewards": REWARDS, "start": START, "end": END, "info": INFO, "arguments": ARGUMENTS, "history": HISTORY}

SECTIONS = {
    "Action space": "actions",
    "Observation space": "observations",
    "Rewards": "rewards",
    "Starting state": "start",
    "Episode end": "end",
    "Information": "info",
    "Arguments": "arguments",
    "Version history": "history",
}
"""Sections that follow the description on every page, and the part that fills each."""


def documented(env_id: str) -> Callable[[type], type]:
    """Fill the marks of a class docstring with what all pages share and what the id's channels and the schema say."""

    def fill(cls: type) -> type:
        parts = {**SHARED, "actions": action_text(env_id), "observations": observation_text(env_id)}
        if env_id == "PowerRaw-v0":
            parts["rewards"] = RAW_REWARDS
        sections = "\n\n".join(f"## {title}\n\n<<{part}>>" for title, part in SECTIONS.items())
        text = inspect.cleandoc(cls.__doc__ or "").replace("<<sections>>", sections)
        for name, part in parts.items():
            text = text.replace(f"<<{name}>>", part.strip())
        cls.__doc__ = text.replace("<<id>>", env_id)
        return cls

    return fill
