"""Measured rows of a data folder, in one table whatever their source.

One `pandas.DataFrame` per source with the columns of `SERVING`; a folder that is absent gives None, a file that cannot
be read as described raises `MalformedData`.

| column | meaning |
|---|---|
| source, row | folder and the row's index in its file |
| model, arch | the checkpoint's name, its `Architecture` |
| sku, backend, precision | GPU product, serving engine, precision of the weights (bf16, fp8, fp4, int4) |
| mode | agg (prefill and decode interleaved) or disagg |
| is_stated | whether the row says how many workers of what layout served it |
| gpus, tp, dp | GPUs of one replica (decode side), tensor-parallel width of attention, its data parallelism |
| prefill_gpus, prefill_dp, prefill_workers | the same of the prefill side; workers NaN where the row does not say |
| decode_workers | NaN where the row does not say |
| concurrency | requests in the system per replica (agg) or in all (disagg) |
| batch | measured mean decode batch per replica; NaN where only the concurrency is known |
| isl, osl | prompt and output tokens; isl NaN where the source does not publish it |
| ttft_s, itl_s, step_s | measured; `step_s` mean time between a request's tokens, `itl_s` the median where published |
| gpu_w | measured watts per GPU |
"""

from pathlib import Path

import numpy as np
import pandas as pd

from ...envs.architectures import architecture
from ...fleet.errors import BadInput

SYSTEMS = {
    "a100_sxm": "A100-SXM", "h100_sxm": "H100-SXM", "h200_sxm": "H200-SXM", "b200_sxm": "B200-SXM",
    "b300_sxm": "B300-SXM", "gb200": "GB200-NVL72", "gb300": "GB300-NVL72",
    "A100": "A100-SXM", "H100": "H100-SXM", "H200": "H200-SXM", "B200": "B200-SXM", "B300": "B300-SXM",
    "GB200": "GB200-NVL72", "GB300": "GB300-NVL72",
    "a100-80gb": "A100-SXM", "h100-80gb": "H100-SXM",
}  # fmt: skip
"""The sources' names of GPU products."""

PRECISIONS = {"bfloat16": "bf16", "fp16": "bf16", "float16": "bf16", "mxfp4": "fp4", "nvfp4": "fp4", "int4_wo": "int4",
              "fp8_block": "fp8"}  # fmt: skip
TASK_ISL_TOK = {
    "lm-arena-chat": 450.0,
    "gpqa": 240.0,
    "sourcegraph-fim": 1570.0,
    "image-chat": 1070.0,
    "video-chat": 940.0,
}
"""Mean prompt of ML.ENERGY's tasks. The benchmark publishes output lengths only; these are
what H100's watts are best explained with, one number per task for all models (A)."""


SPREAD_BATCH = 16.0
"""Requests per GPU from which a disaggregated MLA row without a stated layout is read as data-parallel attention."""


class MalformedData(BadInput):
    """A data file that does not hold what its SOURCE.md describes."""


def read_csv(path: Path, columns: set[str]) -> pd.DataFrame:
    """A CSV file with at least `columns`.

    Raises:
        MalformedData: if it cannot be parsed or lacks one of them.
    """
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError, UnicodeDecodeError) as e:
        raise MalformedData(f"{path}: not a readable CSV file ({str(e).splitlines()[0]}); fetch it again") from e
    if missing := sorted(columns - set(table.columns)):
        raise MalformedData(f"{path}: columns {', '.join(missing)} are missing; see SOURCE.md beside it")
    if table.empty:
        raise MalformedData(f"{path}: no rows; fetch it again or remove the folder")
    return table


