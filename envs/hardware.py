"""Physical parameters of GPU products and served models, from the tables in `envs/profiles`."""

import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import numpy as np

from ..fleet.errors import SiteError
from ..fleet.topology import Fleet
from .architectures import Architecture, architecture
from .laws import LAW_NAMES, Job, Law, decode_terms, job, prompt_terms
from .power_law import PowerLaw, power_law, use_terms

PROFILES = Path(__file__).parent / "profiles"

UM_PREFILL = 0.25
"""Activity of memory in prefill (A); prefill's draw is measured, and its u_c is solved for."""


@dataclass(frozen=True)
class GpuPhysics:
    """One GPU product. Watts, FLOP/s, bytes and bytes/s; `law` and `power` hold the fitted coefficients.

    Attributes:
        p0_w: Parked. pli_w: idle with a model loaded. aw_w: added per share of HBM that holds weights.
        am_w, ac_w: Weights of memory and compute activity. prefill_w: what prefill draws uncapped.
        flops, flops_fp8, flops_fp4: Dense peak. bw, hbm: memory. link: KV transfer; nvlink: collectives.
    """

    p0_w: float
    pli_w: float
    aw_w: float
    am_w: float
    ac_w: float
    tdp_w: float
    prefill_w: float
    flops: float
    flops_fp8: float
    flops_fp4: float
    bw: float
    hbm: float
    link: float
    nvlink: float
    law: Law
    power: PowerLaw

    def flops_of(self, precision: str) -> float:
        """Peak of the tensor cores in a weight precision; int4 weights compute in bf16."""
        return {"fp8": self.flops_fp8, "fp4": self.flops_fp4}.get(precision, self.flops)


@dataclass(frozen=True)
class ModelProfile:
    """One model as it is served.

    Attributes:
        architecture: Its shape.
        precision: Of the weights: bf16, fp8, fp4, int4.
        tp, dp: Attention's tensor and data parallelism; tp x dp GPUs make a replica and hold the experts.
    """

    architecture: Architecture
    precision: str
    tp: int
    dp: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.tp * self.dp

    def job(self, gpu: GpuPhysics) -> Job:
        """The work that it puts on a GPU product."""
        return job(self.architecture, self.precision, gpu, self.tp, dp=self.dp)


@cache
def gpu_physics() -> dict[str, GpuPhysics]:
    """Every GPU product by name, under the median serving engine."""
    table = {}
    for name, row in tomllib.loads((PROFILES / "skus.toml").read_text()).items():
        facts = {f.name: row[f.name] for f in fields(GpuPhysics) if f.name not in ("law", "power")}
        law = Law(**{n: row["law"][n] for n in LAW_NAMES})
        table[name] = GpuPhysics(**facts, law=law, power=power_law(row["power"]))
    return table


@cache
def backend_factors() -> dict[str, dict]:
    """Factors of each measured serving engine on the coefficients of `Law`; 1 is the median engine.

    `serving` of each holds the waits of an aggregated engine's first token (experiments/fit/decode.py).
    """
    return tomllib.loads((PROFILES / "backends.toml").read_text())


@cache
def corrections() -> dict[str, dict[str, dict[str, float]]]:
    """Measured over predicted: "decode", "prefill", "power" -> product or "any" -> "model/precision" -> factor.

    "power-load" is a factor on what requests add, on top; "decode-load" and "prefill-load" are of engines alone.
    """
    return tomllib.loads((PROFILES / "corrections.toml").read_text())


def correction(kind: str, sku: str, model: "ModelProfile") -> float:
    """The factor of a kind (`corrections`) for one profile; 1 where nobody measured the model."""
    of = corrections().get(kind, {})
    name = f"{model.architecture.name}/{model.precision}"
    here, width = of.get(sku, {}), f"@x{model.gpus}"
    # keys with an engine do not apply: the simulator's engine is the median one
    return of.get("any", {}).get(name, 1.0) * here.get(name, 1.0) * here.get(width, 1.0) * here.get(name + width, 1.0)


@cache
def model_profiles() -> dict[str, ModelProfile]:
    """Every served model by name."""
    table = {}
    for name, row in tomllib.loads((PROFILES / "models.toml").read_text()).items():
        shape = architecture(row["architecture"])
        if shape is None:
            raise SiteError(f"model {name!r}: unknown architecture {row['architecture']!r}; see architectures.toml")
        table[name] = ModelProfile(**{**row, "architecture": shape})
    return table


