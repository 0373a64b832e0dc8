"""Fits and checks against measurements: on rows made up from known parameters, and on the measured ones if there."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from flyball.cli import main
from flyball.envs.architectures import architecture, architectures, estimate
from flyball.envs.hardware import gpu_physics
from flyball.experiments.fit.corrections import factor, fit_factors
from flyball.experiments.fit.decode import fit_serving, points, predict
from flyball.experiments.fit.pipeline import fit_latency, fit_profiles, predict_latency
from flyball.experiments.fit.power import apply, fit_power, power_points, predict_w, shipped_fit
from flyball.experiments.fit.profiles import shipped_serving
from flyball.experiments.fit.rows import mlenergy
from flyball.experiments.fit.select import is_queueing, is_stalled, model_fold, row_fold, usable_step
from flyball.experiments.validate import CHECKS, latency
from flyball.experiments.validate.findings import finding
from flyball.experiments.validate.report import all_passed, run_checks, write_report
from flyball.fleet.errors import BadInput

DATA = Path(os.environ.get("FLYBALL_DATA", Path(__file__).parents[3] / "shared" / "data"))
measured = pytest.mark.skipif(
    not (DATA / "mlenergy_v3").is_dir(), reason=f"no measurements at {DATA}: set FLYBALL_DATA"
)

NEAR_MISSES = {
    ("itl.moe.shipped", "B200-SXM", "mlenergy_v3"): 0.175,
    ("itl.moe.shipped", "GB200-NVL72", "aiconfigurator"): 0.16,
}
"""Where the target is missed, and how far at most: docs/plant.md says why."""

MODELS = ["llama-8b", "llama-70b", "qwen3-32b", "qwen3-30b-a3b", "gpt-oss-120b", "deepseek-v3"]


@pytest.fixture
def serving_table() -> pd.DataFrame:
    """Aggregated rows of every shape of `rows.silicon`, times missing."""
    rng, rows = np.random.default_rng(0), []
    for i in range(240):
        gpus = float(rng.choice([1, 2, 4, 8]))
        rows.append({
            "source": "made-up", "row": i, "model": MODELS[i % 6], "arch": architectures()[MODELS[i % 6]], "task": "",
            "sku": ["H100-SXM", "B200-SXM"][i % 2], "backend": ["vllm", "sglang", "trtllm"][i % 3],
            "precision": ["bf16", "fp8"][(i // 6) % 2], "mode": "agg", "gpus": gpus, "tp": gpus, "dp": 1.0,
            "prefill_gpus": gpus, "prefill_dp": 1.0, "prefill_workers": np.nan, "decode_workers": 1.0,
            "is_stated": True, "concurrency": float(rng.choice([1, 4, 16, 64, 256])), "batch": np.nan,
            "isl": float(rng.choice([1024, 8192])), "osl": float(rng.choice([1024, 8192])), "ttft_s": np.nan,
            "itl_s": np.nan, "step_s": 1.0, "gpu_w": np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def test_a_serving_fit_recovers_the_law_that_made_the_rows(serving_table):
    """Noise-free rows of a law come back within 3 % in the median, on rows that the fit saw."""
    truth, p = shipped_serving(), points(serving_table)
    step_s, _, _ = predict(truth.law(p.sku, p.backend), truth.waits(p.backend), p)
    p = replace(p, step_s=step_s)
    found = fit_serving(p, evaluations=20)
    again, _, _ = predict(found.law(p.sku, p.backend), found.waits(p.backend), p)
    assert np.median(np.abs(again / step_s - 1)) < 0.03


def test_a_power_fit_recovers_the_watts_that_made_the_rows(serving_table):
    """Noise-free watts of the shipped equation come back within 2 % in the mean."""
    table = serving_table[serving_table.sku == "H100-SXM"].reset_index(drop=True)
    gpu, table["batch"] = gpu_physics()["H100-SXM"], table.concurrency
    truth = shipped_fit(gpu)
    p = points(table)
    law = shipped_serving()
    table["step_s"] = predict(law.law(p.sku, p.backend), law.waits(p.backend), p)[0]
    rows = power_points(table, gpu)
    watts = predict_w(truth, rows)
    found = fit_power(replace(rows, gpu_w=watts), gpu.tdp_w, gpu.pli_w)
    assert np.mean(np.abs(predict_w(found, rows) / watts - 1)) < 0.02
    assert apply(gpu, found).am_w == found.am_w


def test_watts_fall_when_the_host_stalls_the_same_step(serving_table):
    """Half the rate at the same batch draws less: activity is per second, not per step."""
    table = serving_table[serving_table.sku == "H100-SXM"].reset_index(drop=True)
    table["batch"], table["step_s"] = table.concurrency, 0.05
    gpu = gpu_physics()["H100-SXM"]
    rows = power_points(table, gpu)
    fast = predict_w(shipped_fit(gpu), rows)
    slow = predict_w(shipped_fit(gpu), replace(rows, step_s=2 * rows.step_s))
    assert np.all(slow <= fast) and np.mean(slow / fast) < 0.95


def test_held_out_rows_are_not_seen_by_the_fit(serving_table, monkeypatch):
    """Every row is predicted once, by a fit of other folds' rows; a model's rows share a fold."""
    fold = model_fold(serving_table, 3)
    assert all(len(set(fold[serving_table.model == m])) == 1 for m in MODELS)
    assert len(set(fold)) > 1
    seen = []

    def spy_fit(rows):
        seen.append(set(rows.row))
        return "model"

    def spy_predict(model, rows):
        assert not seen[-1] & set(rows.row)
        assert seen[-1] | set(rows.row) == set(serving_table.row)
        return np.ones(len(rows)), np.ones(len(rows)), np.ones(len(rows))

    monkeypatch.setattr(latency, "fit_latency", spy_fit)
    monkeypatch.setattr(latency, "predict_latency", spy_predict)
    step_s, _ = latency._held_out(serving_table, fold)
    assert np.all(step_s == 1.0) and len(seen) == len(set(fold))


def test_folds_do_not_depend_on_the_order_of_rows(serving_table):
    """A row's fold comes from what it says, so that reports of two machines agree."""
    serving_table["step_s"] = np.arange(len(serving_table)) * 1e-3
    order = np.random.default_rng(1).permutation(len(serving_table))
    shuffled = serving_table.iloc[order].reset_index(drop=True)
    assert np.array_equal(row_fold(shuffled), row_fold(serving_table)[order])