def numbers(path: Path, table: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """The same table with `columns` as floats; blank cells become NaN.

    Raises:
        MalformedData: if a cell holds something else than a number.
    """
    out = table.copy()
    for c in columns:
        try:
            out[c] = pd.to_numeric(table[c]).astype(float)
        except (ValueError, TypeError) as e:
            raise MalformedData(f"{path}: column {c}: {str(e).splitlines()[0]}; expected numbers") from e
    return out


def _finish(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of known GPU products and of models whose size is known; others cannot be predicted."""
    known = rows.sku.notna() & rows.arch.notna()
    rows = rows[known].reset_index(drop=True)
    rows.attrs["unknown"] = int((~known).sum())
    return rows


def mlenergy(folder: Path) -> pd.DataFrame | None:
    """ML.ENERGY v3: steady-state serving points with watts, aggregated vLLM of its own build, hence engine."""
    path = folder / "mlenergy_v3" / "llm_configs_flat.csv"
    if not path.exists():
        return None
    number = ("tot_b", "act_b", "n", "max_seqs", "bs", "tps", "Wpg", "itl50", "outlen", "dp")
    d = numbers(path, read_csv(path, {"model", "task", "prec", "gpu", *number}), number)
    arch = [architecture(m, t, a) for m, t, a in zip(d.model, d.tot_b, d.act_b, strict=True)]
    rows = pd.DataFrame({
        "source": "mlenergy_v3", "row": d.index, "model": d.model, "arch": arch, "task": d.task,
        "sku": d.gpu.map(SYSTEMS), "backend": "vllm-mlenergy", "precision": d.prec.replace(PRECISIONS), "mode": "agg",
        "gpus": d.n, "tp": np.maximum(d.n / np.maximum(d.dp.fillna(1.0), 1.0), 1.0), "dp": d.dp.fillna(1.0),
        "is_stated": True, "concurrency": d.max_seqs, "batch": d.bs, "isl": d.task.map(TASK_ISL_TOK),
        "osl": d.outlen, "ttft_s": np.nan, "itl_s": d.itl50 * 1e-3, "step_s": d.bs / d.tps, "gpu_w": d.Wpg,
    })  # fmt: skip
    rows["isl"] = rows.isl.fillna(500.0)
    return _finish(rows)


def silicon(folder: Path) -> pd.DataFrame | None:
    """aiconfigurator's end-to-end rows, aggregated and disaggregated."""
    path = folder / "aiconfigurator" / "silicon_sample.csv"
    if not path.exists():
        return None
    number = (
        "isl", "osl", "batch_size", "tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size", "prefill_num_workers",
        "prefill_tp_size", "prefill_attention_dp_size", "prefill_moe_tp_size", "prefill_moe_ep_size",
        "decode_batch_size", "decode_num_workers", "decode_tp_size", "decode_attention_dp_size", "decode_moe_tp_size",
        "decode_moe_ep_size", "silicon_ttft_ms", "silicon_tpot_ms",
    )  # fmt: skip
    text = {"silicon_data_source", "backend", "model_path", "system", "precision", "mode"}
    d = numbers(path, read_csv(path, text | set(number)), number)
    is_agg = d["mode"] == "agg"

    def side(name: str, whole: str = "") -> pd.Series:
        return d[name].where(is_agg, d[f"decode_{whole or name}"])

    tp = side("tp_size").fillna(1.0)
    dp = np.maximum(side("attention_dp_size").fillna(1.0), 1.0)
    one = pd.Series(1.0, d.index)
    is_mla = pd.Series([a is not None and a.kv_heads == 1 for a in map(architecture, d.model_path)], d.index)
    gpus, tp, dp = layout(
        tp, dp, side("moe_tp_size").fillna(1.0).where(is_agg, one), side("moe_ep_size").fillna(1.0).where(is_agg, one)
    )
    p_tp = d.prefill_tp_size.fillna(tp)
    p_dp = np.maximum(d.prefill_attention_dp_size.fillna(1.0), 1.0)
    p_gpus, _, p_dp = layout(p_tp, p_dp, one, one)
    said = d.silicon_data_source.str.extract(r"concurrency=(\d+)")[0].astype(float)
    # aggregated `batch_size` is requests per attention rank where attention is data-parallel
    concurrency = said.fillna(d.batch_size * dp).fillna(d.decode_batch_size * d.decode_num_workers.fillna(1.0) * dp)
    is_stated = (is_agg | d.decode_num_workers.notna()) & (~is_agg | np.log2(gpus).mod(1.0).eq(0) & (gpus <= 16))
    # engines run MLA's attention data-parallel under load: every row that states its layout does
    spread = ~is_agg & d.decode_num_workers.isna() & is_mla & (said >= SPREAD_BATCH * gpus)
    tp, dp = tp.where(~spread, 1.0), dp.where(~spread, gpus)
    precision = d.precision.replace(PRECISIONS).fillna(
        d.model_path.map(lambda m: "fp4" if "FP4" in m.upper() else "fp8" if "FP8" in m.upper() else "bf16")
    )
    rows = pd.DataFrame({
        "source": "aiconfigurator", "row": d.index, "model": d.model_path,
        "arch": [architecture(m) for m in d.model_path], "task": "", "sku": d.system.map(SYSTEMS),
        "backend": d.backend, "precision": precision, "mode": d["mode"], "gpus": gpus, "tp": tp, "dp": dp,
        "prefill_gpus": p_gpus.where(~is_agg, gpus), "prefill_dp": p_dp.where(~is_agg, dp),
        "prefill_workers": d.prefill_num_workers, "decode_workers": d.decode_num_workers.where(~is_agg, 1.0),
        "is_stated": is_stated, "concurrency": concurrency, "batch": d.decode_batch_size * dp,
        "isl": d.isl, "osl": d.osl,
        "ttft_s": d.silicon_ttft_ms * 1e-3, "itl_s": d.silicon_tpot_ms * 1e-3, "step_s": d.silicon_tpot_ms * 1e-3,
        "gpu_w": np.nan,
    })  # fmt: skip
    # the source lists some measurements again under a sibling's name or with fewer columns: keep what says most
    order = rows.sort_values("is_stated", ascending=False, kind="stable")
    same = order.duplicated(["sku", "backend", "isl", "osl", "ttft_s", "step_s"])
    return _finish(rows.loc[order.index[~same]].sort_index())


def layout(
    tp: pd.Series, dp: pd.Series, expert_tp: pd.Series, expert_ep: pd.Series
) -> tuple[pd.Series, pd.Series, pd.Series]:
    """GPUs, attention tensor parallelism and attention data parallelism of a worker.

    Sources write a worker of n GPUs in several ways: tp x dp = n, the plain one; expert-parallel workers also with
    both the tensor and the expert width set to n, so that their product is n squared (tp or dp = 64 on one 8-GPU
    server with experts 8 x 8); or tp = dp = n with n^2 experts' ranks. Read plainly, step times of those rows would
    be those of eight times fewer GPUs than named.
    """
    square = (expert_tp == expert_ep) & (expert_ep > 1) & (tp * dp == expert_tp * expert_ep)
    twice = (dp > 1) & (tp == dp) & (expert_tp * expert_ep == tp * dp)
    gpus = (tp * dp).where(~square, expert_tp).where(~twice, tp)
    dp = dp.clip(upper=gpus)
    return gpus, (gpus / dp).clip(lower=1.0), dp


def splitwise(folder: Path) -> pd.DataFrame | None:
    """splitwise-sim's measured prompt and token times (float16, DeepSpeed-era kernels); modelled rows are left out."""
    path = folder / "splitwise_sim" / "perf_model.csv"
    if not path.exists():
        return None
    number = ("prompt_size", "batch_size", "token_size", "prompt_time", "token_time", "tensor_parallel")
    d = numbers(path, read_csv(path, {"model", "hardware", *number}), number)
    d = d[d.hardware.isin(SYSTEMS)]
    rows = pd.DataFrame({
        "source": "splitwise_sim", "row": d.index, "model": d.model, "arch": [architecture(m) for m in d.model],
        "task": "", "sku": d.hardware.map(SYSTEMS), "backend": "splitwise", "precision": "bf16", "mode": "disagg",
        "gpus": d.tensor_parallel, "tp": d.tensor_parallel, "dp": 1.0, "prefill_gpus": d.tensor_parallel,
        "prefill_dp": 1.0, "prefill_workers": 1.0, "decode_workers": 1.0, "is_stated": True,
        "concurrency": d.batch_size,
        "batch": d.batch_size, "isl": d.prompt_size, "osl": d.token_size, "ttft_s": d.prompt_time * 1e-3,
        "itl_s": d.token_time * 1e-3, "step_s": d.token_time * 1e-3, "gpu_w": np.nan,
    })  # fmt: skip
    return _finish(rows)
