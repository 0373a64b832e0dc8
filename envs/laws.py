"""How long a decode step and a prompt take, from what the GPU, the serving engine and the model are.

Pure arithmetic on scalars or arrays alike: the simulator's profiles, the fits and the checks against measurements all
evaluate these functions. Coefficients per GPU product are in `profiles/skus.toml`, factors per serving engine in
`profiles/backends.toml`, shapes of models in `profiles/architectures.toml`.

A decode step reads the weights, of which a batch touches b / (b + half) of the routed experts, reads each request's KV
cache, computes, launches kernels layer by layer and joins the shards of tensor parallelism twice a layer. A prompt
computes, with a quadratic term for attention. An aggregated engine interleaves both: a step of batch b carries
b x isl / osl prompt tokens on average, or requests would pile up.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

Number = Any
"""A float or an array; arrays broadcast."""

WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5625, "int4": 0.53}
"""Bytes per weight with its scales: NVFP4, MXFP4 keep an 8-bit scale per 16 or 32 weights, int4 a 16-bit one per 64."""

COMMON_BYTES_MOE = {"bf16": 2.0, "fp8": 1.0, "fp4": 2.0, "int4": 2.0}
"""Outside the routed experts, published 4-bit checkpoints keep 16-bit weights."""

KV_BYTES = 2.0
"""Bytes per element of KV cache: engines default to 16 bits."""


@dataclass(frozen=True)
class Law:
    """Coefficients of a GPU product under a serving engine.

    Attributes:
        step_s: Host and scheduler work of a step.
        layer_s: Launches of one transformer block.
        moe_layer_s: Routing and grouping of one sparse block, on top.
        comm_layer_s: Joining the shards of one block, times log2(GPUs).
        weights_eff, experts_eff, kv_eff: Share of HBM bandwidth at which each is read.
        flops_eff: Share of peak compute in decode.
        request_s: Host work per request of the batch.
        comm_eff: Share of the scale-up link's bandwidth that collectives get.
        half_factor: Measured over uniform routing's half batch.
        interference: Share of prefill's time that an aggregated step waits for.
        mfu_bf16, mfu_fp8, mfu_fp4: Share of peak compute in prefill.
        moe_prefill: Factor on a sparse model's prefill: routing, uneven experts.
        attention_eff: The same of prefill's attention, in bf16.
        prompt_s: Tokenising, scheduling and first sampling of a prompt.
        dense_fp8, dense_fp4, moe_fp8, moe_fp4: Factors on reading quantised weights (scales, unpacking).
    """

    step_s: Number
    layer_s: Number
    moe_layer_s: Number
    comm_layer_s: Number
    weights_eff: Number
    experts_eff: Number
    kv_eff: Number
    flops_eff: Number
    request_s: Number
    comm_eff: Number
    half_factor: Number
    interference: Number
    mfu_bf16: Number
    mfu_fp8: Number
    mfu_fp4: Number
    moe_prefill: Number
    attention_eff: Number
    prompt_s: Number
    dense_fp8: Number
    dense_fp4: Number
    moe_fp8: Number
    moe_fp4: Number

    def times(self, factors: dict[str, float]) -> "Law":
        """This law with some coefficients multiplied."""
        return Law(**{f.name: getattr(self, f.name) * factors.get(f.name, 1.0) for f in fields(self)})


LAW_NAMES = tuple(f.name for f in fields(Law))


@dataclass(frozen=True)
class Job:
    """A model on GPUs of a kind, in a layout. Rates are of one GPU; bytes of the whole model.

    Attributes:
        tp, dp, gpus: Attention's tensor and data parallelism, GPUs of the replica (experts spread over all of them).
        kv_shards: GPUs' worth of bandwidth that read one request batch's KV cache.
        flops, flops_bf16: Peak in the model's precision and in bf16, per second.
        bw, link: HBM and scale-up link, bytes per second.
        is_moe, is_fp8, is_4bit: 1.0 or 0.0.
        common_bytes, expert_bytes: Weights outside and inside routed experts.
        experts_half: Batch that touches half of the experts under uniform routing.
        state_bytes: Sliding-window KV or recurrent state of a request.
        attention_flops: FLOPs of attention per prompt token squared.
    """

    tp: Number
    dp: Number
    gpus: Number
    kv_shards: Number
    flops: Number
    flops_bf16: Number
    bw: Number
    link: Number
    is_moe: Number
    is_fp8: Number
    is_4bit: Number
    layers: Number
    hidden: Number
    active_params: Number
    common_bytes: Number
    expert_bytes: Number
    experts_half: Number
    kv_bytes_token: Number
    state_bytes: Number
    attention_flops: Number


@dataclass(frozen=True)
class DecodeTerms:
    """step = fixed + experts b / (b + half) + b (request + context c), seconds per replica at full clock."""

    fixed_s: Number
    experts_s: Number
    half: Number
    request_s: Number
    context_s: Number

    def step_s(self, batch: Number, context: Number, extra_request_s: Number = 0.0) -> Number:
        """Step time of `batch` requests with `context` tokens each, plus `extra_request_s` for each."""
        return (
            self.fixed_s
            + self.experts_s * batch / (batch + self.half)
            + batch * (self.request_s + self.context_s * context + extra_request_s)
        )


@dataclass(frozen=True)
class PromptTerms:
    """prompt = fixed + L token + L^2 token2, seconds per replica at full clock."""

    fixed_s: Number
    token_s: Number
    token2_s: Number

    def prompt_s(self, tokens: Number) -> Number:
        """Time to prefill one prompt."""
        return self.fixed_s + tokens * self.token_s + tokens * tokens * self.token2_s


def job(arch: Any, precision: str, gpu: Any, tp: float, gpus: float | None = None, dp: float = 1.0) -> Job:
    """One model (an `Architecture`) in a layout on a GPU product (`GpuPhysics`)."""
    gpus = tp * dp if gpus is None else gpus
    byte = WEIGHT_BYTES[precision]
    common = COMMON_BYTES_MOE[precision] if arch.is_moe else byte
    return Job(
        tp=float(tp), dp=float(dp), gpus=float(gpus), kv_shards=float(dp * min(tp, arch.kv_heads)),
        flops=gpu.flops_of(precision), flops_bf16=gpu.flops, bw=gpu.bw, link=gpu.nvlink,
        is_moe=float(arch.is_moe), is_fp8=float(precision == "fp8"), is_4bit=float(precision in ("fp4", "int4")),
        layers=float(arch.layers), hidden=float(arch.hidden), active_params=arch.active_params,
        common_bytes=arch.common_params * common, expert_bytes=arch.expert_params * byte,
        experts_half=arch.experts_half, kv_bytes_token=arch.kv_elements_token * KV_BYTES,
        state_bytes=arch.state_elements * KV_BYTES,
        # causal attention: 4 heads head_dim L^2 / 2 per layer
        attention_flops=2.0 * arch.heads * arch.head_dim * arch.attention_layers,
    )  # fmt: skip


def stack(jobs: list[Job]) -> Job:
    """Many jobs as one of arrays, shape (rows,)."""
    return Job(**{f.name: np.array([getattr(j, f.name) for j in jobs]) for f in fields(Job)})


def _join_s_token(law: Law, j: Job) -> Number:
    """Moving a token's activations to the other shards and back, twice a layer; attention ranks do so side by side."""
    return np.where(j.gpus > 1, j.layers * j.hidden * 4.0 / (j.dp * j.link * law.comm_eff), 0.0)


