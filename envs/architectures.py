"""Shapes of served models: published ones by name, and an estimate for any other from its parameter counts."""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ARCHITECTURES = Path(__file__).parent / "profiles" / "architectures.toml"


@dataclass(frozen=True)
class Architecture:
    """What a model is, whatever serves it. Parameters in units, not billions.

    Attributes:
        name: The table's name, or the checkpoint's for an estimate.
        total_params: All weights.
        active_params: Weights that one token touches.
        expert_params: Weights inside routed experts; 0 for a dense model.
        experts: Routed experts per layer; 1 for a dense model.
        top_k: Experts that one token touches; 1 for a dense model.
        layers: Transformer blocks.
        hidden: Width of the residual stream.
        heads: Query heads.
        head_dim: Width of a head.
        attention_layers: Blocks with full attention; the others slide or are linear.
        kv_heads: Shards into which tensor parallelism can split the KV cache (1 for MLA).
        kv_elements_token: Elements of KV cache per token over all layers.
        state_elements: Elements read per request and step whatever its context.
        is_published: Whether the row comes from a published configuration.
    """

    name: str
    total_params: float
    active_params: float
    expert_params: float
    experts: int
    top_k: int
    layers: int
    hidden: int
    heads: int
    head_dim: int
    attention_layers: int
    kv_heads: int
    kv_elements_token: float
    state_elements: float = 0.0
    is_published: bool = True

    @property
    def is_moe(self) -> bool:
        """Whether tokens are routed to experts."""
        return self.experts > 1

    @property
    def common_params(self) -> float:
        """Weights that every token touches."""
        return self.total_params - self.expert_params

    @property
    def experts_half(self) -> float:
        """Batch that touches half of the experts, if routing were uniform: (1 - k/E)^b = 1/2."""
        if not self.is_moe:
            return 1.0
        return _half_batch(self.experts, self.top_k)


def _half_batch(experts: int, top_k: int) -> float:
    from math import log

    return max(log(0.5) / log(1.0 - top_k / experts), 1.0) if top_k < experts else 1.0


@cache
def _tables() -> tuple[dict[str, Architecture], list[tuple[str, str]]]:
    rows, patterns = {}, []
    for name, r in tomllib.loads(ARCHITECTURES.read_text()).items():
        rows[name] = Architecture(
            name, r["total_b"] * 1e9, r["active_b"] * 1e9, r.get("expert_b", 0.0) * 1e9, r.get("experts", 1),
            r.get("top_k", 1), r["layers"], r["hidden"], r["heads"], r["head_dim"],
            r.get("attention_layers", r["layers"]), r["kv_heads"], float(r["kv"]), r.get("state", 0.0),
        )  # fmt: skip
        patterns += [(p, name) for p in r["match"]] + [(name, name)]
    return rows, sorted(patterns, key=lambda p: -len(p[0]))


def architectures() -> dict[str, Architecture]:
    """Every published shape by name."""
    return _tables()[0]


def architecture(checkpoint: str, total_b: float | None = None, active_b: float | None = None) -> Architecture | None:
    """The shape behind a checkpoint's name.

    Args:
        checkpoint: As model hubs spell it, e.g. "meta-llama/Llama-3.1-70B-Instruct".
        total_b: Parameters in billions, for a model that the table does not know.
        active_b: Parameters that a token touches, in billions.

    Returns:
        The published shape; an estimate from the parameter counts, given or read from the name ("30B-A3B", "8b");
        None if neither says how large the model is.
    """
    rows, patterns = _tables()
    name = checkpoint.lower()
    for part, row in patterns:
        if part in name:
            return rows[row]
    if not total_b:
        sizes = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)b(?![a-z])", name.replace("_", "-"))
        active = re.findall(r"-a(\d+(?:\.\d+)?)b", name)
        if not sizes:
            return None
        total_b = float(sizes[0])
        active_b = float(active[0]) if active else total_b
    return estimate(checkpoint, total_b, active_b or total_b)


def estimate(name: str, total_b: float, active_b: float) -> Architecture:
    """A plausible shape for a model of which only the parameter counts are known.

    Depth and width of dense models grow as the 0.35th power of the parameters (8B: 32 x 4096, 70B: 80 x 8192, 405B:
    126 x 16384); sparse ones are taken as 128 experts, 8 of them active, GQA with 8 KV heads of 128.
    """
    is_moe = active_b < 0.8 * total_b
    layers = round(min(32 * ((total_b if not is_moe else 3.0 * active_b) / 8.0) ** 0.35, 130))
    hidden = round(4096 * (active_b / 8.0) ** 0.35 / 128) * 128
    experts, top_k = (128, 8) if is_moe else (1, 1)
    # active = common + expert * k / E
    expert_b = (total_b - active_b) / (1.0 - top_k / experts) if is_moe else 0.0
    return Architecture(
        name, total_b * 1e9, active_b * 1e9, expert_b * 1e9, experts, top_k, layers, hidden, max(hidden // 128, 8), 128,
        layers, 8, float(layers * 2 * 8 * 128), is_published=False,
    )  # fmt: skip