def test_corrections_shrink_with_few_rows_and_leave_unknown_models_alone():
    """Five rows move half-way to what they say; a model or engine without rows keeps the law."""
    sku, group = np.array(["A"] * 5), np.array(["m/bf16"] * 5)
    factors = fit_factors(sku, group, np.full(5, 0.2))
    assert 1.0 < factors["any"]["m/bf16"] < np.exp(0.2)
    assert factor(factors, np.array(["B"]), np.array(["other/bf16"]))[0] == 1.0
    assert factor({}, sku, group).tolist() == [1.0] * 5


def test_queues_and_stalls_are_told_from_the_rows_own_columns(serving_table):
    """A first token after most of the request's life is a queue; a step slower than a larger batch's is a stall."""
    rows = serving_table.head(3).assign(osl=1024.0, isl=1024.0, step_s=0.01, ttft_s=[0.2, 3.0, 300.0])
    assert is_queueing(rows).tolist() == [False, True, True]
    assert usable_step(rows).tolist() == [True, True, False]
    rows = rows.assign(source="mlenergy_v3", model="m", sku="B200-SXM", gpus=1.0, batch=[8.0, 16.0, 64.0],
                       step_s=[0.034, 0.009, 0.015])  # fmt: skip
    assert is_stalled(rows).tolist() == [True, False, False]


