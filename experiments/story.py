"""What a demo found out, as one value that survives on disk: the report is drawn from it, now or years later."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "flyball-story-1"

LEARNED, BEST, STATIC = "learned", "best", "static"
"""Roles of replayed policies: the one on show, the best baseline, the static stage table."""


@dataclass(frozen=True)
class Cut:
    """A lowered limit of the replayed episode.

    Attributes:
        start_s: When it starts.
        end_s: When the nominal limit returns, or the episode ends.
        notice_s: How long before its start it was announced; 0 is not at all.
        limit_frac: The lower limit as a share of the nominal one.
    """

    start_s: float
    end_s: float
    notice_s: float
    limit_frac: float


@dataclass(frozen=True)
class Site:
    """What the charts need to know of the fleet.

    Attributes:
        name: The site's name.
        nodes: Servers.
        gpus: GPUs.
        nominal_w: Nominal limit of the root.
        grace_s: After an un-noticed cut, until its limit is in force.
        control_s: Between two decisions.
        tick_s: Between two settlements.
        services: {"name", "ttft_s", "itl_s"} of every service.
    """

    name: str
    nodes: int
    gpus: int
    nominal_w: float
    grace_s: float
    control_s: float
    tick_s: float
    services: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Replay:
    """One recorded episode of one policy.

    Attributes:
        role: LEARNED, BEST or STATIC.
        policy: Name as it is shown.
        kpis: Of the episode.
        columns: `envs.episodes.Series.columns`: name to (steps,) values, the unit in the name.
    """

    role: str
    policy: str
    kpis: dict[str, float]
    columns: dict[str, np.ndarray]


@dataclass(frozen=True)
class Story:
    """Everything that the report says.

    Attributes:
        scenario: Name of the replayed scenario.
        summary: Its one line.
        seconds: Length of an episode.
        warmup_s: Excluded from KPIs.
        site: The fleet.
        cuts: Lowered limits of the replayed episode.
        policy: Name in the evaluation's rows of the policy on show.
        label: What the report calls it.
        is_learned: False where no learned policy was at hand and the best baseline is on show.
        note: What must be said of that choice; empty for nothing.
        load: Where the load came from.
        load_scale: Superposition factor of a file.
        seed: Of the replayed episode.
        replays: One per role.
        evaluation: Result of `experiments.evaluate.evaluate`.
        training: Result of `training.train.train`; None where nothing was trained.
        card: What the policy's file says of itself, and how far it is from torch; None for a baseline.
        made: {"commands", "hashes", "versions", "machine", "seconds", "quick", "is_tuned"}.
        extra: Results of later stages, by name: each has its section in the report.
    """

    scenario: str
    summary: str
    seconds: float
    warmup_s: float
    site: Site
    cuts: tuple[Cut, ...]
    policy: str
    label: str
    is_learned: bool
    note: str
    load: str
    load_scale: float
    seed: int
    replays: tuple[Replay, ...]
    evaluation: dict[str, Any]
    training: dict[str, Any] | None
    card: dict[str, Any] | None
    made: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)

    def replay(self, role: str) -> Replay:
        """The episode of one role; the best baseline's where the policy on show has none of its own."""
        found = {r.role: r for r in self.replays}
        return found.get(role) or found[BEST]

    @property
    def best_baseline(self) -> str:
        """Name of the best baseline of the replayed scenario."""
        return self.replay(BEST).policy


def save_story(story: Story, path: Path) -> None:
    """Write a story as JSON, whole or not at all."""
    content = {"format": FORMAT, **asdict(story)}
    for replay in content["replays"]:
        replay["columns"] = {name: values.tolist() for name, values in replay["columns"].items()}
    write_whole(path, json.dumps(content))


def load_story(path: Path) -> Story:
    """Read what `save_story` wrote.

    Raises:
        BadInput: if there is none, or it was written by another version.
    """
    from ..fleet.errors import BadInput

    try:
        content = json.loads(path.read_text())
        if content.pop("format") != FORMAT:
            raise ValueError
        content["site"] = Site(**{**content["site"], "services": tuple(content["site"]["services"])})
        content["cuts"] = tuple(Cut(**cut) for cut in content["cuts"])
        content["replays"] = tuple(
            Replay(**{**r, "columns": {k: np.array(v, float) for k, v in r["columns"].items()}})
            for r in content["replays"]
        )
        return Story(**content)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; make it with: flyball demo --out {path.parent}") from None
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: not a story of this version; run flyball demo again") from None


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    if isinstance(content, bytes):
        partial.write_bytes(content)
    else:
        partial.write_text(content, encoding="utf-8")
    partial.replace(path)
