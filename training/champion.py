"""The model registry: policies that passed the gate, and the alias `champion` on the best of them.

A gate's gain can be compared with another only where both were judged on the same windows of the same scenarios
against the same baseline: versions say so in a tag, and the alias stays where they differ.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALIAS = "champion"
GAIN_TAG = "validation_gain"
JUDGED_TAG = "judged_on"
SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Registered:
    """A policy in the registry.

    Attributes:
        name: Of the registered model.
        version: Of this policy.
        is_champion: Whether the alias moved to it.
        reason: Why it did or did not.
    """

    name: str
    version: str
    is_champion: bool
    reason: str


def model_name(scenarios: list[str]) -> str:
    """Name in the registry of the policies for these scenarios."""
    return "-".join(["flyball", *scenarios])


def judged_on(hashes: dict[str, str], base: str, params: dict[str, float], windows: int) -> str:
    """Hash of what a gain was measured against: scenarios, baseline with its constants, windows."""
    text = json.dumps([hashes, base, params, windows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def signature(graph) -> Any:
    """MLflow's signature of an ONNX model: its tensors by name, -1 for batch and tokens.

    Args:
        graph: An `onnx.ModelProto`.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec
    from onnx.helper import tensor_dtype_to_np_dtype

    def schema(values) -> Schema:
        specs = []
        for value in values:
            tensor = value.type.tensor_type
            shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
            specs.append(TensorSpec(tensor_dtype_to_np_dtype(tensor.elem_type), shape, value.name))
        return Schema(specs)

    return ModelSignature(schema(graph.graph.input), schema(graph.graph.output))


def register(client, store: str, run_id: str, model, name: str, gain: float, judged: str) -> Registered:
    """Register a policy that passed its gate; move the alias if it gains more than the policy that has it.

    Args:
        client: Of the store.
        store: Its URI.
        run_id: Of the run that learned it.
        model: What MLflow says of the logged model.
        name: Of the registered model; made where it is missing.
        gain: On the gate's windows.
        judged: What the gain was measured on, from `judged_on`.
    """
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # there already, perhaps since a moment ago
        client.create_registered_model(name)
    version = client.create_model_version(
        name,
        model.model_uri,
        run_id,
        tags={GAIN_TAG: repr(float(gain)), JUDGED_TAG: judged},
        model_id=model.model_id,
    ).version
    with _alone(store):
        is_better, reason = _compare(_champion(client, name), gain, judged)
        if is_better:
            client.set_registered_model_alias(name, ALIAS, version)
    return Registered(name, str(version), is_better, reason)


def _champion(client, name: str):
    """The version that the alias points to, None where it points to none."""
    aliases = client.get_registered_model(name).aliases
    return client.get_model_version(name, aliases[ALIAS]) if ALIAS in aliases else None


def _compare(champion, gain: float, judged: str) -> tuple[bool, str]:
    """Whether a gain takes the alias, and why."""
    if champion is None:
        return True, "the first to pass the gate"
    before = float(champion.tags.get(GAIN_TAG, "inf"))
    if champion.tags.get(JUDGED_TAG) != judged:
        return False, f"version {champion.version} was judged on other windows, scenarios or baseline: move it by hand"
    if gain > before:
        return True, f"{gain:+.2%} against {before:+.2%} of version {champion.version}"
    return False, f"version {champion.version} has {before:+.2%}"


@contextmanager
def _alone(store: str) -> Iterator[None]:
    """Let no other run on this machine compare and move the alias in between; a server has no such lock."""
    import fcntl

    if not store.startswith(SQLITE):
        yield
        return
    path = Path(store.removeprefix(SQLITE))
    with path.with_name(path.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
