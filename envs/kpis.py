"""Key performance indicators of an episode, from the plant's totals and latency histograms."""

import math

import numpy as np

from .plant_tables import HISTOGRAM_BINS, HISTOGRAM_HIGH_S, HISTOGRAM_LOW_S
from .training_jobs import percentile_wait_s

KPI_UNITS = {
    "goodput_tok_s_per_mw": (
        "prompt and output tokens of requests that met TTFT and mean-ITL targets, per second and MW of nominal peak_w"
    ),
    "slo_attainment_frac": "share of offered requests that met both targets",
    "ttft_p50_s": "median time to first token of admitted requests",
    "ttft_p99_s": "99th percentile of the same",
    "itl_p99_s": "99th percentile of inter-token latency",
    "tokens_per_joule": "good tokens per joule of site energy",
    "energy_j": "site energy",
    "mean_power_w": "mean site power",
    "peak_power_frac": "largest site power as a share of the limit in force",
    "budget_violation_ws": "watt-seconds above limits in force, summed over domains",
    "overshoot_ws": "watt-seconds above demanded limits that the grace let through, summed over domains",
    "breaker_trips": "breakers tripped",
    "cap_changes_per_node_hour": "cap writes that changed a cap",
    "interventions": "bids not granted, summed over nodes and ticks",
    "requests": "requests offered",
    "lost_requests": "requests lost to rejection and to faults",
    "jobs_completed": "training and batch jobs completed",
    "late_jobs": "of them, after their deadline",
    "queue_wait_p95_s": "95th percentile of the wait of jobs that started; nothing where none queued",
    "training_tok_s": "trained tokens per second, lost ones taken back; not part of goodput",
    "lost_work_node_s": "training since a checkpoint that was lost with a member of its gang, node-seconds",
    "checkpoints": "training checkpoints written",
    "fairness_jain": (
        "Jain's index over services of the share of offered tokens that met their targets, since reset; in scenarios "
        "with queues, over leaf queues of the GPU-time that they held over what they deserved"
    ),
    "drained_nodes": "nodes drained, mean over time",
    "mttr_s": "down time per repair",
}
"""KPI names of the command-line contract that this plant measures, with their meaning."""

BIN_EDGES_S = np.geomspace(HISTOGRAM_LOW_S, HISTOGRAM_HIGH_S, HISTOGRAM_BINS + 1)


def percentile_s(histogram: np.ndarray, q: float) -> float:
    """Latency below which a share `q` of the histogram's weight lies; NaN when it is empty."""
    total = float(histogram.sum())
    if total <= 0.0:
        return math.nan
    i = int(np.searchsorted(np.cumsum(histogram), q * total))
    i = min(i, HISTOGRAM_BINS - 1)
    return float(math.sqrt(BIN_EDGES_S[i] * BIN_EDGES_S[i + 1]))


def jain(shares: np.ndarray) -> float:
    """Jain's fairness index of non-negative shares, 1 where all are equal (Jain, Chiu and Hawe, DEC TR-301, 1984)."""
    squares = float((shares**2).sum())
    return float(shares.sum()) ** 2 / (len(shares) * squares) if squares > 0 else math.nan


def episode_kpis(
    total: np.void, ttft: np.ndarray, itl: np.ndarray, good_share: np.ndarray, nominal_w: float, nodes: int
) -> dict[str, float]:
    """KPIs of one episode.

    Args:
        total: One row of `plant_tables.TOTALS`.
        ttft: TTFT histogram summed over services, shape (bins,).
        itl: ITL histogram, weighted by tokens, shape (bins,).
        good_share: Share of each inference service's offered tokens that met their targets, shape (S,).
        nominal_w: The site's nominal root limit.
        nodes: Nodes of the fleet.

    Returns:
        KPI names to numbers; a ratio over nothing is NaN.
    """
    seconds = float(total["seconds"])
    mean = (lambda x: float(x) / seconds) if seconds > 0 else (lambda x: math.nan)
    # what was decided within the episode: requests still in flight at its ends cancel
    resolved = float(total["good_req"] + total["late_req"] + total["rejected_req"] + total["lost_req"])
    energy_j = float(total["energy_j"])
    return {
        "goodput_tok_s_per_mw": mean(total["good_tok"]) / (nominal_w / 1e6),
        "slo_attainment_frac": float(total["good_req"]) / resolved if resolved > 0 else math.nan,
        "ttft_p50_s": percentile_s(ttft, 0.5),
        "ttft_p99_s": percentile_s(ttft, 0.99),
        "itl_p99_s": percentile_s(itl, 0.99),
        "tokens_per_joule": float(total["good_tok"]) / energy_j if energy_j > 0 else math.nan,
        "energy_j": energy_j,
        "mean_power_w": mean(energy_j),
        "peak_power_frac": float(total["peak_frac"]),
        "budget_violation_ws": float(total["violation_ws"]),
        "overshoot_ws": float(total["overshoot_ws"]),
        "breaker_trips": float(total["breaker_trips"]),
        "cap_changes_per_node_hour": mean(total["cap_changes"]) * 3600 / nodes,
        "interventions": float(total["interventions"]),
        "requests": float(total["offered_req"]),
        "lost_requests": float(total["rejected_req"] + total["lost_req"]),
        "jobs_completed": float(total["jobs_completed"]),
        "late_jobs": float(total["late_jobs"]),
        "queue_wait_p95_s": percentile_wait_s(total["job_wait"], 0.95),
        "training_tok_s": mean(total["trained_tok"]),
        "lost_work_node_s": float(total["lost_work_node_s"]),
        "checkpoints": float(total["checkpoints"]),
        "fairness_jain": jain(good_share),
        "drained_nodes": mean(total["drained_node_s"]),
        "mttr_s": float(total["down_node_s"] / total["repairs"]) if total["repairs"] > 0 else math.nan,
    }
