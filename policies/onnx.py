"""Learned policies as ONNX files: export from torch, run on ONNX Runtime, refuse what was made for something else.

The graph's inputs are named features and base bids, its outputs final bids. What it was trained for stands in its
metadata: hashes of the schema kinds it reads, baseline with its constants, control interval, origin.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..fleet.bids import Bids
from ..fleet.errors import BadInput, SchemaMismatch
from ..fleet.schema import FLEET_BIDS, FLEET_FEATURES, POOL_BIDS, POOL_FEATURES, schema_hash
from ..fleet.topology import Fleet
from .base import Policy

if TYPE_CHECKING:
    from .network import Residual

INPUTS = ("pool", "pool_mask", "fleet", "base_pool", "base_fleet")
OUTPUTS = ("bid_pool", "bid_fleet")
FORMAT = "flyball-bids-1"
OPSET = 18


@dataclass(frozen=True)
class Card:
    """What a policy file says of itself.

    Attributes:
        baseline: Name of the policy whose bids it corrects.
        baseline_params: That policy's constants.
        control_s: Decision interval it was trained at.
        families: Scenario families it was trained on.
        run: What produced it: run id, seed, steps, git revision, training sizes.
    """

    baseline: str
    baseline_params: dict[str, float]
    control_s: float
    families: tuple[str, ...] = ()
    run: dict[str, Any] | None = None

    def metadata(self) -> dict[str, str]:
        """String pairs for `metadata_props`."""
        return {
            "format": FORMAT,
            "schema_pool": schema_hash("pool"),
            "schema_fleet": schema_hash("fleet"),
            "baseline": self.baseline,
            "baseline_params": json.dumps(self.baseline_params, sort_keys=True),
            "baseline_hash": params_hash(self.baseline, self.baseline_params),
            "control_s": repr(float(self.control_s)),
            "families": json.dumps(list(self.families)),
            "run": json.dumps(self.run or {}, sort_keys=True, default=str),
        }


def params_hash(baseline: str, params: dict[str, float]) -> str:
    """First 16 hex digits of the SHA-256 of a baseline's name and constants."""
    return hashlib.sha256(json.dumps([baseline, params], sort_keys=True).encode()).hexdigest()[:16]


def export(network: "Residual", card: Card, path: Path) -> Path:
    """Write a network as one ONNX file with its card. Needs the [train] extra.

    The file appears whole or not at all.

    Args:
        network: The trained residual.
        card: What it is.
        path: Where to.
    """
    import logging
    import warnings

    import onnx
    import torch

    from .network import BidGraph

    graph = BidGraph(network).eval().cpu()
    batch, pools = torch.export.Dim("batch", min=1), torch.export.Dim("pairs", min=1)
    example = (
        torch.zeros(2, 4, len(POOL_FEATURES)),
        torch.ones(2, 4),
        torch.zeros(2, len(FLEET_FEATURES)),
        torch.zeros(2, 4, len(POOL_BIDS)),
        torch.zeros(2, len(FLEET_BIDS)),
    )
    tokens = 2 * pools  # pools come in pairs of stages
    shapes = ({0: batch, 1: tokens}, {0: batch, 1: tokens}, {0: batch}, {0: batch, 1: tokens}, {0: batch})
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    model = program.model_proto
    forget_origin(model)
    onnx.helper.set_model_props(model, card.metadata())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    onnx.save(model, partial)
    partial.replace(path)
    return path


def forget_origin(model: Any) -> None:
    """Drop what the exporter notes of each node: stack traces with the paths of the machine that exported."""
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    del model.graph.metadata_props[:]


class OnnxPolicy:
    """A policy file on ONNX Runtime, one thread, over its own baseline."""

    def __init__(self, session, card: Card, baseline: Policy, name: str):
        self.session, self.card, self.baseline, self.name = session, card, baseline, name

    @classmethod
    def load(
        cls,
        path: Path,
        fleet: Fleet,
        make_baseline: Callable[[str, dict[str, float]], Policy],
        name: str = "",
    ) -> "OnnxPolicy":
        """Open a file and check that it was made for this schema and clock.

        Raises:
            BadInput: no such file, or not an ONNX model.
            SchemaMismatch: another schema, another control interval, other inputs, or constants that do not match
                their hash.
        """
        import onnxruntime as ort

        path = Path(path)
        if not path.is_file():
            raise BadInput(f"{path}: no such policy file")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as e:
            raise BadInput(f"{path}: not an ONNX model that ONNX Runtime can run ({_first_line(e)})") from None
        meta = session.get_modelmeta().custom_metadata_map
        card = _check(path, meta, session, fleet)
        return cls(session, card, make_baseline(card.baseline, card.baseline_params), name or path.name)

    def start(self, batch):
        return self.baseline.start(batch)

    def bid(self, snapshot, observation, memory):
        base, memory = self.baseline.bid(snapshot, observation, memory)
        pool, fleet = self.session.run(list(OUTPUTS), self.inputs(observation, base))
        return Bids(pool, base.node, fleet), memory

    @staticmethod
    def inputs(observation, base: Bids) -> dict[str, np.ndarray]:
        """What the graph takes, by name."""
        return {
            "pool": observation.pool,
            "pool_mask": observation.pool_mask.astype(np.float32),
            "fleet": observation.fleet,
            "base_pool": base.pool,
            "base_fleet": base.fleet,
        }


def _check(path: Path, meta: dict[str, str], session, fleet: Fleet) -> Card:
    if meta.get("format") != FORMAT:
        raise SchemaMismatch(
            f"{path}: not a Flyball policy (format {meta.get('format')!r}, want {FORMAT!r}); "
            "export it with: flyball export"
        )
    for kind in ("pool", "fleet"):
        if meta.get(f"schema_{kind}") != schema_hash(kind):
            raise SchemaMismatch(
                f"{path}: made for {kind} schema {meta.get(f'schema_{kind}')}, this build has {schema_hash(kind)}; "
                "train or export it again"
            )
    try:
        params = {k: float(v) for k, v in json.loads(meta["baseline_params"]).items()}
        control_s, families = float(meta["control_s"]), tuple(json.loads(meta.get("families", "[]")))
        card = Card(meta["baseline"], params, control_s, families, json.loads(meta.get("run", "{}")))
    except (KeyError, ValueError, AttributeError, TypeError):
        raise SchemaMismatch(f"{path}: its metadata are damaged; export it again") from None
    if meta.get("baseline_hash") != params_hash(card.baseline, card.baseline_params):
        raise SchemaMismatch(f"{path}: the baseline's constants do not match their hash; export it again")
    if card.control_s != fleet.timing.control_s:
        raise SchemaMismatch(
            f"{path}: trained for control_s {card.control_s:g}, the site has {fleet.timing.control_s:g}; "
            "train for this interval or change the site's [timing]"
        )
    inputs = {i.name: i.shape for i in session.get_inputs()}
    wanted = {
        "pool": len(POOL_FEATURES),
        "fleet": len(FLEET_FEATURES),
        "base_pool": len(POOL_BIDS),
        "base_fleet": len(FLEET_BIDS),
    }
    if set(inputs) != set(INPUTS) or {o.name for o in session.get_outputs()} != set(OUTPUTS):
        raise SchemaMismatch(f"{path}: inputs {sorted(inputs)}, want {sorted(INPUTS)}; export it with: flyball export")
    for name, width in wanted.items():
        if inputs[name][-1] != width:
            raise SchemaMismatch(f"{path}: input {name} has {inputs[name][-1]} features, this build {width}")
    return card


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:160] if text else type(error).__name__
