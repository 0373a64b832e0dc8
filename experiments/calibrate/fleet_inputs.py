"""Measured inputs beside power and speed: start-up, KV transfer, faults, load, grid, weather, against the plant.

Every function reads one data folder and returns (tables for `envs/profiles/fleet.toml`, findings). A finding's `mape`
is the plant's number against the data's, relative, unless its note says otherwise; where the plant has a range, it is
how far the data's range leaves it.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...envs.faults import HBM_CONTAINED, RATE_PER_GPU_HOUR
from ...envs.load import LoadSpec, generate_load
from ...envs.scenario import PlantRanges, load_scenario
from ...fleet.errors import BadInput
from .cap_checks import error_row
from .columns import columns, epw_dry_bulb_c, quantile

Tables = dict[str, dict]
Found = tuple[Tables, list[dict]]

CURTAILMENTS = ("curtailment", "curtailment-sudden")
"""Scenarios whose cuts the ramps are held against."""

FAULTS_PER_GPU_HOUR = sum(RATE_PER_GPU_HOUR) - RATE_PER_GPU_HOUR[HBM_CONTAINED]
"""The plant's faults that end a job: contained memory errors restart an application only."""

WARM_LOAD_S = 10.0
"""Loads come in two kinds: from the host's own memory or disk in 1 to 5 s, from remote storage in 20 s and more."""

TRANSFER_EFFICIENCY, MESSAGE_S, LINK_BYTES_S = 0.8, 1e-5, {"A100-SXM": 25e9, "H100-SXM": 50e9}
"""What the plant takes for a KV transfer between nodes (MODEL.md section 6, `serving_dynamics`, skus.toml)."""

ECONOMISER_APPROACH_C, SUPPLY_LOW_C, SUPPLY_HIGH_C = 6.0, 20.0, 27.0
"""Air economiser: supply is outside air and 6 C (coil, fan, recirculation; A), never below 20 C. Mechanical cooling
holds 27 C, the top of ASHRAE TC 9.9's recommended envelope; without it the air follows the weather."""


def _row(check: str, sku: str, source: str, errors, target: float | None, note: str) -> dict:
    return error_row(check, sku, source, np.atleast_1d(np.asarray(errors, float)), target, note)


def _outside(data: tuple[float, float], plant: tuple[float, float]) -> float:
    """How far the data's range leaves the plant's, over the plant's middle."""
    return max(plant[0] - data[0], data[1] - plant[1], 0.0) / (0.5 * sum(plant))


def _compared(check: str, source: str, ours: float, theirs, target: float | None, note: str) -> dict:
    theirs = list(theirs)
    note = f"generator {ours:.2f}, data {min(theirs):.2f}-{max(theirs):.2f}{note}"
    return _row(check, "any", source, [ours / t - 1 for t in theirs], target, note)


def model_load(data: Path) -> Found:
    """Model-load latencies -> the range of a role change."""
    source = "alibaba_genai_2026/basemodel_update_latency_anon.csv.gz"
    load_s = np.array(columns(data / source, "value")[0]) / 1e3
    cold_s, warm_s = load_s[load_s >= WARM_LOAD_S], load_s[load_s < WARM_LOAD_S]
    cold = (quantile(cold_s, 0.05), quantile(cold_s, 0.95))
    plant = PlantRanges()["role_move_s"]
    table = {
        "source": f"{source}, {len(load_s)} loads of image models (one GPU, below 10 GB; times may be scaled upstream)",
        "cold_frac": float(len(cold_s) / len(load_s)),
        "warm_s": [quantile(warm_s, q) for q in (0.05, 0.5, 0.95)],
        "cold_s": [quantile(cold_s, q) for q in (0.05, 0.5, 0.95)],
        "role_move_s": [cold[0], cold[1]],
        "role_move_large_s": [30.0, 120.0],
        "role_move_large_source": "MODEL.md section 8, 70B and up (A): no measured load of such a model is in the data",
    }
    note = f"cold loads 5-95 %: {cold[0]:.0f}-{cold[1]:.0f} s; plant {plant[0]:.0f}-{plant[1]:.0f} s; distance outside"
    return {"model_load": table}, [_row("role change: model load", "any", source, _outside(cold, plant), 0.35, note)]