def test_shapes_come_from_names_and_from_sizes():
    """A known checkpoint gets its published shape, an unknown one an estimate, a nameless one nothing."""
    assert architecture("meta-llama/Llama-3.3-70B-Instruct").name == "llama-70b"
    assert architecture("nvidia/DeepSeek-R1-NVFP4").is_moe
    sparse = architecture("acme/Thing-48B-A4B")
    assert sparse.total_params == 48e9 and sparse.active_params == 4e9 and sparse.is_moe and not sparse.is_published
    assert architecture("acme/thing") is None
    assert estimate("x", 70.0, 70.0).layers == pytest.approx(80, rel=0.2)
    for shape in architectures().values():
        routed = shape.expert_params * shape.top_k / shape.experts
        assert shape.common_params > 0
        assert shape.active_params == pytest.approx(shape.common_params + routed, rel=0.25) or shape.experts <= 32


def test_a_finding_passes_on_its_target_only():
    """MAPE, bias and verdict are of the rows that have both numbers."""
    f = finding("c", "S", "d", np.array([1.1, 0.9, np.nan]), np.array([1.0, 1.0, 1.0]), 0.12)
    assert (f.n, f.passed) == (2, True) and f.mape == pytest.approx(0.1) and f.bias == pytest.approx(0.0)
    assert finding("c", "S", "d", np.array([2.0]), np.array([1.0]), 0.12).passed is False
    assert finding("c", "S", "d", np.array([2.0]), np.array([1.0]), None).passed is None
    assert not all_passed([finding("c", "S", "d", np.array([]), np.array([]), 0.1)])


def test_absent_sources_are_skipped_and_said_so(tmp_path):
    """An empty folder gives one finding per check that reads one, none of them judged."""
    needs_data = [name for name in CHECKS if name != "replay"]
    findings = run_checks(tmp_path, needs_data)
    assert len(findings) == len(needs_data) and all("skipped" in f.note and f.passed is None for f in findings)
    with pytest.raises(BadInput, match="none of"):
        fit_profiles(tmp_path)


@pytest.mark.parametrize("text", ["model,task\nx,y\n", "", "\x00\x01\x02"])
def test_a_malformed_file_is_bad_input_of_one_line(tmp_path, text):
    """Exit code 2 and a line that names the file."""
    (tmp_path / "mlenergy_v3").mkdir()
    (tmp_path / "mlenergy_v3" / "llm_configs_flat.csv").write_text(text)
    result = CliRunner().invoke(main, ["validate", "--data", str(tmp_path), "--check", "power", "--json"])
    assert result.exit_code == 2
    assert "llm_configs_flat.csv" in result.stderr.splitlines()[-1]


def test_a_folder_that_is_not_there_is_bad_input(tmp_path):
    """Exit code 2 rather than an empty report; so is an unknown check."""
    assert CliRunner().invoke(main, ["validate", "--data", str(tmp_path / "no")]).exit_code == 2
    assert CliRunner().invoke(main, ["validate", "--data", str(tmp_path), "--check", "no"]).exit_code == 2


def made_up_mlenergy(folder: Path) -> None:
    """Six rows with the columns that SOURCE.md lists."""
    (folder / "mlenergy_v3").mkdir(parents=True)
    pd.DataFrame({
        "model": ["meta-llama/Llama-3.1-8B-Instruct"] * 3 + ["acme/Thing-48B-A4B"] * 3, "task": "lm-arena-chat",
        "prec": "bfloat16", "tot_b": [8.0] * 3 + [48.0] * 3, "act_b": [8.0] * 3 + [4.0] * 3, "arch": "x", "gpu": "H100",
        "n": 1, "max_seqs": [8, 64, 256] * 2, "bs": [8.0, 64.0, 256.0] * 2, "tps": [900.0, 4000.0, 9000.0] * 2,
        "W": 500.0, "Wpg": [430.0, 520.0, 600.0] * 2, "jtok": 1.0, "itl50": [8.0, 15.0, 27.0] * 2, "outlen": 400.0,
        "tp": 1, "ep": 1, "dp": 1,
    }).to_csv(folder / "mlenergy_v3" / "llm_configs_flat.csv", index=False)  # fmt: skip