PROFILE = np.dtype(
    [
        (name, "f8")
        for name in (
            *(f.name for f in fields(GpuPhysics) if f.name not in ("flops_fp8", "flops_fp4", "law", "power")),
            "active_params",
            "weight_bytes",
            "kv_bytes_token",
            "tp",  # GPUs of one replica
            "um_prefill",  # activity of memory in prefill
            "mfu_prefill",  # activity of compute in prefill: what makes it draw prefill_w
            "hbm_frac",  # weights / HBM of a replica: wf of the power equation
            "prefill_tok_s",  # per GPU at full clock, of long batches: 1 / (prompt_token_s tp)
            # decode step at full clock: laws.DecodeTerms
            "step_fixed_s",
            "step_experts_s",
            "experts_half",
            "step_request_s",
            "step_context_s",
            # prompt at full clock: laws.PromptTerms
            "prompt_fixed_s",
            "prompt_token_s",
            "prompt_token2_s",
            # activity of a decode step: power_law.UseTerms
            "um_fixed_s",
            "um_experts_s",
            "um_request_s",
            "um_context_s",
            "uc_request_s",
        )
    ],
    align=True,
)
"""A model on a GPU product: everything the serving and power kernels need, shape (S, K)."""


def prefill_compute_use(gpu: GpuPhysics, hbm_frac: float) -> float:
    """u_c at which a prefilling GPU at full clock draws its measured watts."""
    rest_w = gpu.prefill_w - gpu.pli_w - gpu.aw_w * hbm_frac - gpu.am_w * UM_PREFILL
    return (rest_w / gpu.ac_w) ** 2


def profile_row(model: ModelProfile, sku: str) -> dict[str, float]:
    """The fields of `PROFILE` for one model on one GPU product."""
    gpu = gpu_physics()[sku]
    decode_scale, prefill_scale = correction("decode", sku, model), correction("prefill", sku, model)
    draw_scale = correction("power", sku, model)
    gpu = replace(gpu, am_w=gpu.am_w * draw_scale, ac_w=gpu.ac_w * draw_scale)
    j = model.job(gpu)
    decode, prompt = decode_terms(gpu.law, j), prompt_terms(gpu.law, j)
    use = use_terms(gpu.power, j).tilted(correction("power-load", sku, model))
    weight_bytes = j.common_bytes * model.dp + j.expert_bytes  # attention ranks hold a copy each
    hbm_frac = weight_bytes / (model.gpus * gpu.hbm)
    row = {f.name: getattr(gpu, f.name) for f in fields(gpu) if f.name in PROFILE.names}
    token_s = float(prompt.token_s) * prefill_scale
    return row | {
        "flops": j.flops,
        "active_params": j.active_params,
        "weight_bytes": weight_bytes,
        # a KV cache that cannot be split over all shards is held more than once
        "kv_bytes_token": j.kv_bytes_token * model.gpus / j.kv_shards,
        "tp": model.gpus,
        "um_prefill": UM_PREFILL,
        "mfu_prefill": prefill_compute_use(gpu, hbm_frac),
        "hbm_frac": hbm_frac,
        "prefill_tok_s": 1.0 / (token_s * model.gpus),
        "step_fixed_s": float(decode.fixed_s) * decode_scale,
        "step_experts_s": float(decode.experts_s) * decode_scale,
        "experts_half": float(decode.half),
        "step_request_s": float(decode.request_s) * decode_scale,
        "step_context_s": float(decode.context_s) * decode_scale,
        "prompt_fixed_s": float(prompt.fixed_s) * prefill_scale,
        "prompt_token_s": token_s,
        "prompt_token2_s": float(prompt.token2_s) * prefill_scale,
        "um_fixed_s": float(use.fixed_s),
        "um_experts_s": float(use.experts_s),
        "um_request_s": float(use.state_s),
        "um_context_s": float(use.context_s),
        "uc_request_s": float(use.request_s),
    }


def profile_table(fleet: Fleet) -> np.ndarray:
    """`PROFILE` for every service of the fleet on every GPU product of the fleet, shape (S, K).

    Raises:
        SiteError: if a service names an unknown model, or its replica does not fit a node that serves it.
    """
    table = np.zeros((len(fleet.services), len(fleet.sku_names)), PROFILE)
    for s, service in enumerate(fleet.services):
        if service.model not in model_profiles():
            raise SiteError(
                f"service {service.name!r}: unknown model {service.model!r}; known: "
                f"{', '.join(sorted(model_profiles()))}"
            )
        for k, sku in enumerate(fleet.sku_names):
            for name, value in profile_row(model_profiles()[service.model], sku).items():
                table[s, k][name] = value
    for node in fleet.nodes:
        service = fleet.services[fleet.service_index[node.service]]
        model, gpu = model_profiles()[service.model], gpu_physics()[node.sku]
        if node.gpus < model.gpus:
            raise SiteError(
                f"node {node.name!r}: {service.model} needs {model.gpus} GPUs per replica, the node has {node.gpus}"
            )
        if profile_row(model, node.sku)["weight_bytes"] > 0.9 * model.gpus * gpu.hbm:
            raise SiteError(f"node {node.name!r}: {service.model} does not fit {model.gpus} GPUs of {node.sku}")
    return table
