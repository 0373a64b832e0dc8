"""A live run from its first process to its result."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...envs.scenario import Scenario
from ...serving.auth import read_secrets
from ...serving.explain import explain
from ...serving.store import open_store
from ..emulation.emulation import Emulation
from ..emulation.run import fresh_folder
from ..processes import ServiceFailed, ServiceProcess
from .director import Director
from .result import LiveResult
from .script import FULL, LiveScript

Progress = Callable[[str, float], None]


def run_live(
    out: Path,
    policy: str,
    progress: Progress,
    load: str | None = None,
    script: LiveScript = FULL,
    seed: int = 1_000_000,
) -> LiveResult:
    """Start everything, let it all happen, and say what came of it.

    Args:
        out: Folder for the database, the emulated GPUs and the logs; what an earlier run left there goes.
        policy: As of the command line.
        progress: Called with a label and the share done.
        load: Trace or rate table; generated load if None.
        script: What happens when: `FULL`, `QUICK` or another.
        seed: Of load and of the plant's parameters.

    Raises:
        BadInput: an unknown site, policy or load file, or a part that could not be started.
        ServiceFailed: if the parts do not find each other.
    """
    scenario = script.make_scenario()
    out = fresh_folder(out)
    service = ServiceProcess(script.site, out, policy)
    progress("starting the service", 0.0)
    service.launch()
    try:
        return _run(script, scenario, service, out, load, seed, policy, progress)
    finally:
        service.stop()


def _run(
    script: LiveScript,
    scenario: Scenario,
    service: ServiceProcess,
    out: Path,
    load: str | None,
    seed: int,
    policy: str,
    progress: Progress,
) -> LiveResult:
    service.wait_ready()
    with Emulation(scenario, out, service.url, read_secrets(service.tokens), seed, load) as emulation:
        run = Director(script, service, emulation)
        progress(f"{len(emulation.nodes.agents)} agents ask for leases", 0.0)
        emulation.wait_for_agents(emulation.has_leases)
        settled_s = time.monotonic() + script.settle_s
        emulation.wait_for_agents(lambda: time.monotonic() >= settled_s)
        run.began_s, run.began_unix_s = time.monotonic(), time.time()
        for second in emulation.run(script.seconds, run.look):
            run.seconds.append(second)
            label = run.events[-1].text if run.events else "running"
            progress(label, second.t_s / script.seconds)
        emulation.nodes.check()
        refused = emulation.reporter.refused if emulation.reporter else []
        if refused:
            raise ServiceFailed(f"the service refused what the emulation said: {refused[0]}")
        kpis = run.kpis()
    service.stop()
    return _result(run, scenario, policy, seed, kpis, _explanations(run))


def _explanations(run: Director) -> tuple[str, ...]:
    """What `flyball explain` says of the moments that matter."""
    moments = []
    if "cordoned" in run.times:
        moments.append((run.xid_node, run.times["cordoned"] + 2.0))
    other = 0 if run.xid_node else 1
    moments.append((other, run.script.first_cut_s + 1.0))
    if "fallen" in run.times:
        moments.append((other, run.times["fallen"] + 2.0))
    moments.append((other, run.script.seconds - 1.0))
    with open_store(run.service.db) as store:
        return tuple(
            explain(store, run.fleet.nodes[node].name, run.began_unix_s + t_s).sentence for node, t_s in moments
        )


def _result(
    run: Director, scenario: Scenario, policy: str, seed: int, kpis: dict[str, float], explanations: tuple[str, ...]
) -> LiveResult:
    fleet, script, seconds = run.fleet, run.script, run.seconds
    root = {
        name: np.array([getattr(s, name)[0] for s in seconds])
        for name in ("demanded_w", "in_force_w", "power_w", "bound_w")
    }
    nodes = {name: np.array([getattr(s, name) for s in seconds]) for name in ("cap_w", "status", "epoch")}
    run.events.sort(key=lambda e: e.t_s)
    return LiveResult(
        scenario=scenario.name,
        policy=policy,
        load=run.emulation.load_source,
        load_scale=run.emulation.load_scale,
        seed=seed,
        site=fleet.name,
        nodes=tuple(n.name for n in fleet.nodes),
        gpus=tuple(n.gpus for n in fleet.nodes),
        nominal_w=float(fleet.domains[0].peak_w),
        grace_s=fleet.timing.grace_s,
        lease_ttl_s=fleet.timing.lease_ttl_s,
        cuts=(
            {
                "start_s": script.first_cut_s,
                "notice_s": script.notice_s,
                "limit_frac": script.first_frac,
                "end_s": script.lift_s,
            },
            {"start_s": script.second_cut_s, "notice_s": 0.0, "limit_frac": script.second_frac, "end_s": script.lift_s},
        ),
        kpis=kpis,
        series={"t_s": np.array([s.t_s for s in seconds]), **root, **nodes},
        events=tuple(run.events),
        explanations=explanations,
    )
