"""Random sites: trees of depth 1 to 6, ragged, with shared failure domains, mixed products and reserves."""

import numpy as np

from ...fleet.skus import SKUS
from ...fleet.topology import Fleet, Node, PowerDomain, Service, Timing


def random_site(rng: np.random.Generator, nodes: int | None = None, **timing) -> Fleet:
    """A random site whose smallest caps fit every limit with the declared reserve.

    Args:
        rng: Of everything that is drawn.
        nodes: Their number; up to 12 by default.
        timing: Overrides of `Timing`.
    """
    count = int(rng.integers(1, 13)) if nodes is None else nodes
    depth = int(rng.integers(1, 7))
    parents, leaves = ["d0"], []
    domains: list[tuple[str, str | None]] = [("d0", None)]
    for level in range(1, depth):
        made = []
        for parent in parents:
            for _ in range(int(rng.integers(1, 4)) if level < 4 else 1):
                if len(domains) >= 2 * count + depth:
                    break
                name = f"d{len(domains)}"
                domains.append((name, parent))
                made.append(name)
        parents = made or parents
        leaves += made
    leaves = leaves or ["d0"]
    services = int(rng.integers(1, 3))
    skus = sorted(SKUS)
    entries = []
    for i in range(count):
        # nodes may hang on inner domains too
        home = leaves[int(rng.integers(len(leaves)))]
        gpus = int(rng.choice([1, 4, 8]))
        stage = "decode" if rng.random() < 0.5 else "prefill"
        failure = f"f{int(rng.integers(max(1, count // 3)))}"  # across power domains
        sku = skus[int(rng.integers(len(skus)))]
        entries.append(
            Node(f"n{i}", home, sku, gpus, int(rng.integers(0, 400)) * gpus, f"s{i % services}", stage, failure)
        )
    built = [_limits(rng, name, parent, domains, entries) for name, parent in domains]
    clock = {"dwell_s": float(rng.choice([3.0, 8.0, 60.0])), "deadband_w": int(rng.choice([0, 48])), **timing}
    kinds = ("disaggregated", "disaggregated", "aggregated")
    return Fleet.build(
        "random",
        built,
        entries,
        [
            Service(f"s{s}", "llama-70b", priority=100 + int(rng.integers(3)), kind=str(rng.choice(kinds)))
            for s in range(services)
        ],
        timing=Timing(**clock),
        max_drain_frac=float(rng.choice([0.1, 0.25, 0.5])),
    )


def _limits(rng, name, parent, domains, entries) -> PowerDomain:
    """A limit between the smallest and the largest caps of what is below, both with the reserve."""
    below = {name}
    for child, above in domains:  # parents stand first
        if above in below:
            below.add(child)
    inside = [n for n in entries if n.domain in below]
    least = [SKUS[n.sku].cap_min_w * n.gpus for n in inside]
    most = [SKUS[n.sku].cap_max_w * n.gpus for n in inside]
    unmanaged = int(rng.choice([0, 0, 500]))
    fixed = unmanaged + sum(n.non_gpu_max_w for n in inside)
    reserve = int(rng.choice([0, 0, 1, 2])) if len(inside) > 2 else 0
    jumps = sorted((b - a for a, b in zip(least, most, strict=True)), reverse=True)
    floor = fixed + sum(least) + sum(jumps[:reserve])
    peak = floor + int(rng.uniform(0.0, 1.0) * max(fixed + sum(most) - floor, 0)) + 1
    mean = int(rng.uniform(0.97, 1.0) * peak) if rng.random() < 0.2 else 0
    mean = max(mean, int(floor / 0.97) + 1) if mean else 0
    window = float(rng.choice([10.0, 30.0]))
    return PowerDomain(name, max(peak, mean), parent, mean if mean else 0, window, unmanaged, reserve)