def kv_transfer(data: Path) -> Found:
    """Send-receive times -> link efficiency and message overhead, between nodes and within one."""
    tables: Tables = {}
    rows = []
    for sku, stem in (("A100-SXM", "a100"), ("H100-SXM", "h100")):
        source = f"vidur_profiling/network_{stem}_dgx_send_recv.csv.gz"
        mean_ms, size, per_node = (
            np.array(c, float)
            for c in columns(data / source, "time_stats.send_recv.median", "size", "devices_per_node")
        )
        for place, devices in (("between nodes", 1), ("within a node", 2)):
            of = (per_node == devices) & (size >= 1 << 16)
            if of.sum() < 20:
                continue
            x, y = size[of], mean_ms[of] / 1e3
            # relative least squares of y = t0 + x / bw
            solved, *_ = np.linalg.lstsq(np.stack([1 / y, x / y], 1), np.ones_like(y), rcond=None)
            message_s, bytes_s = max(float(solved[0]), 0.0), 1.0 / float(solved[1])
            fitted = message_s + x / bytes_s
            name = f"kv_transfer/{sku}-{place.split()[0]}"
            tables[name] = {
                "source": source,
                "bytes_per_s": bytes_s,
                "message_s": message_s,
                "fit_mape": float(np.abs(fitted / y - 1).mean()),
            }
            if devices == 1:
                ours = MESSAGE_S + x / (TRANSFER_EFFICIENCY * LINK_BYTES_S[sku])
                # KV of a prompt is tens of megabytes and more: that is where the plant's number matters
                large = x >= 16 << 20
                plant_bytes_s = TRANSFER_EFFICIENCY * LINK_BYTES_S[sku]
                note = (
                    f"messages of 16 MiB and more; measured {bytes_s / 1e9:.0f} GB/s, "
                    f"plant {plant_bytes_s / 1e9:.0f} GB/s"
                )
                rows.append(_row(f"KV transfer {place}", sku, source, (ours / y - 1)[large], 0.25, note))
    return tables, rows


def faults(data: Path) -> Found:
    """Interruptions of a 16,384-GPU run -> fault rate per GPU-hour."""
    source = "gpu_failures/llama3_405b_54d_16384xH100.csv"
    category, rate = columns(data / source, "category", "rate_per_gpu_hour")
    rates = np.array(rate, float)
    by = {c: float(rates[np.array(category) == c].sum()) for c in sorted(set(category))}
    measured = by.get("GPU", 0.0) + by.get("Network", 0.0) + by.get("Host", 0.0)
    table = {
        "source": source,
        "faults_per_gpu_hour": measured,
        **{f"{k.lower().replace(' ', '_')}_per_gpu_hour": v for k, v in by.items()},
    }
    note = f"GPU, network and host: measured {measured:.3g}, plant {FAULTS_PER_GPU_HOUR:.3g} per GPU-hour"
    return {"faults": table}, [_row("fault rate", "H100-SXM", source, FAULTS_PER_GPU_HOUR / measured - 1, 0.10, note)]


