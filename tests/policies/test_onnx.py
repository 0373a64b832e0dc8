"""Exported policies: parity, masks, equivariance, and refusal of what was made for something else."""

from pathlib import Path

import numpy as np
import pytest

from flyball import registry
from flyball.envs.core import Core
from flyball.envs.scenario import load_scenario
from flyball.fleet.errors import BadInput, SchemaMismatch
from flyball.fleet.schema import POOL_FEATURES
from flyball.policies.onnx import INPUTS, OUTPUTS, Card, OnnxPolicy, export

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def make_network(seed=0, scale=0.3):
    from flyball.policies.network import TokenNetwork

    torch.manual_seed(seed)
    network = TokenNetwork()
    for head in (network.pool_head, network.fleet_head):
        torch.nn.init.normal_(head.weight, std=scale)
    return network


CARD = Card("proportional", {}, 5.0, ("steady",), {"seed": 0})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A policy with random heads, its file and its weights."""
    folder = tmp_path_factory.mktemp("policy")
    network = make_network()
    saved = {"kind": "TokenNetwork", "pool_channels": list(network.pool_channels), "weights": network.state_dict()}
    torch.save(saved, folder / "network.pt")
    return export(network, CARD, folder / "policy.onnx"), folder / "network.pt"


def load(path, name="x"):
    scenario = load_scenario("steady")
    return OnnxPolicy.load(path, scenario.fleet, lambda base, params: registry.baseline(base, scenario, params), name)


def test_the_file_equals_torch_at_every_size(exported):
    """ONNX Runtime and torch agree to 1e-6 at 2, 8, 64 and 4,096 tokens and several batches, masked ones included."""
    from flyball.training.export import parity

    assert parity(*exported) <= 1e-6


def run(path, inputs):
    from flyball.training.export import _session

    return dict(zip(OUTPUTS, _session(path).run(list(OUTPUTS), inputs), strict=True))


def test_masked_tokens_influence_nothing(exported):
    """Whatever stands in masked tokens, the others' bids are the same bits, and masked ones keep their base."""
    from flyball.training.export import random_inputs

    inputs = random_inputs(np.random.default_rng(1), 3, 6)
    first = run(exported[0], inputs)
    inputs["pool"][:, -2:] = 3.0
    second = run(exported[0], inputs)
    assert np.array_equal(first["bid_pool"][:, :4], second["bid_pool"][:, :4])
    assert np.array_equal(first["bid_fleet"], second["bid_fleet"])
    assert np.array_equal(second["bid_pool"][:, -2:], inputs["base_pool"][:, -2:])


def test_permuting_services_permutes_bids(exported):
    """Services are a set: their order changes nothing but the order of the bids."""
    from flyball.training.export import random_inputs

    inputs = random_inputs(np.random.default_rng(2), 2, 6)
    inputs["pool_mask"][:] = 1
    order = [4, 5, 0, 1, 2, 3]
    plain = run(exported[0], inputs)
    moved = run(exported[0], {k: v[:, order] if v.ndim > 2 or k == "pool_mask" else v for k, v in inputs.items()})
    np.testing.assert_allclose(moved["bid_pool"], plain["bid_pool"][:, order], atol=1e-6)


def test_a_fresh_network_is_its_baseline():
    """At step 0 the policy bids what its baseline bids, to the bit."""
    from flyball.policies.network import TokenNetwork
    from flyball.training.gate import TorchPolicy

    scenario = load_scenario("steady")
    baseline = registry.baseline("greedy", scenario)
    core = Core(scenario, baseline, batch=2)
    core.reset([1, 2])
    memory = baseline.start(2)
    base, _ = baseline.bid(core.plant.snapshot, core.observation, memory)
    learned, _ = TorchPolicy(TokenNetwork(), baseline).bid(core.plant.snapshot, core.observation, memory)
    assert np.array_equal(base.pool, learned.pool)


def test_the_file_plays_an_episode_as_torch_does(exported):
    """Through a whole episode the file and the network it came from keep the same books."""
    from flyball.envs.episodes import run_episodes
    from flyball.training.gate import TorchPolicy

    scenario = load_scenario("curtailment", ("seconds=300",))
    network = make_network()
    torch_policy = TorchPolicy(network, registry.baseline("proportional", scenario))
    a = run_episodes(scenario, torch_policy, [1, 2])
    b = run_episodes(scenario, load(exported[0]), [1, 2])
    np.testing.assert_allclose(a.values("goodput_tok_s_per_mw"), b.values("goodput_tok_s_per_mw"), rtol=1e-3)


def rewrite(path, out, **changes):
    import onnx

    model = onnx.load(path)
    props = {p.key: p.value for p in model.metadata_props} | changes
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {k: v for k, v in props.items() if v is not None})
    onnx.save(model, out)
    return out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema_pool": "0123"}, "pool schema"),
        ({"schema_fleet": "0123"}, "fleet schema"),
        ({"format": None}, "not a Flyball policy"),
        ({"control_s": "30.0"}, "control_s"),
        ({"control_s": "soon"}, "damaged"),
        ({"baseline_params": '{"sharpness": 9}'}, "hash"),
        ({"baseline_params": "[]"}, "damaged"),
    ],
)
def test_a_policy_for_something_else_is_refused(exported, tmp_path, changes, says):
    """Another schema, clock or baseline is refused in one line that says what to do."""
    path = rewrite(exported[0], tmp_path / "other.onnx", **changes)
    with pytest.raises(SchemaMismatch, match=says) as refused:
        load(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07" * 100])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    """Empty files, text and junk give one clear line."""
    path = tmp_path / "junk.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput) as refused:
        load(path)
    assert "\n" not in str(refused.value)


def test_a_file_names_no_place_of_the_machine_that_wrote_it(exported):
    """The exporter notes stack traces with source paths; neither a file nor the champion carries them."""
    for file in (exported[0], registry.champion_path()):
        content = file.read_bytes()
        assert b"stack_trace" not in content and str(Path(__file__).parents[2]).encode() not in content


def test_export_leaves_no_half_written_file(tmp_path, monkeypatch):
    """If writing fails, neither the file nor its partial form stays under the final name."""
    import onnx

    def fail(model, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(onnx, "save", fail)
    with pytest.raises(OSError):
        export(make_network(), CARD, tmp_path / "policy.onnx")
    assert not (tmp_path / "policy.onnx").exists()


def test_inputs_carry_the_names_of_the_contract(exported):
    """The graph's inputs and outputs are named, with dynamic batch and tokens."""
    from flyball.training.export import _session

    session = _session(exported[0])
    assert {i.name for i in session.get_inputs()} == set(INPUTS)
    shape = {i.name: i.shape for i in session.get_inputs()}["pool"]
    assert isinstance(shape[0], str) and isinstance(shape[1], str) and shape[2] == len(POOL_FEATURES)
