"""How busy memory and compute are, as the power equation of `physics.busy_power_w` counts it.

u_m adds up the time in which weights are read, KV is read, kernels are launched and shards are joined, each weighted
by what it draws relative to streaming dense 16-bit weights, over the step; beyond 1 it saturates as x / sqrt(1 + x^2).
u_c is arithmetic over the peak, weighted by class. Whatever else makes a step long (the host, a slow engine) dilutes
both: that is why a measured GPU with an idle host draws 300 W at batch 64.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from .laws import Job, Number

CLASSES = ("dense_bf16", "dense_fp8", "moe_bf16", "moe_fp8", "moe_fp4")
"""Kinds of kernels that draw differently; dense 4-bit models count as dense_fp8."""

LAUNCH_S = 1e-5
"""Unit of the launch and join weights: seconds per layer."""


@dataclass(frozen=True)
class PowerLaw:
    """Weights of activity per GPU product, in order of `CLASSES` where there are five.

    Attributes:
        read: Weight of reading weights.
        kv: Weight of reading the KV cache.
        launch, join: Weight of a layer's launches, and of joining its shards times log2(GPUs), in `LAUNCH_S`.
        compute: Weight of arithmetic.
    """

    read: tuple[float, ...]
    kv: float
    launch: float
    join: float
    compute: tuple[float, ...]


@dataclass(frozen=True)
class UseTerms:
    """u_m = x / sqrt(1 + x^2), x = (fixed + experts b / (b + half) + b (state + c context)) / step;
    u_c = request b / step."""

    fixed_s: Number
    experts_s: Number
    context_s: Number
    state_s: Number
    request_s: Number

    def use(self, batch: Number, half: Number, context: Number, step_s: Number, prompt_share: Number = 0.0):
        """(u_m, u_c) of steps of `step_s`; `prompt_share` prompt tokens are computed per output token."""
        x = (
            self.fixed_s + self.experts_s * batch / (batch + half) + batch * (self.state_s + context * self.context_s)
        ) / step_s
        return x / np.sqrt(1.0 + x * x), self.request_s * batch * (1.0 + prompt_share) / step_s

    def tilted(self, tilt: Number) -> "UseTerms":
        """The same with what requests add to the draw `tilt` times as large; arithmetic draws as its root."""
        return replace(
            self, context_s=self.context_s * tilt, state_s=self.state_s * tilt, request_s=self.request_s * tilt * tilt
        )


def kernel_class(j: Job) -> Number:
    """Index into `CLASSES`."""
    dense = np.where((j.is_fp8 > 0) | (j.is_4bit > 0), 1, 0)
    sparse = np.where(j.is_4bit > 0, 4, np.where(j.is_fp8 > 0, 3, 2))
    return np.where(j.is_moe > 0, sparse, dense)


def use_terms(law: PowerLaw, j: Job) -> UseTerms:
    """Activity of a replica's decode step."""
    kind = kernel_class(j)
    read, compute = np.asarray(law.read)[kind], np.asarray(law.compute)[kind]
    return UseTerms(
        fixed_s=read * j.common_bytes / (j.tp * j.bw) + j.layers * LAUNCH_S * (law.launch + law.join * np.log2(j.gpus)),
        experts_s=read * j.expert_bytes / (j.gpus * j.bw),
        context_s=law.kv * j.kv_bytes_token / (j.kv_shards * j.bw),
        state_s=law.kv * j.state_bytes / (j.kv_shards * j.bw),
        request_s=compute * 2.0 * j.active_params / (j.gpus * j.flops),
    )


def power_law(row: dict) -> PowerLaw:
    """The law of one GPU product's table."""
    return PowerLaw(**{f.name: tuple(v) if isinstance(v := row[f.name], list) else v for f in fields(PowerLaw)})