def test_validate_prints_one_object_and_writes_a_page(tmp_path):
    """JSON alone on stdout, progress on stderr, a page with a plot on disk; rows of unpublished models count."""
    made_up_mlenergy(tmp_path)
    command = ["validate", "--data", str(tmp_path), "--check", "power", "--json", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert set(told) == {"data", "findings", "passed", "report"}
    shipped = [f for f in told["findings"] if f["check"] == "power.shipped"]
    assert len(shipped) == 1 and shipped[0]["n"] == 6
    assert "validate: power" in result.stderr
    assert "power.shipped" in Path(told["report"]).read_text() and list((tmp_path / "out").glob("*.png"))


def test_a_fit_writes_tables_that_the_simulator_reads_back(tmp_path):
    """Every product keeps its facts and gets a law; the written numbers are the fitted ones."""
    import tomllib

    made_up_mlenergy(tmp_path)
    fitted = fit_profiles(tmp_path)
    paths = {p.name: tomllib.loads(p.read_text()) for p in fitted.write(tmp_path / "out")}
    assert set(paths["skus.toml"]) == set(gpu_physics())
    for name, gpu in fitted.gpus.items():
        assert paths["skus.toml"][name]["am_w"] == pytest.approx(gpu.am_w, rel=1e-3)
    assert mlenergy(tmp_path).attrs["unknown"] == 0


def test_a_report_draws_what_it_has(tmp_path):
    """No source, no plots, and still a page."""
    written = write_report(tmp_path, [], tmp_path / "out")
    assert [p.name for p in written] == ["validation.md"]


@measured
def test_shipped_parameters_meet_the_targets_where_they_are_said_to():
    """Power 6 % on H100, 7.5 % on B200 (its host-bound rows); step times 12 % dense and 15 % sparse; docs/plant.md
    lists the exceptions."""
    findings = run_checks(DATA, ["power", "latency"])
    by = {(f.check, f.sku, f.source): f for f in findings}
    assert by["power.shipped", "H100-SXM", "mlenergy_v3"].mape <= 0.06
    assert by["power.small-batch", "H100-SXM", "mlenergy_v3"].mape <= 0.06
    assert by["power.dense-large-batch", "H100-SXM", "mlenergy_v3"].mape <= 0.06
    assert by["power.shipped", "B200-SXM", "mlenergy_v3"].mape <= 0.075
    for (check, sku, source), f in by.items():
        small = f.n < 20
        if f.target is not None and check.startswith("itl") and not small:
            assert f.mape <= NEAR_MISSES.get((check, sku, source), f.target), f
        if check == "ttft.shipped" and not small:
            assert f.mape <= 0.22, f


@measured
def test_rows_that_a_fit_did_not_see_are_predicted_nearly_as_well():
    """One fold held out by rows: within a quarter of the in-sample error on dense models of H100."""
    from flyball.experiments.fit.pipeline import serving_rows

    rows = serving_rows(DATA)
    rows = rows[usable_step(rows)].reset_index(drop=True)
    out = row_fold(rows, 4) == 0
    model = fit_latency(rows[~out].reset_index(drop=True))

    def mape(which: np.ndarray) -> float:
        part = rows[which].reset_index(drop=True)
        step_s, _, _ = predict_latency(model, part)
        return float(np.mean(np.abs(step_s / part.step_s - 1)))

    dense = np.array([not a.is_moe for a in rows.arch]) & (rows.sku == "H100-SXM").to_numpy()
    assert mape(dense & out) <= 1.25 * mape(dense & ~out)