def load_statistics(data: Path) -> Found:
    """ServeGen's rates, burstiness and lengths against the generator's numbers."""
    folder = data / "servegen"
    model, rate = columns(folder / "aggregate_rate_10min.csv.gz", "model", "rate_rps")
    names, rates = np.array(model), np.array(rate, float)
    week = [m for m in sorted(set(model)) if (names == m).sum() >= 1000]
    cvs = {m: float(rates[names == m].std() / rates[names == m].mean()) for m in week}
    peaks = {m: quantile(rates[names == m], 0.99) / float(rates[names == m].mean()) for m in week}
    client_cv, client_rate = (
        np.array(c, float) for c in columns(folder / "client_rate_traces_10min.csv.gz", "cv", "rate_rps")
    )
    usable = np.isfinite(client_cv) & (client_rate > 0)
    client_cv, client_rate = client_cv[usable], client_rate[usable]
    table: dict = {
        "source": "servegen: 7 days of m-large, m-mid, m-small; clients' gaps by 10 minutes",
        "rate_cv": [min(cvs.values()), max(cvs.values())],
        "rate_p99_over_mean": [min(peaks.values()), max(peaks.values())],
        "client_cv_quartiles": [quantile(client_cv, q) for q in (0.25, 0.5, 0.75)],
        "client_cv_by_rate": float(np.average(client_cv, weights=client_rate)),
        "ca2_client_median": quantile(client_cv, 0.5) ** 2,
    }
    spec = LoadSpec(diurnal_amplitude=0.18)
    # a week in 10-minute ticks: the slow rate averages over a tick, as it does in the data
    load = generate_load(spec, lambda s, p, o: 1000.0, 7 * 86400.0, 600.0, [0, 1, 2], ["x"])
    ours = load.arrivals[..., 0]
    our_cv = float((ours.std(-1) / ours.mean(-1)).mean())
    our_peak = float((np.quantile(ours, 0.99, -1) / ours.mean(-1)).mean())
    source = "servegen/aggregate_rate_10min.csv.gz"
    rows = [
        _compared("load: CV of the 10-minute rate", source, our_cv, cvs.values(), 0.35, ""),
        _compared("load: p99 over mean of the rate", source, our_peak, peaks.values(), 0.25, ""),
    ]
    lengths = _lengths(folder / "length_hist_logbins_6h.csv.gz")
    for name, (mean, cv, p99) in lengths.items():
        table[f"{name}_mean_cv_p99"] = [mean, cv, p99]
    for field_name, cv in (("input_tokens", spec.prompt_cv), ("output_tokens", spec.output_cv)):
        theirs = [v[1] for k, v in lengths.items() if k.endswith(field_name) and k.startswith("m_")]
        source = "servegen/length_hist_logbins_6h.csv.gz"
        rows.append(_compared(f"load: CV of {field_name}", source, cv, theirs, None, "; clients of every kind mixed"))
    return {"load": table}, rows


def _lengths(path: Path) -> dict[str, tuple[float, float, float]]:
    """Mean, CV and p99 of token counts by model and field; clients weigh alike, as the histograms have no counts."""
    model, field_name, high, prob, mean = columns(path, "model", "field", "bin_hi", "prob", "mean")
    keys = np.array([f"{m}/{f}" for m, f in zip(model, field_name, strict=True)])
    edges, weight, centre = np.array(high, float), np.array(prob, float), np.array(mean, float)
    out = {}
    for key in sorted(set(keys)):
        if not key.endswith(("input_tokens", "output_tokens")):
            continue
        of = (keys == key) & np.isfinite(centre)
        w = weight[of] / weight[of].sum()
        mu = float(w @ centre[of])
        # within a half-octave bin lengths scatter by 10 % of its middle
        second = float(w @ (centre[of] ** 2 * 1.01))
        order = np.argsort(edges[of])
        p99 = float(edges[of][order][np.searchsorted(np.cumsum(w[order]), 0.99)])
        out[key.replace("/", "_").replace("-", "_")] = (mu, float(np.sqrt(max(second - mu * mu, 0)) / mu), p99)
    return out


