"""`flyball plan`: how many GPUs fit a site's power at its latency targets.

Candidates are the site with more or fewer of its own nodes on the same power tree (`plan_fleets`), each split between
prefill and decode as serves it best. For each, bisection
finds the largest load at which the share of requests that meet both latency targets still reaches a given one. Loads
are generated, or a file's arrivals superposed, always from the same seeds. All of it is measured in the plant. The best
of several policies is chosen on the windows that it is then judged by: with few windows that flatters it a little.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import registry
from ..envs.episodes import mean_kpis, read_file, run_episodes
from ..envs.scenario import Scenario, check_scenario
from ..envs.traces import RateTable, Requests
from ..fleet.errors import BadInput, ScenarioError, SiteError
from ..fleet.topology import Fleet
from .bench.fleets import scenario_on
from .plan_fleets import PROVISIONING, fits_floors, fits_watts, most_nodes, most_that_fit, nameplate_w, scaled
from .site_scenario import site_scenario

LOW_UTIL, SATURATED_UTIL = 0.02, 1.5
"""Ends of the search for a load, as shares of what a candidate could serve uncapped."""

UTIL_STEP = 0.005
"""Where the search for a load ends."""

AS_GOOD_FRAC = 0.99
"""Of candidates that sustain this share of the most, the one with the fewest GPUs is recommended."""

MOST_CANDIDATES, REFINED = 16, 4
"""Node counts tried, evenly spread where there are more, and how many more around the best of them."""

POLICIES = ("uniform", "static", "greedy", "reactive")
"""Who plays a candidate unless told. No one of them is best at every count: constants that were tuned where watts bind
lose a fifth of the load where they do not (12 nodes on demo-16's feed), and uniform caps lose where they do."""

UNGOVERNED = "uniform"
"""Plays what a rule of provisioning buys: the arbiter alone, every GPU at its largest cap as all of them fit."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class PlanConfig:
    """What is asked.

    Attributes:
        site: Site file or name.
        policies: Play every candidate; the one that sustains most is kept.
        load: Trace or rate table; generated load otherwise.
        scenario: Whose load and plant it is.
        attainment: Share of requests that must meet both targets.
        seeds: Windows per simulation.
        seconds: Length of a window that is judged.
        warmup_s: Before it.
    """

    site: str
    policies: tuple[str, ...] = POLICIES
    load: str | None = None
    scenario: str = "steady"
    attainment: float = 0.95
    seeds: int = 4
    seconds: float = 600.0
    warmup_s: float = 60.0


@dataclass(frozen=True)
class Candidate:
    """One number of nodes, at the largest load that it sustains; figures of that load are NaN where it sustains none.

    Attributes:
        nodes: Nodes.
        prefill_nodes: Of them, that start as prefill.
        policy: Who plays it.
        gpus: GPUs.
        oversubscription: Nameplate watts of all nodes over the root's `peak_w`.
        requests_per_s: Offered requests per second, the largest that meet the attainment asked for.
        target_util: That load as a share of what the candidate could serve uncapped.
        goodput_tok_s_per_mw: There, as the KPI of that name.
        attainment: There, of offered requests.
        peak_power_frac: There, the largest site power over the limit in force, of all windows.
        violation_ws: Watt-seconds above limits in force in all windows of the search.
        saturated_tok_s_per_mw: Goodput at 1.5 times what it could serve uncapped.
        saturated_attainment: Attainment there.
    """

    nodes: int
    prefill_nodes: int
    policy: str
    gpus: int
    oversubscription: float
    requests_per_s: float
    target_util: float
    goodput_tok_s_per_mw: float
    attainment: float
    peak_power_frac: float
    violation_ws: float
    saturated_tok_s_per_mw: float
    saturated_attainment: float


def plan(config: PlanConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Find the number of nodes that serves most.

    Returns:
        {"site", "policy", "load", "recommended", "candidates", "provisioning"}, and beside them what was asked and
        "sentence", the answer in words. "policy" is who plays the recommendation. "provisioning" has for every rule of
        `PROVISIONING` its nodes and GPUs (None where not one site fits), and how the recommendation compares.

    Raises:
        BadInput: a site, load, policy or setting at fault, or targets that no candidate meets at any load.
    """
    _check(config)
    progress = progress or (lambda label, share: None)
    base = site_scenario(
        config.site, config.scenario, seconds=config.seconds + config.warmup_s, warmup_s=config.warmup_s
    )
    fleet, file = base.fleet, read_file(config.load)
    bought = {p.name: most_nodes(fleet, lambda f, p=p: fits_watts(f, p.node_w)) for p in PROVISIONING}
    most = most_that_fit(fleet)
    known = [n for n in (*bought.values(), len(fleet.nodes)) if n is not None and n <= most]
    counts = _spread(min(known, default=most), most, known)
    found: dict[int, Candidate] = {}
    source = ""

    def run(more: Sequence[int], start: float, end: float) -> None:
        nonlocal source
        for k, nodes in enumerate(more):
            progress(f"{nodes} nodes", start + (end - start) * k / len(more))
            found[nodes], source = _best_way(config, nodes, base, file, config.policies)

    run(counts, 0.0, 0.75)
    run(_around(_best(found.values()).nodes, counts), 0.75, 0.9)
    candidates = [found[n] for n in sorted(found)]
    best = _best(candidates)
    if not best.requests_per_s > 0:
        raise BadInput(_unmet(config, candidates))
    ungoverned: dict[int, Candidate] = {}
    for nodes in {n for n in bought.values() if n is not None and n <= most}:
        progress(f"{nodes} nodes, ungoverned", 0.95)
        ungoverned[nodes], _ = _best_way(config, nodes, base, file, (UNGOVERNED,))
    progress("", 1.0)
    provisioning = {
        p.name: {"meaning": p.meaning, **_versus(best, ungoverned.get(bought[p.name] or 0))} for p in PROVISIONING
    }
    return {
        "site": fleet.name,
        "policy": best.policy,
        "policies": config.policies,
        "load": source,
        "scenario": config.scenario,
        "attainment": config.attainment,
        "windows": {"seeds": config.seeds, "seconds": config.seconds},
        "peak_w": fleet.domains[0].peak_w,
        "most_nodes_that_fit": most,
        "sentence": _sentence(config, fleet, best, provisioning),
        "recommended": asdict(best),
        "candidates": [asdict(c) for c in candidates],
        "provisioning": provisioning,
    }


def _check(config: PlanConfig) -> None:
    if not 0 < config.attainment < 1:
        raise BadInput(f"--attainment {config.attainment:g}: give a share between 0 and 1, e.g. 0.95")
    if not config.policies:
        raise BadInput("--policy: name at least one")
    if config.seeds < 1:
        raise BadInput(f"--seeds {config.seeds}: at least 1")
    if not config.seconds >= 30:
        raise BadInput(f"--seconds {config.seconds:g}: at least 30, or latencies say little")


# ── one candidate ────────────────────────────────────────────────────────────────────────────────────────
def _best_way(
    config: PlanConfig, nodes: int, base: Scenario, file: Requests | RateTable | None, policies: Sequence[str]
) -> tuple[Candidate, str]:
    """A number of nodes, played and split between prefill and decode as serves most.

    The policy is chosen at the site's own split, and the split climbed from there. Without this a rule that buys few
    nodes would be judged by how their number happens to round, and by a split meant for other watts.
    """
    fleet = scaled(base.fleet, nodes)
    tried = [_judge(config, fleet, base, file, policy) for policy in dict.fromkeys(policies)]
    best, source = max(tried, key=lambda found: found[0].requests_per_s)
    for step in (1, -1):
        shift, has_gained = step, False
        while (fleet := _shifted(base.fleet, nodes, shift)) is not None:
            other, _ = _judge(config, fleet, base, file, best.policy)
            if other.requests_per_s <= best.requests_per_s:
                break
            best, shift, has_gained = other, shift + step, True
        if has_gained:
            break
    return best, source


def _shifted(fleet: Fleet, nodes: int, shift: int) -> Fleet | None:
    """A candidate with another split, if there is one whose floors fit."""
    try:
        found = scaled(fleet, nodes, shift)
    except SiteError:
        return None
    return found if fits_floors(found) else None


def _judge(
    config: PlanConfig, fleet: Fleet, base: Scenario, file: Requests | RateTable | None, policy: str
) -> tuple[Candidate, str]:
    """A candidate at the largest load that it sustains, and where the load came from."""
    scenario = scenario_on(fleet, base)
    try:
        check_scenario(scenario)
    except ScenarioError as e:
        raise BadInput(f"scenario {config.scenario} does not fit site {base.fleet.name}: {e}") from None
    violation_ws, source = 0.0, ""

    def measure(util: float) -> dict[str, float]:
        nonlocal violation_ws, source
        # a file's own scale would fix its load: the search needs it free
        loaded = replace(scenario, load=replace(scenario.load, target_util=util, scale=None))
        loaded.__dict__["fleet"] = fleet
        done = run_episodes(loaded, registry.policy(policy, loaded), range(config.seeds), file, "all")
        violation_ws += float(done.values("budget_violation_ws").sum())
        source = done.load_source
        return {**mean_kpis(done.kpis), "peak_power_frac": float(done.values("peak_power_frac").max())}

    full = measure(SATURATED_UTIL)
    if np.isnan(full["slo_attainment_frac"]):
        raise BadInput(f"site {base.fleet.name}: no requests are served in scenario {config.scenario}; nothing to plan")
    util, kpis = _bisect(measure, config.attainment, full)
    at = kpis or dict.fromkeys(full, float("nan"))
    return Candidate(
        nodes=len(fleet.nodes),
        prefill_nodes=sum(n.stage == "prefill" for n in fleet.nodes),
        policy=policy,
        gpus=sum(n.gpus for n in fleet.nodes),
        oversubscription=sum(nameplate_w(n) for n in fleet.nodes) / fleet.domains[0].peak_w,
        requests_per_s=at["requests"] / config.seconds if kpis else 0.0,
        target_util=util,
        goodput_tok_s_per_mw=at["goodput_tok_s_per_mw"],
        attainment=at["slo_attainment_frac"],
        peak_power_frac=at["peak_power_frac"],
        violation_ws=violation_ws,
        saturated_tok_s_per_mw=full["goodput_tok_s_per_mw"],
        saturated_attainment=full["slo_attainment_frac"],
    ), source


def _bisect(
    measure: Callable[[float], dict[str, float]], attainment: float, full: dict[str, float]
) -> tuple[float, dict[str, float] | None]:
    """The largest load that meets the attainment, within `UTIL_STEP`, and its KPIs; (0, None) where none does."""

    def is_met(kpis: dict[str, float]) -> bool:
        return kpis["slo_attainment_frac"] >= attainment  # NaN, of no requests, is not

    if is_met(full):
        return SATURATED_UTIL, full
    low, high, best = LOW_UTIL, SATURATED_UTIL, measure(LOW_UTIL)
    if not is_met(best):
        return 0.0, None
    while high - low > UTIL_STEP:
        middle = (low + high) / 2
        kpis = measure(middle)
        if is_met(kpis):
            low, best = middle, kpis
        else:
            high = middle
    return low, best


# ── which candidates ─────────────────────────────────────────────────────────────────────────────────────
def _spread(least: int, most: int, known: Sequence[int]) -> list[int]:
    """Node counts from least to most, evenly where there are too many, with those that must be among them."""
    steps = np.linspace(least, most, min(MOST_CANDIDATES, most - least + 1))
    return sorted({round(float(x)) for x in steps} | set(known))


def _around(best: int, counts: Sequence[int]) -> list[int]:
    """Counts not tried yet between the neighbours of the best."""
    at = counts.index(best)
    low, high = counts[max(at - 1, 0)], counts[min(at + 1, len(counts) - 1)]
    between = [n for n in range(low + 1, high) if n not in counts]
    picks = np.linspace(0, len(between) - 1, min(REFINED, len(between)))
    return [between[round(float(i))] for i in picks]


def _best(candidates) -> Candidate:
    """The fewest nodes that sustain nearly as much as any."""
    most = max(c.requests_per_s for c in candidates)
    return min((c for c in candidates if c.requests_per_s >= AS_GOOD_FRAC * most), key=lambda c: c.nodes)


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────
def _versus(best: Candidate, bought: Candidate | None) -> dict[str, Any]:
    """The recommendation against what a rule buys; None where the rule buys no site."""
    if bought is None:
        return dict.fromkeys(("nodes", "gpus", "requests_per_s", "gpus_ratio", "requests_ratio"))
    ratio = best.requests_per_s / bought.requests_per_s if bought.requests_per_s > 0 else None
    return {
        "nodes": bought.nodes, "gpus": bought.gpus, "requests_per_s": bought.requests_per_s,
        "gpus_ratio": best.gpus / bought.gpus, "requests_ratio": ratio,
    }  # fmt: skip


def _sentence(config: PlanConfig, fleet: Fleet, best: Candidate, provisioning: dict[str, Any]) -> str:
    targets = {f"TTFT {s.slo.ttft_s:g} s and ITL {1000 * s.slo.itl_s:g} ms" for s in fleet.services}
    within = targets.pop() if len(targets) == 1 else "each service's targets"
    said = (
        f"{best.gpus} GPUs ({best.nodes} nodes) fit the {fleet.domains[0].peak_w / 1000:,.1f} kW of {fleet.name}: with "
        f"{best.policy} they sustain {best.requests_per_s:,.1f} requests/s at {within} for {config.attainment:.3g} "
        "of requests"
    )
    rule = provisioning[PROVISIONING[0].name]
    if not rule["requests_ratio"]:
        return f"{said}."
    return (
        f"{said}, {rule['requests_ratio']:.2f} times what {rule['gpus']} GPUs bought by nameplate do uncapped "
        "(in the simulated plant)."
    )


def _unmet(config: PlanConfig, candidates: Sequence[Candidate]) -> str:
    return (
        f"site {Path(config.site).stem}: at no load and with none of {candidates[0].nodes} to {candidates[-1].nodes} "
        f"nodes do {config.attainment:.3g} of requests meet ttft_s and itl_s; lower --attainment, or relax the targets "
        "under [[service]]"
    )
