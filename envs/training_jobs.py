"""[[training]] of a scenario: synchronous gangs that share the budget with requests, and may wait for it."""

from dataclasses import dataclass

import numpy as np

from ..fleet.errors import ScenarioError
from ..fleet.tables import SERVICE_KINDS, TRAINING
from ..fleet.toml_file import number
from ..fleet.topology import Fleet

IDLE, RUNNING, RESTORING = 0, 1, 2
"""States of a gang."""

WAIT_BINS = 40
WAIT_LOW_S, WAIT_HIGH_S = 1.0, 1e5
"""Histogram of jobs' waits: logarithmic bins; waits below a second are in the first."""


@dataclass(frozen=True)
class TrainingSpec:
    """[[training]]: the jobs of one service of kind "training".

    A gang's nodes compute and communicate in step, at the pace of the slowest clock; a member that fails, is parked
    or loses GPUs stops them all, and what was done since the last checkpoint is lost. Fine-tuning is a service of
    small gangs; tasks that can wait are gangs with a work, a rate and a deadline.

    Attributes:
        service: A service of the site, of kind "training".
        gang_nodes: Nodes per gang; 0 is all of the service's nodes.
        step_s: Time of a training step at full clock (A: 2-10 s for dense models of tens of billions).
        compute_frac: Share of a step that computes; the rest communicates. With the profile's kernel efficiency of
            0.65 a share of 0.62 gives the 38-43 % of peak that Llama 3 reports (arXiv 2407.21783, table 4).
        comm_power_frac: Dynamic draw while communicating, as a share of that while computing (A: the swing between
            them is what makes training visible to a grid; same paper, section 3.3.4).
        checkpoint_s: Work between checkpoints.
        write_s: Time that one stops the gang.
        restore_s: From having all its nodes until a gang steps again: start-up and reading the checkpoint.
        work_s: Work of one job at full clock; 0 never ends.
        jobs_per_hour: Jobs that arrive; 0 is always one more.
        deadline_s: From a job's arrival; later ones count as late. 0 is none.
    """

    service: str
    gang_nodes: int = number(0, low=0, high=100_000)
    step_s: float = number(5.0, above=0, high=600)
    compute_frac: float = number(0.62, above=0, high=1)
    comm_power_frac: float = number(0.35, low=0, high=1)
    checkpoint_s: float = number(300.0, above=0, high=86400)
    write_s: float = number(5.0, low=0, high=3600)
    restore_s: float = number(60.0, low=0, high=86400)
    work_s: float = number(0.0, low=0, high=1e8)
    jobs_per_hour: float = number(0.0, low=0, high=3600)
    deadline_s: float = number(0.0, low=0, high=1e8)


def training_services(fleet: Fleet) -> list[str]:
    """Names of the site's services of kind "training"."""
    return [s.name for s in fleet.services if s.kind == SERVICE_KINDS[TRAINING]]


def check_training(specs: tuple[TrainingSpec, ...], fleet: Fleet) -> None:
    """Check the jobs against the site.

    Raises:
        ScenarioError: one line with the key and what to change.
    """
    known = training_services(fleet)
    for i, spec in enumerate(specs):
        where = f"training[{i}]"
        if spec.service not in known:
            raise ScenarioError(
                f"{where}.service: the site has no training service {spec.service!r}; "
                + (f"it has {', '.join(known)}" if known else 'set kind = "training" under its [[service]]')
            )
        if spec.service in [other.service for other in specs[:i]]:
            raise ScenarioError(f"{where}.service: {spec.service!r} is given twice; merge the two")
        nodes = sum(n.service == spec.service for n in fleet.nodes)
        if spec.gang_nodes and nodes % spec.gang_nodes:
            raise ScenarioError(
                f"{where}.gang_nodes: {nodes} nodes do not split into gangs of {spec.gang_nodes}; use a divisor"
            )
        if (spec.jobs_per_hour or spec.deadline_s) and not spec.work_s:
            raise ScenarioError(f"{where}.work_s: jobs that arrive or have a deadline need their work in seconds")


def specs_of(specs: tuple[TrainingSpec, ...], fleet: Fleet) -> dict[int, TrainingSpec]:
    """What each training service runs, by its index; one endless gang where the scenario says nothing."""
    given = {spec.service: spec for spec in specs}
    return {fleet.service_index[name]: given.get(name, TrainingSpec(name)) for name in training_services(fleet)}


def training_gpus(fleet: Fleet) -> int:
    """GPUs of the site's training services."""
    return sum(n.gpus for n in fleet.nodes if n.service in training_services(fleet))


def gpu_tok_s(profile: np.void, spec: TrainingSpec) -> float:
    """Trained tokens per second of one GPU at full clock: 6 operations per parameter and token against prefill's 2."""
    return float(profile["prefill_tok_s"]) / 3.0 * spec.compute_frac


def start_training(
    p: np.void,
    node: np.ndarray,
    service: np.ndarray,
    specs: tuple[TrainingSpec, ...],
    fleet: Fleet,
    profiles: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Form one environment's gangs at the start of an episode.

    Args:
        p: Row of `PLANT_PARAMS`.
        node: Rows of `PLANT_NODE`, shape (N,).
        service: Rows of `PLANT_SERVICE`, shape (S,).
        specs: The scenario's.
        fleet: The site.
        profiles: `hardware.PROFILE`, shape (S, K).
        rng: Draws where in their steps and between checkpoints endless gangs are.
    """
    node["gang"] = -1
    p["has_training"] = TRAINING in fleet.service_static["kind"]
    if not p["has_training"]:
        return
    static, by_service = fleet.node_static, specs_of(specs, fleet)
    for s, spec in by_service.items():
        row = service[s]
        for name in ("step_s", "comm_power_frac", "checkpoint_s", "write_s", "restore_s", "work_s", "deadline_s"):
            row[f"job_{name}"] = getattr(spec, name)
        row["job_compute_s"] = spec.compute_frac * spec.step_s
        row["job_interval_s"] = 3600.0 / spec.jobs_per_hour if spec.jobs_per_hour else 0.0
        members = np.flatnonzero(static["service"] == s)
        node["is_training"][members] = 1
        size = spec.gang_nodes or len(members)
        for start in range(0, len(members), size):
            gang = members[start : start + size]
            leader = node[gang[0]]
            node["gang"][gang] = gang[0]
            leader["gang_end"] = gang[-1] + 1
            leader["job_tok_s"] = sum(gpu_tok_s(profiles[s, static["sku"][n]], spec) * static["gpus"][n] for n in gang)
            leader["job_gpus"] = static["gpus"][gang].sum()
            leader["job_pos_s"] = rng.random() * spec.step_s
            if not spec.jobs_per_hour:
                leader["job_state"] = RUNNING
                done_s = rng.random() * (spec.work_s or spec.checkpoint_s)
                leader["job_since_s"] = done_s % spec.checkpoint_s
                leader["job_done_s"] = done_s - leader["job_since_s"]


def percentile_wait_s(histogram: np.ndarray, q: float) -> float:
    """Wait below which a share `q` of the jobs that started lies; NaN where none did."""
    total = float(histogram.sum())
    if total <= 0:
        return float("nan")
    edges_s = np.geomspace(WAIT_LOW_S, WAIT_HIGH_S, WAIT_BINS + 1)
    i = min(int(np.searchsorted(np.cumsum(histogram), q * total)), WAIT_BINS - 1)
    return 0.0 if i == 0 else float(np.sqrt(edges_s[i] * edges_s[i + 1]))
