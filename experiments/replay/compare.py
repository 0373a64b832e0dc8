"""The plant and the replay under the same requests: where the closed forms hold and where they do not.

The plant runs without an arbiter at the products' highest caps and nominal parameters; the replay takes the clocks that
the plant settled at. Errors are the plant's figure over the replay's, less one; of shares (attainment, rejects) the
difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...envs.kpis import BIN_EDGES_S, percentile_s
from ...envs.model import NOMINAL, PlantModel
from ...envs.plant import Plant
from ...envs.scenario import PlantRanges, Scenario, load_scenario
from ...envs.serving_dynamics import BACKLOG_SHARE
from ...fleet.tables import DECODE, PREFILL
from .diffusion import prefill_waiting
from .laws import Laws, row
from .requests import Requests, draw_requests
from .simulator import Replay, Service

UTILISATIONS = (0.3, 0.5, 0.7, 0.85, 0.95, 1.2)
ARRIVAL_CVS = (1.0, 2.0)
SHARES = ("attainment", "reject_frac")
METRICS = (
    "ttft_p50_s", "ttft_p99_s", "itl_mean_s", "itl_p99_s", "goodput_tok_s", "attainment", "reject_frac",
)  # fmt: skip

LENGTHS = {
    "chat": ((1155.0, 0.96), (211.0, 0.77)),
    "write": ((300.0, 0.96), (800.0, 0.77)),
}
"""Mean and CV of prompts and outputs: `chat` as `envs.load` has it, which fills prefill first on the shipped sites;
`write` with short prompts and long answers, which fills decode first."""


@dataclass(frozen=True)
class Point:
    """One comparison.

    Attributes:
        site: Whose nodes serve.
        lengths: One of `LENGTHS`.
        arrival_cv: CV of the gaps between requests.
        utilisation: Arrivals over what the busier stage can serve.
        plant: `METRICS` of the plant.
        replay: `METRICS` of the replay.
        diffusion: What `diffusion.prefill_waiting` says of the same, of the figures that it covers.
    """

    site: str
    lengths: str
    arrival_cv: float
    utilisation: float
    plant: dict[str, float]
    replay: dict[str, float]
    diffusion: dict[str, float]

    def error(self, metric: str, of: str = "plant") -> float:
        """Signed, of the plant or of the diffusion; NaN where either has nothing."""
        ours, theirs = getattr(self, of).get(metric, float("nan")), self.replay[metric]
        if metric in SHARES:
            return ours - theirs
        return ours / theirs - 1.0 if theirs > 0 else float("nan")


def nominal_scenario(site: str, seconds: float, warmup_s: float) -> Scenario:
    """The steady scenario on `site` with nominal parameters, no faults and no chance in actuation."""
    fixed = {
        name: (value, value) for name, value in zip(("v_min", "phi_knee", "kappa", "phi_mem"), NOMINAL, strict=True)
    }
    fixed |= {"power_scale": (1.0, 1.0), "inlet_c": (22.0, 22.0), "lost_write_frac": (0.0, 0.0)}
    scenario = load_scenario("steady", [f"site={site}"])
    return replace(
        scenario, seconds=seconds, warmup_s=warmup_s, plant=PlantRanges(**fixed), fault_scale=0.0, events=()
    )  # fmt: skip


def play_plant(plant: Plant, requests: Requests) -> tuple[dict[str, float], float, float]:
    """The plant's figures, and the mean clocks of its prefill and decode nodes."""
    fleet = plant.fleet
    plant.reset(np.array([0]), requests.load(fleet.timing.tick_s))
    rows = plant.plan.node
    rows["cap_w"] = fleet.node_static["cap_max_w"]
    rows["stage"] = plant.node["stage"]
    rows["clock_frac"] = 1.0
    is_stage = {stage: plant.node["stage"][0] == stage for stage in (PREFILL, DECODE)}
    phi: dict[int, list[float]] = {stage: [] for stage in is_stage}
    itl_s = weight = 0.0
    for _ in range(plant.ticks):
        told = plant.tick_under(rows)
        if plant.time_s[0] <= plant.params["warmup_s"][0]:
            continue
        for stage, nodes in is_stage.items():
            phi[stage].append(plant.node["phi"][0, nodes].mean())
        heard_itl_s = float(told.service["itl_s"][0, 0])
        tokens = float(told.service["active"][0, 0]) / heard_itl_s  # per second
        itl_s += tokens * heard_itl_s
        weight += tokens
    total, seconds = plant.totals[0], float(plant.totals["seconds"][0])
    resolved = float(total["good_req"] + total["late_req"] + total["rejected_req"] + total["lost_req"])
    figures = {
        "ttft_p50_s": percentile_s(plant.ttft[0, 0], 0.5),
        "ttft_p99_s": percentile_s(plant.ttft[0, 0], 0.99),
        "itl_mean_s": itl_s / weight if weight > 0 else float("nan"),
        "itl_p99_s": percentile_s(plant.itl[0, 0], 0.99),
        "goodput_tok_s": float(total["good_tok"]) / seconds,
        "attainment": float(total["good_req"]) / resolved if resolved > 0 else float("nan"),
        "reject_frac": float(total["rejected_req"]) / max(float(total["offered_req"]), 1.0),
    }
    return figures, float(np.mean(phi[PREFILL])), float(np.mean(phi[DECODE]))


