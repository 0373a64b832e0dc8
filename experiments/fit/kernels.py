"""What kernels draw at full load, from aiconfigurator's kernel tables: upper quantiles, as SOURCE.md advises.

Power is sampled at 100 ms over loops of a second: short kernels and some shapes read low (warm-up, averaging), so a
steady state is an upper quantile over many shapes, and idle-with-a-model is the lowest half percent.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .rows import SYSTEMS, MalformedData

IDLE_QUANTILE, BUSY_QUANTILE = 0.005, 0.9
"""Lowest draw of loops of tiny kernels; upper quantile of steady ones."""


@dataclass(frozen=True)
class KernelDraw:
    """Watts of one GPU product by state."""

    sku: str
    limit_w: float
    idle_w: float
    prefill_w: float
    memory_w: float
    rows: int


def kernel_draws(folder: Path) -> list[KernelDraw]:
    """Draws of every GPU product with kernel tables; empty if there are none.

    Raises:
        MalformedData: if a table cannot be read or lacks its columns.
    """
    out = []
    for path in sorted((folder / "aiconfigurator").glob("*__gemm_perf__*.parquet")):
        system = path.name.split("__")[0]
        attention = path.with_name(path.name.replace("__gemm_perf__", "__generation_attention_perf__"))
        if system not in SYSTEMS or not attention.exists():
            continue
        gemm = _table(path, ["m", "n", "k", "latency", "power", "power_limit"])
        decode = _table(attention, ["latency", "power"])
        big = gemm[(gemm.m >= 4096) & (gemm.latency > 1.0)]  # ms: compute-bound, as prefill is
        thin = gemm[(gemm.m <= 8) & (gemm.n * gemm.k > 3e8)]  # streams weights, as decode does
        if big.empty or thin.empty:
            continue
        out.append(
            KernelDraw(
                SYSTEMS[system], float(gemm.power_limit.max()),
                float(min(gemm.power.quantile(IDLE_QUANTILE), decode.power.quantile(IDLE_QUANTILE))),
                float(big.power.quantile(BUSY_QUANTILE)), float(thin.power.quantile(BUSY_QUANTILE)),
                len(gemm) + len(decode),
            )
        )  # fmt: skip
    return out


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, columns=columns)
    except Exception as e:  # pyarrow raises its own family, and KeyError or ValueError for columns
        raise MalformedData(f"{path}: not the kernel table that SOURCE.md describes ({str(e).splitlines()[0]})") from e
