"""What a live run found."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Happening:
    """Something that happened, for people.

    Attributes:
        t_s: From the start of the plant.
        kind: budget, fault, service, node or limit.
        text: What.
    """

    t_s: float
    kind: str
    text: str


@dataclass(frozen=True)
class LiveResult:
    """What a live run found.

    Attributes:
        site, nodes, gpus, nominal_w, grace_s, lease_ttl_s: Of the site; `gpus` per node.
        cuts: {"start_s", "notice_s", "limit_frac", "end_s"} of each.
        kpis: Of the contract, and those of `Emulation.kpis`, and what this run asks.
        series: Once per second: `t_s`, `demanded_w`, `in_force_w`, `power_w`, `bound_w` (T,) of the root;
            `cap_w`, `status`, `epoch` (T, N) of the nodes.
        events: In order.
        explanations: Sentences of `flyball explain` about the run.
    """

    scenario: str
    policy: str
    load: str
    load_scale: float
    seed: int
    site: str
    nodes: tuple[str, ...]
    gpus: tuple[int, ...]
    nominal_w: float
    grace_s: float
    lease_ttl_s: float
    cuts: tuple[dict[str, float], ...]
    kpis: dict[str, float]
    series: dict[str, np.ndarray]
    events: tuple[Happening, ...]
    explanations: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "series": {name: values.tolist() for name, values in self.series.items()}}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "LiveResult":
        """The inverse of `to_dict`, from JSON or not."""
        return cls(
            **{
                **content,
                "nodes": tuple(content["nodes"]),
                "gpus": tuple(content["gpus"]),
                "cuts": tuple(content["cuts"]),
                "series": {name: np.array(values) for name, values in content["series"].items()},
                "events": tuple(Happening(**e) for e in content["events"]),
                "explanations": tuple(content["explanations"]),
            }
        )

    def summary(self) -> dict[str, Any]:
        """What `flyball demo --json` prints of it."""
        keys = ("scenario", "policy", "load", "load_scale", "seed", "kpis")
        events = [asdict(e) for e in self.events]
        return {**{k: getattr(self, k) for k in keys}, "events": events, "explanations": list(self.explanations)}