def capacity_rps(model: PlantModel, lengths: str) -> float:
    """Requests per second of the busier stage, with the stages as the site file has them."""
    (prompt, _), (output, _) = LENGTHS[lengths]
    prefill, decode = model.node_rates_rps(0, prompt, output)
    stage = model.fleet.node_static["stage"]
    return float(min(prefill[stage == PREFILL].sum(), decode[stage == DECODE].sum()))


def compare_point(
    site: str, lengths: str, arrival_cv: float, utilisation: float, seconds: float, seed: int, warmup_s: float = 60.0
) -> Point:
    """Play both on the same requests."""
    scenario = nominal_scenario(site, seconds, warmup_s)
    plant = Plant(scenario, scenario.fleet)
    model = PlantModel(scenario.fleet)
    rng = np.random.default_rng([seed, round(100 * utilisation), round(10 * arrival_cv)])
    rate_rps = utilisation * capacity_rps(model, lengths)
    requests = draw_requests(rng, rate_rps, seconds, arrival_cv, *LENGTHS[lengths])
    figures, prefill_phi, decode_phi = play_plant(plant, requests)
    static = scenario.fleet.node_static
    prof = row(plant.profiles, 0, int(static["sku"][0]))
    replicas = static["gpus"] // int(prof.tp)
    service = Service(
        int(replicas[static["stage"] == PREFILL].sum()),
        int(replicas[static["stage"] == DECODE].sum()),
        float(scenario.fleet.service_static["ttft_s"][0]),
        float(scenario.fleet.service_static["itl_s"][0]),
        bool(plant.params["early_rejection"][0]),
        bool(plant.params["slo_aware_admission"][0]),
    )
    laws = Laws(prof, prefill_phi, decode_phi, float(plant.params["phi_mem"][0]))
    outcome = Replay(service, laws, requests, warmup_s).run()
    waiting = _diffusion(service, laws, requests)
    return Point(site, lengths, arrival_cv, utilisation, figures, outcome.figures(), waiting)


def _diffusion(service: Service, laws: Laws, requests: Requests) -> dict[str, float]:
    """Waiting before prefill by `diffusion`, at the load that came; it knows nothing of a wait for decode."""
    prompt = float(requests.prompt_tok.mean())
    service_s, transfer_s = laws.prompt_s(prompt), laws.transfer_s(prompt)
    rho = len(requests.t_s) * service_s / (service.prefill * requests.seconds)
    room_s = BACKLOG_SHARE * service.ttft_s - transfer_s
    found = prefill_waiting(rho, service.prefill, service_s, requests.ca2, requests.cs2, room_s)
    return {
        "ttft_p50_s": found.quantile_s(0.5) + transfer_s,
        "ttft_p99_s": found.quantile_s(0.99) + transfer_s,
        "reject_frac": found.reject_frac,
    }


def compare(
    sites: Sequence[str] = ("small-8", "demo-16"),
    lengths: Sequence[str] = tuple(LENGTHS),
    arrival_cvs: Sequence[float] = ARRIVAL_CVS,
    utilisations: Sequence[float] = UTILISATIONS,
    seconds: float = 660.0,
    seed: int = 0,
    say=lambda line: None,
) -> list[Point]:
    """Every combination; small sites run longer, so that each point has as many requests."""
    points = []
    for site in sites:
        longer = 4.0 if site.startswith("small") else 1.0
        for name in lengths:
            for cv in arrival_cvs:
                for utilisation in utilisations:
                    point = compare_point(site, name, cv, utilisation, seconds * longer, seed)
                    errors = "  ".join(f"{m} {point.error(m):+.2f}" for m in METRICS)
                    say(f"{site:8s} {name:6s} cv {cv:g} util {utilisation:.2f}: {errors}")
                    points.append(point)
    return points


def bin_error() -> float:
    """Half a bin of the plant's latency histograms: what a percentile of it cannot resolve."""
    return float(np.sqrt(BIN_EDGES_S[1] / BIN_EDGES_S[0]) - 1.0)
