"""Who competes: baselines, policy files, several training seeds as one, and policies with a bid channel taken away."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

from .. import registry
from ..envs.scenario import Scenario
from ..fleet.bids import Bids
from ..fleet.errors import BadInput
from ..fleet.schema import FLEET_BIDS, POOL_BIDS
from ..policies.base import Policy

CLAIRVOYANT = "clairvoyant"

ALL_BASELINES = "baselines"
"""Stands for every baseline that can run live."""

CHANNELS = tuple(f.name for f in (*POOL_BIDS, *FLEET_BIDS))
"""Bid channels that an ablation can give back to the base: watts, nodes, clock, spend."""


@dataclass(frozen=True)
class Contender:
    """One line of a comparison.

    Attributes:
        name: What rows call it.
        members: Policies by name or file, one per training seed; their windows are pooled.
        ablation: Bid channel that its base plays instead of it.
        folder: Where the members' entry points are imported from.
    """

    name: str
    members: tuple[str, ...]
    ablation: str | None = None
    folder: str | None = None

    @property
    def is_learned(self) -> bool:
        """Whether its members are policy files."""
        return all(is_file(m) for m in self.members)


def is_file(name: str) -> bool:
    """Whether a policy's name stands for an ONNX file."""
    return name == "champion" or name.endswith(".onnx")


def is_entry(name: str) -> bool:
    """Whether a policy's name is an entry point "package.module:make"."""
    return ":" in name and not name.endswith(".onnx")


def read_groups(texts: Sequence[str]) -> tuple[Contender, ...]:
    """NAME=GLOB as contenders whose members are the files that match, sorted; a name given twice gathers both.

    Raises:
        BadInput: another form, or no such files.
    """
    members: dict[str, list[str]] = {}
    for text in texts:
        name, equals, pattern = text.partition("=")
        if not equals or not name or not pattern:
            raise BadInput(f"--group {text}: write it as NAME=GLOB, e.g. --group 'mine=runs/*/policy.onnx'")
        found = sorted(glob(pattern, recursive=True))
        if not found:
            raise BadInput(f"--group {text}: no file matches {pattern}")
        known = members.setdefault(name, [])
        known += [path for path in found if path not in known]
    return tuple(Contender(name, tuple(paths)) for name, paths in members.items())


def contenders(
    names: tuple[str, ...], groups: tuple[Contender, ...], scenario: Scenario, is_ablated: bool = False
) -> list[Contender]:
    """Everyone who competes in a scenario, each once: those asked for, the best tuned baseline, and ablations.

    Raises:
        BadInput: a group that bears a policy's name.
    """
    out: list[Contender] = []
    asked = [n for name in names for n in (registry.CANDIDATES if name == ALL_BASELINES else (name,))]
    for name in (*asked, "best-baseline"):
        real = registry.best_baseline_name(scenario) if name == "best-baseline" else name
        if real not in [c.name for c in out]:
            out.append(Contender(real, (real,)))
    for group in groups:
        if group.name in [c.name for c in out]:
            raise BadInput(f"--group {group.name}=...: another policy has this name; choose a new one")
        out.append(group)
    if is_ablated:
        whole = [c for c in out if c.is_learned]
        if not whole:
            raise BadInput("--ablate: no policy file to take a channel from; name one with --policy or --group")
        out += [replace(c, name=f"{c.name} without {k}", ablation=k) for c in whole for k in CHANNELS]
    return out


def make_policy(name: str, scenario: Scenario, ablation: str | None = None, folder: str | None = None) -> Policy:
    """A contender's member, ready to bid.

    Raises:
        BadInput: an unknown name, a file that cannot be used, or an ablation of what has no base.
    """
    if is_entry(name):
        from .leaderboard.check import load_entry

        return load_entry(name, scenario, Path(folder or "."))
    policy = registry.policy(name, scenario)
    return policy if ablation is None else WithoutChannel(policy, ablation)


def fingerprint(name: str, scenario: Scenario, ablation: str | None = None, folder: str | None = None) -> list[Any]:
    """What identifies a member's decisions: its constants, or its file's bytes."""
    if is_entry(name):
        sources = sorted(p for p in Path(folder or ".").rglob("*") if p.suffix in (".py", ".onnx", ".toml", ".json"))
        return [name, _digest(*(p.read_bytes() for p in sources))]
    if is_file(name):
        path = registry.champion_path() if name == "champion" else Path(name)
        return [_digest(path.read_bytes()), ablation]
    table = registry.tuned()["baselines"]
    own = [name, table.get(name, {}).get(scenario.family, {}).get("params", {})]
    # planners choose from a portfolio, whose constants decide too
    members = registry.portfolio(name, scenario) if name in registry.NEEDS_SIMULATOR else ()
    return [own, *([member, params] for member, params in members)]


def trained_on(contender: Contender, scenario: Scenario) -> list[str] | None:
    """Scenario families that policy files say they were trained on; None for what has no card."""
    if not contender.is_learned:
        return None
    cards = [registry.policy(m, scenario).card for m in contender.members]  # type: ignore[attr-defined]
    return sorted({family for card in cards for family in card.families})


class WithoutChannel:
    """A policy file whose bids on one channel are its base's."""

    def __init__(self, policy: Any, channel: str):
        if channel not in CHANNELS:
            raise BadInput(f"no bid channel {channel!r}; use {', '.join(CHANNELS)}")
        if not hasattr(policy, "baseline"):
            raise BadInput(f"{policy.name}: only a policy file has a base to give {channel} back to")
        self.policy, self.channel, self.name = policy, channel, policy.name

    def start(self, batch):
        return self.policy.start(batch)

    def bid(self, snapshot, observation, memory):
        base, _ = self.policy.baseline.bid(snapshot, observation, memory)
        bids, memory = self.policy.bid(snapshot, observation, memory)
        pool, fleet = bids.pool.copy(), bids.fleet.copy()
        for fields, mine, theirs in ((POOL_BIDS, pool, base.pool), (FLEET_BIDS, fleet, base.fleet)):
            for column, field in enumerate(fields):
                if field.name == self.channel:
                    mine[..., column] = theirs[..., column]
        return Bids(pool, bids.node, fleet), memory


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
