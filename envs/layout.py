"""What stands where in a flat observation and a flat action: every number's token, field, unit and range.

`envs.core.Core.flat` and `Core.bids` write and read this order; a test holds them to it.
"""

from dataclasses import dataclass

from ..fleet.schema import FLEET_BIDS, FLEET_FEATURES, NODE_BIDS, NODE_FEATURES, POOL_BIDS, POOL_FEATURES, Field
from ..fleet.tables import STAGES
from ..fleet.topology import Fleet
from .core import Core

STAGE_NAMES = ("prefill", "decode")

MASK = Field("mask", "1", 0, 1, "1 where the token exists, 0 for padding")


@dataclass(frozen=True)
class Slot:
    """One number of a flat box.

    Attributes:
        index: Where it stands.
        kind: "pool", "node" or "fleet".
        token: Index of the token within its kind.
        token_name: "chat/prefill", "rack1-node0", "fleet"; "padding" for a token that this fleet does not have.
        part: "feature", "mask", "base" (the background's bid of now) or "bid" (an action).
        column: Index of the field within its token and part.
        field: Name, unit, range and meaning.
    """

    index: int
    kind: str
    token: int
    token_name: str
    part: str
    column: int
    field: Field

    @property
    def name(self) -> str:
        """For instance "chat/decode.util", or "chat/decode.base.watts" for the background's bid."""
        middle = "base." if self.part == "base" else ""
        return f"{self.token_name}.{middle}{self.field.name}"


def pool_names(fleet: Fleet) -> list[str]:
    """Name of every pool token: service and stage."""
    return [f"{s.name}/{STAGE_NAMES[stage]}" for s in fleet.services for stage in range(STAGES)]


def _tokens(core: Core, kind: str) -> list[str]:
    if kind == "pool":
        names = pool_names(core.fleet)
        return names + ["padding"] * (core.flat_pools - len(names))
    return [n.name for n in core.fleet.nodes] if kind == "node" else ["fleet"]


def _lay(core: Core, blocks) -> tuple[Slot, ...]:
    slots: list[Slot] = []
    for kind, part, fields in blocks:
        for token, name in enumerate(_tokens(core, kind)):
            for column, field in fields:
                slots.append(Slot(len(slots), kind, token, name, part, column, field))
    return tuple(slots)


def observation_slots(core: Core) -> tuple[Slot, ...]:
    """Every number of the flat observation, in order."""
    mask = [(0, MASK)]
    blocks = [
        ("pool", "feature", list(enumerate(POOL_FEATURES))),
        ("pool", "mask", mask),
        ("pool", "base", list(enumerate(POOL_BIDS))),
    ]
    if core.has_nodes:
        blocks += [("node", "feature", list(enumerate(NODE_FEATURES))), ("node", "mask", mask)]
    blocks += [("fleet", "feature", list(enumerate(FLEET_FEATURES))), ("fleet", "base", list(enumerate(FLEET_BIDS)))]
    return _lay(core, blocks)


def action_slots(core: Core) -> tuple[Slot, ...]:
    """Every number of the action, in order: the channels that the agent owns, token by token."""
    blocks = []
    for kind, fields in (("pool", POOL_BIDS), ("node", NODE_BIDS), ("fleet", FLEET_BIDS)):
        own = core.channels.indices(kind)
        if own:
            blocks.append((kind, "bid", [(c, fields[c]) for c in own]))
    return _lay(core, blocks)