def net_load(data: Path) -> Found:
    """Net-load ramps -> sizes of curtailment events."""
    tables: Tables = {}
    rows = []
    cuts = [1.0 - e.limit_frac for name in CURTAILMENTS for e in load_scenario(name).events]
    for grid in ("CISO", "PJM"):
        source = f"grid_carbon_weather/{grid}_fuelmix_avgCI.csv.gz"
        fuels = ("WND", "SUN", "WAT", "OIL", "NG", "COL", "NUC", "OTH")
        mix = {f: np.array(c, float) for f, c in zip(fuels, columns(data / source, *fuels), strict=True)}
        total = sum(np.nan_to_num(v) for v in mix.values())
        net = total - np.nan_to_num(mix["WND"]) - np.nan_to_num(mix["SUN"])
        peak = quantile(net, 0.999)
        shares = {}
        for hours in (1, 3):
            ramp = (net[hours:] - net[:-hours]) / peak
            shares[hours] = [quantile(ramp, q) for q in (0.9, 0.95, 0.99)]
        # hours among the dearest percent of the year, in runs: how long a call lasts
        is_tight = net >= quantile(net, 0.99)
        runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], is_tight.astype(int), [0]]))))[::2]
        tables[f"curtailment/{grid}"] = {
            "source": source,
            "ramp_1h_frac_of_peak": shares[1],
            "ramp_3h_frac_of_peak": shares[3],
            "event_hours": [quantile(runs, q) for q in (0.5, 0.9)],
            "cut_frac": [shares[1][1], shares[3][2]],
        }
        low, high = shares[1][1], shares[3][2]
        note = (
            f"95 % of 1-h to 99 % of 3-h ramps: {low:.0%}-{high:.0%} of the peak; shipped curtailments cut "
            f"{min(cuts):.0%}-{max(cuts):.0%}; distance of the deepest"
        )
        # shallow ramps need no event: what matters is that the deepest measured one is covered
        deepest = max(high / max(cuts) - 1.0, 0.0)
        rows.append(_row(f"curtailment size, {grid}", "any", source, deepest, 0.10, note))
    return tables, rows


def inlet(data: Path) -> Found:
    """A year of weather -> inlet temperatures by season under an economiser."""
    source = "grid_carbon_weather/USA_VA_Leesburg.Exec.epw.gz"
    dry_c, month = epw_dry_bulb_c(data / source)
    free_c = np.maximum(SUPPLY_LOW_C, dry_c + ECONOMISER_APPROACH_C)
    held_c = np.minimum(free_c, SUPPLY_HIGH_C)
    seasons = {"winter": (12, 1, 2), "spring": (3, 4, 5), "summer": (6, 7, 8), "autumn": (9, 10, 11)}
    table: dict = {"source": source, "rule": "max(20, dry bulb + 6) C; held at 27 C by mechanical cooling"}
    for name, months in seasons.items():
        of = np.isin(month, months)
        table[f"{name}_dry_bulb_c"] = [quantile(dry_c[of], q) for q in (0.05, 0.5, 0.95, 0.99)]
        table[f"{name}_economiser_c"] = [quantile(free_c[of], q) for q in (0.05, 0.5, 0.95, 0.99)]
    table["year_economiser_c"] = [quantile(free_c, q) for q in (0.05, 0.5, 0.95, 0.99, 1.0)]
    table["hours_above_27_frac"] = float((free_c > SUPPLY_HIGH_C).mean())
    table["inlet_c"] = [SUPPLY_LOW_C, quantile(free_c, 0.99)]
    plant = PlantRanges()["inlet_c"]
    data_range = (float(held_c.min()), quantile(free_c, 0.99))
    note = (
        f"economiser {data_range[0]:.0f}-{data_range[1]:.0f} C (99 % of hours); plant {plant[0]:.0f}-{plant[1]:.0f} C"
    )
    return {"inlet": table}, [_row("inlet temperature", "any", source, _outside(data_range, plant), 0.10, note)]


READERS: tuple[tuple[str, Callable[[Path], Found]], ...] = (
    ("alibaba_genai_2026", model_load),
    ("vidur_profiling", kv_transfer),
    ("gpu_failures", faults),
    ("servegen", load_statistics),
    ("grid_carbon_weather", net_load),
    ("grid_carbon_weather", inlet),
)


def fleet_tables(data: Path) -> tuple[Tables, list[dict], list[str]]:
    """Tables and findings of every folder that is there, and one line for each that is not."""
    tables: Tables = {}
    rows: list[dict] = []
    missing = []
    for folder, reader in READERS:
        if not (data / folder).is_dir():
            missing.append(f"{reader.__name__}: no {folder} in the folder")
            continue
        found, findings = reader(data)
        tables |= found
        rows += findings
    return tables, rows, missing


def check_fleet_inputs(data_dir: Path) -> list[dict]:
    """Findings on every measured input that the folder has.

    Raises:
        BadInput: if it has none.
    """
    _, rows, missing = fleet_tables(Path(data_dir))
    if not rows:
        raise BadInput(f"{data_dir}: none of the measured inputs is there ({'; '.join(missing)})")
    return rows
