"""Physical parameters of GPU products and served models, from the tables in `envs/profiles`."""

import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np

from ..fleet.errors import SiteError
from ..fleet.topology import Fleet

PROFILES = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class GpuPhysics:
    """One GPU product; the power equation's weights in watts (MODEL.md section 4)."""

    p0_w: float
    pli_w: float
    aw_w: float
    am_w: float
    ac_w: float
    tdp_w: float
    flops: float
    bw: float
    hbm: float
    link: float


@dataclass(frozen=True)
class ModelProfile:
    """One served model (MODEL.md section 3)."""

    active_params: float
    weight_bytes: float
    kv_bytes_token: float
    tp: int
    mfu_prefill: float
    um_prefill: float
    t0_s: float
    c1: float
    c2: float
    c3: float


@cache
def gpu_physics() -> dict[str, GpuPhysics]:
    """Every GPU product by name."""
    return {k: GpuPhysics(**v) for k, v in tomllib.loads((PROFILES / "skus.toml").read_text()).items()}


@cache
def model_profiles() -> dict[str, ModelProfile]:
    """Every served model by name."""
    return {k: ModelProfile(**v) for k, v in tomllib.loads((PROFILES / "models.toml").read_text()).items()}


PROFILE = np.dtype(
    [
        (name, "f8")
        for name in (
            *(f.name for f in fields(GpuPhysics)),
            *(f.name for f in fields(ModelProfile)),
            "hbm_frac",  # weights / HBM of a replica: wf of the power equation
            "prefill_tok_s",  # per GPU at full clock
            "step_fixed_s",  # decode step of a replica at full clock: see physics.decode_step_s
            "step_experts_s",
            "experts_half",
            "step_request_s",
            "step_context_s",
            "prompt_fixed_s",  # prefill of one prompt on a replica: see physics.prompt_s
            "prompt_token_s",
            "prompt_token2_s",
        )
    ],
    align=True,
)
"""A model on a GPU product: everything the serving and power kernels need, shape (S, K)."""


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
        model = model_profiles()[service.model]
        for k, sku in enumerate(fleet.sku_names):
            gpu, row = gpu_physics()[sku], table[s, k]
            for source in (gpu, model):
                for f in fields(source):
                    row[f.name] = getattr(source, f.name)
            row["hbm_frac"] = model.weight_bytes / (model.tp * gpu.hbm)
            row["prefill_tok_s"] = model.mfu_prefill * gpu.flops / (2 * model.active_params)
            row["step_fixed_s"] = model.t0_s + model.c1 * model.weight_bytes / (model.tp * gpu.bw)
            row["experts_half"] = 1.0
            row["step_request_s"] = model.c3 * 2.0 * model.active_params / (model.tp * gpu.flops)
            row["step_context_s"] = model.c2 * model.kv_bytes_token / (model.tp * gpu.bw)
            row["prompt_token_s"] = 1.0 / (row["prefill_tok_s"] * model.tp)
    for node in fleet.nodes:
        service = fleet.services[fleet.service_index[node.service]]
        model, gpu = model_profiles()[service.model], gpu_physics()[node.sku]
        if node.gpus < model.tp:
            raise SiteError(
                f"node {node.name!r}: {service.model} needs {model.tp} GPUs per replica, the node has {node.gpus}"
            )
        if model.weight_bytes > 0.9 * model.tp * gpu.hbm:
            raise SiteError(f"node {node.name!r}: {service.model} does not fit {model.tp} GPUs of {node.sku}")
    return table