def decode_terms(law: Law, j: Job) -> DecodeTerms:
    """The decode step of a replica at full clock."""
    dense = (1.0 - j.is_moe) * j.is_fp8, (1.0 - j.is_moe) * j.is_4bit
    sparse = j.is_moe * j.is_fp8, j.is_moe * j.is_4bit
    q_dense = law.dense_fp8 ** dense[0] * law.dense_fp4 ** dense[1]
    q_sparse = law.moe_fp8 ** sparse[0] * law.moe_fp4 ** sparse[1]
    launches = law.layer_s + j.is_moe * law.moe_layer_s * q_sparse + law.comm_layer_s * np.log2(j.gpus)
    return DecodeTerms(
        fixed_s=law.step_s + j.layers * launches + j.common_bytes * q_dense / (j.tp * j.bw * law.weights_eff),
        experts_s=j.expert_bytes * q_sparse / (j.gpus * j.bw * law.experts_eff),
        half=j.experts_half * law.half_factor,
        request_s=law.request_s / j.dp
        + 2.0 * j.active_params / (j.gpus * j.flops * law.flops_eff)
        + j.state_bytes / (j.kv_shards * j.bw * law.kv_eff)
        + _join_s_token(law, j),
        context_s=j.kv_bytes_token / (j.kv_shards * j.bw * law.kv_eff),
    )


def prompt_terms(law: Law, j: Job) -> PromptTerms:
    """The prefill of a prompt on a replica at full clock."""
    mfu = np.where(j.is_fp8 > 0, law.mfu_fp8, np.where(j.is_4bit > 0, law.mfu_fp4, law.mfu_bf16))
    return PromptTerms(
        fixed_s=law.prompt_s + j.layers * law.layer_s,
        token_s=2.0 * j.active_params * law.moe_prefill**j.is_moe / (j.gpus * j.flops * mfu) + _join_s_token(law, j),
        token2_s=j.attention_flops / (j.gpus * j.flops_bf16 * law.attention_eff),
    )


def aggregated_request_s(law: Law, prompt: PromptTerms, isl: Number, osl: Number) -> Number:
    """What prefilling others' prompts adds to a step, per request of the batch (chunked prefill)."""
    return law.interference * isl / osl * (prompt.token_s + prompt.token2_s * isl)
