"""`flyball export`: a run folder or an MLflow model as one ONNX file, checked against torch's weights if there."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ..fleet.errors import BadInput
from ..fleet.schema import FLEET_BIDS, FLEET_FEATURES, POOL_BIDS, POOL_FEATURES
from ..policies.onnx import INPUTS, OUTPUTS


def export_run(run: str, out: Path) -> dict[str, Any]:
    """Write the run's policy to `out`, and its model card beside it.

    Returns:
        {"onnx", "card", "bytes", "parity", "metadata"}; parity is the largest difference to torch over random tokens,
        None where the run holds no torch weights (a model from MLflow).

    Raises:
        BadInput: no such run, or one that has no policy yet.
    """
    folder = Path(run)
    if folder.is_dir():
        source = folder / "policy.onnx"
        if not source.exists():
            raise BadInput(f"{folder}: no policy.onnx; the run has not finished: run flyball train with --out {folder}")
    elif ":/" in run:
        source = _from_mlflow(run)
    else:
        raise BadInput(f"{run}: no such run folder, and not an MLflow URI such as runs:/ID/model")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    shutil.copyfile(source, partial)
    partial.replace(out)
    weights = folder / "network.pt"
    card = out.with_suffix(".md")
    card.write_text(model_card(out))
    return {
        "onnx": str(out),
        "card": str(card),
        "bytes": out.stat().st_size,
        "parity": parity(out, weights) if folder.is_dir() and weights.exists() else None,
        "metadata": _metadata(out),
    }


def _from_mlflow(uri: str) -> Path:
    from .tracking import _mlflow

    mlflow = _mlflow()
    try:
        local = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except Exception as e:
        reason = str(e).strip().splitlines()[0][:160] if str(e).strip() else type(e).__name__
        raise BadInput(f"{uri}: cannot be read ({reason}); set MLFLOW_TRACKING_URI to the store it is in") from None
    found = sorted(local.rglob("*.onnx")) if local.is_dir() else [local]
    if not found:
        raise BadInput(f"{uri}: holds no ONNX file")
    return found[0]


def _session(path: Path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _metadata(path: Path) -> dict[str, Any]:
    meta = dict(_session(path).get_modelmeta().custom_metadata_map)
    return {k: json.loads(v) if k in ("run", "families", "baseline_params") else v for k, v in meta.items()}


def model_card(path: Path) -> str:
    """What a policy file says of itself, for people."""
    meta = _metadata(path)
    run, params = meta["run"], meta["baseline_params"]
    rows = [
        f"| {r['scenario']} | {r['base']:,.0f} | {r['policy']:,.0f} | {r['gain']:+.2%} | {r['violation_ws']:g} |"
        for r in run.get("validation", [])
    ]
    profile, shrinkage = run.get("profile", "power-roles"), run.get("role_shrinkage")
    members = run.get("members", [run])
    command = "\n".join(
        f"flyball train {' '.join(run.get('scenarios', []))} --algo {m.get('algo')} --steps {m.get('steps', 0)} "
        f"--seed {m.get('seed')} --profile {profile} --warm-start {meta['baseline']}"
        + (f" --out out/seeds/{i}" if "members" in run else "")
        for i, m in enumerate(members)
    )
    learned = f"{run.get('algo')}, seed {run.get('seed')}, {run.get('steps', 0):,} steps"
    if "members" in run:
        command += "\npython -m flyball.experiments.soup out/seeds/* --out out/soup"
        searches = ", ".join(f"{m['algo']} seed {m['seed']} ({m['steps']:,} steps)" for m in members)
        learned = f"the average of {len(members)} searches: {searches}"
    cpu_s = run.get("cpu_s")
    cost = "not recorded" if cpu_s is None else f"{cpu_s:,.0f} CPU seconds of all processes, its validation included"
    lines = [
        f"# {path.stem}",
        f"A learned residual over the `{meta['baseline']}` baseline: bids of watts and nodes per pool, and of slack "
        f"for the fleet, every {float(meta['control_s']):g} s.",
        "| | |",
        "|---|---|",
        f"| Learned by | {learned} |",
        f"| Cost | {cost} |",
        f"| Profile | {profile}" + ("" if shrinkage is None else f", {shrinkage:g} of the learned role moves") + " |",
        f"| On | {', '.join(run.get('scenarios', []))}: generated load, fleets of {run.get('nodes')} nodes |",
        f"| Base | `{meta['baseline']}`, constants "
        + ", ".join(f"{k} {v:g}" for k, v in sorted(params.items()))
        + f" (hash `{meta['baseline_hash']}`) |",
        f"| Schema | pool `{meta['schema_pool']}`, fleet `{meta['schema_fleet']}` |",
        f"| From | Flyball {run.get('flyball_version')}, revision {run.get('git_revision') or 'unknown'} |",
        "",
        "## Validation",
        "",
        "Goodput in tokens/s per MW of nominal power, means over windows that neither trained nor chose the policy, "
        "in the plant.",
        "",
        "| scenario | base | policy | difference | violation, W s |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Scores against every baseline, with intervals: `flyball evaluate --suite standard --policy FILE`.",
        "",
        "## Limits",
        "",
        "Trained and judged in the plant, on generated load. Other sites, models and loads than those named above are "
        "extrapolation: evaluate before use, and run in shadow mode first. Safety does not depend on this file: the "
        "arbiter holds every limit whatever it bids.",
        "",
        "## Command",
        "",
        "```",
        command,
        "```",
    ]
    return "\n".join([lines[0], "", lines[1], "", *lines[2:]]) + "\n"


def random_inputs(rng: np.random.Generator, batch: int, pools: int) -> dict[str, np.ndarray]:
    """Inputs as the graph takes them, the last pair of tokens masked where there are several."""
    mask = np.ones((batch, pools), np.float32)
    if pools > 2:
        mask[:, -2:] = 0
    return {
        "pool": rng.uniform(-2, 2, (batch, pools, len(POOL_FEATURES))).astype(np.float32),
        "pool_mask": mask,
        "fleet": rng.uniform(0, 1, (batch, len(FLEET_FEATURES))).astype(np.float32),
        "base_pool": rng.uniform(-1, 1, (batch, pools, len(POOL_BIDS))).astype(np.float32),
        "base_fleet": rng.uniform(-1, 1, (batch, len(FLEET_BIDS))).astype(np.float32),
    }


def parity(path: Path, weights: Path, seed: int = 0) -> float:
    """Largest absolute difference between a file and the torch weights it came from, over sizes and batches."""
    import torch

    from ..policies.network import KINDS, BidGraph

    saved = torch.load(weights, weights_only=True)
    network = KINDS[saved["kind"]](saved["pool_channels"])
    network.load_state_dict(saved["weights"])
    graph, session = BidGraph(network).eval(), _session(path)
    rng = np.random.default_rng(seed)
    worst = 0.0
    for batch, pools in ((1, 2), (3, 8), (1, 64), (2, 4096)):
        inputs = random_inputs(rng, batch, pools)
        got = session.run(list(OUTPUTS), inputs)
        with torch.no_grad():
            want = graph(*(torch.as_tensor(inputs[name]) for name in INPUTS))
        worst = max(worst, *(float(np.abs(g - w.numpy()).max()) for g, w in zip(got, want, strict=True)))
    return worst
