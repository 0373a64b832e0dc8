"""Submission cards: one TOML file beside the policies it names."""

from dataclasses import dataclass
from pathlib import Path

from ...fleet.errors import BadInput
from ...fleet.toml_file import number, parse, read_toml
from . import PROTOCOL

TRACKS = ("bids", "planner")
"""`bids`: what is observed, to bids. `planner`: may also look ahead through a simulator of its own."""

MIN_SEEDS = 5
"""Training seeds that a submission brings: one policy each."""

_ENTRY = ":"


class CardError(BadInput):
    """A submission card that cannot be used as it is."""


@dataclass(frozen=True)
class Card:
    """A submission.

    Attributes:
        name: What the results page calls it.
        authors: Who answers for it.
        track: One of `TRACKS`.
        policies: ONNX files beside the card, or entry points "package.module:make" that take a `Fleet` and return a
            policy; one per training seed.
        trained_on: Scenario families seen in training and tuning; () where nothing was trained.
        command: What made the policies.
        licence: Of the policies.
        cpu_s: CPU seconds of training per seed, tuning included.
        protocol: Version of these rules.
    """

    name: str
    authors: str
    track: str
    policies: tuple[str, ...]
    trained_on: tuple[str, ...] = ()
    command: str = ""
    licence: str = ""
    cpu_s: float = number(0.0, low=0)
    protocol: str = PROTOCOL


def read_card(path: Path) -> Card:
    """Read a card and check what does not need the policies to run.

    Raises:
        CardError: one line with the key and what to change.
    """
    card = parse(Card, read_toml(path, CardError), str(path), CardError)
    if card.protocol != PROTOCOL:
        raise CardError(f"{path}: protocol: {card.protocol!r}; this build speaks {PROTOCOL!r}")
    if card.track not in TRACKS:
        raise CardError(f"{path}: track: {card.track!r}; use {' or '.join(TRACKS)}")
    if len(card.policies) < MIN_SEEDS:
        raise CardError(
            f"{path}: policies: {len(card.policies)} given; bring at least {MIN_SEEDS}, one per training seed"
        )
    if len(set(card.policies)) < len(card.policies):
        raise CardError(f"{path}: policies: one is named twice; each stands for another training seed")
    for entry in card.policies:
        if entry.endswith(".onnx"):
            if not (path.parent / entry).is_file():
                raise CardError(f"{path}: policies: no file {entry!r} beside the card")
        elif entry.count(_ENTRY) != 1 or not all(entry.split(_ENTRY)):
            raise CardError(f"{path}: policies: {entry!r} is neither FILE.onnx nor package.module:make")
    return card
