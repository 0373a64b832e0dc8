"""Faults: rates by class, what each takes down, and what can be seen coming."""

import numpy as np
import pytest

from flyball.envs.faults import (
    CLASS_XID,
    CLASSES,
    GPU,
    HBM,
    HBM_CONTAINED,
    HOST,
    NETWORK,
    OUTCOME_UP_TO,
    RATE_PER_GPU_HOUR,
    REBOOT_S,
    RESET_S,
    RMA_HIGH_S,
    RMA_LOW_S,
    SHADOW_MARGIN,
    XID_FABRIC,
    fault_tick,
    start_faults,
)
from flyball.fleet.arbiter.health import xid_action

COOL = ("seconds=240", "warmup_s=0", "fault_scale=1")


@pytest.fixture
def strike(make_core):
    """Let a fault of a class strike node 0 of a fresh plant; returns the plant."""

    def make(kind, seed=0, scenario="steady", site=None):
        overrides = (*COOL, *(() if site is None else (f"site={site}",)))
        core = make_core(scenario, batch=1, overrides=overrides, seeds=[seed])
        for _ in range(4):
            core.plant.step(core.base, ticks=1)
        plant = core.plant
        node = plant.node[0]
        if kind <= HBM_CONTAINED:
            node["fault_margin"][0], node["fault_next"][0] = 0.0, kind
        else:
            node["fault_cold_margin"][0] = 0.0
        fault_tick(
            0, seed, 1.0, True, plant.fleet.node_static, plant.profiles, plant.params, plant.node, plant.service,
            plant.totals,
        )  # fmt: skip
        return plant

    return make


def outcome(plant):
    """Which outcome node 0 met."""
    node = plant.node[0, 0]
    if node["gpus_down"]:
        return "restart" if node["part_down_s"] == plant.params["role_move_s"][0] else "reset"
    seconds = node["down_s"]
    if seconds == plant.params["role_move_s"][0]:
        return "restart"
    return {RESET_S: "reset", REBOOT_S: "reboot"}.get(seconds, "rma")


def test_rates_by_class_are_the_published_ones(make_core):
    """Over many nodes and a long time the classes come at their rates, hot ones by the temperature's factor."""
    core = make_core("steady", batch=1)
    plant = core.plant
    static = np.tile(plant.fleet.node_static, 400)
    node = np.zeros((1, len(static)), plant.node.dtype)
    start_faults(node[0, :16], plant.fleet, np.random.default_rng(3))
    node[0] = np.tile(node[0, :16], 400)
    rng = np.random.default_rng(5)
    node["fault_margin"], node["fault_cold_margin"] = rng.exponential(size=(2, 1, len(static)))
    node["fault_rate"], node["fault_cold_rate"] = (
        sum(r) * 8 / 3600 for r in (RATE_PER_GPU_HOUR[:3], RATE_PER_GPU_HOUR[3:])
    )
    shares = np.array(RATE_PER_GPU_HOUR[:3]) / sum(RATE_PER_GPU_HOUR[:3])
    node["fault_next"] = rng.choice(3, size=(1, len(static)), p=shares)
    node["temp_c"], node["has_shadow"], node["stage"] = 75.0, 0, 1
    params = plant.params.copy()
    params["fault_scale"] = 1.0
    hours = 4000.0
    seen = dict.fromkeys(CLASS_XID, 0)
    for tick in range(40):
        node["fault_xid"], node["down_s"], node["part_down_s"], node["gpus_down"] = -1, 0.0, 0.0, 0
        fault_tick(0, tick, hours / 40 * 3600, False, static, plant.profiles, params, node, plant.service, plant.totals)
        for xid in seen:
            seen[xid] += int((node["fault_xid"] == xid).sum())
    for kind, rate in enumerate(RATE_PER_GPU_HOUR):
        expected = rate * (1.6 if kind <= HBM_CONTAINED else 1.0) * 8 * len(static) * hours
        assert seen[CLASS_XID[kind]] == pytest.approx(expected, abs=4 * expected**0.5), CLASSES[kind]


@pytest.mark.parametrize("kind", [GPU, HBM, HBM_CONTAINED])
def test_hot_faults_end_as_their_class_says(strike, kind):
    """Restarts, resets, reboots and replacements come in the class's shares, with its code and times."""
    names = ("restart", "reset", "reboot", "rma")
    seen = dict.fromkeys(names, 0)
    count = 60
    for seed in range(count):
        plant = strike(kind, seed)
        node = plant.node[0, 0]
        assert node["fault_xid"] == CLASS_XID[kind]
        found = outcome(plant)
        seen[found] += 1
        if found == "rma":
            assert RMA_LOW_S <= node["down_s"] <= RMA_HIGH_S
        assert (node["agent_down"] == 1) == (found in ("reboot", "rma"))
    shares = np.diff(np.concatenate(([0.0], OUTCOME_UP_TO[kind], [1.0])))
    for name, share in zip(names, shares, strict=True):
        assert abs(seen[name] - share * count) <= 4 * max(share * (1 - share) * count, 1e-9) ** 0.5


def test_a_reset_takes_its_group_and_the_others_serve_on(strike):
    """Half of a server of two tensor-parallel groups is out for six minutes, and no code drains the node."""
    plants = (strike(HBM, seed) for seed in range(8))
    plant = next(p for p in plants if outcome(p) == "reset")
    node = plant.node[0, 0]
    assert (node["gpus_down"], node["part_down_s"], node["down_s"], node["xid"]) == (4, RESET_S, 0.0, 0)
    before = float(plant.node["batch"][0].sum())
    assert before >= 0
    while node["part_down_s"] > 0:
        fault_tick(
            0, 1, 10.0, True, plant.fleet.node_static, plant.profiles, plant.params, plant.node, plant.service,
            plant.totals,
        )  # fmt: skip
    assert node["gpus_down"] == 0 and plant.totals["repairs"][0] == 1
    assert plant.totals["down_node_s"][0] == pytest.approx(RESET_S / 2)


def test_a_lost_group_serves_less_and_its_requests_are_lost(make_core):
    """With half of every server in reset the same requests fill twice the share of the memory that is left."""
    filled = []
    for gpus_down in (0, 4):
        core = make_core("steady", batch=1, overrides=(*COOL, "load.target_util=0.2"))
        for _ in range(10):
            core.step(core.base)
        core.plant.node["gpus_down"], core.plant.node["part_down_s"] = gpus_down, 60.0
        core.plant.step(core.base, ticks=1)
        filled.append(float(core.plant.service["kv_frac"][0, 0]))
    assert 1.8 * filled[0] < filled[1] < 2.2 * filled[0]


def test_a_fault_of_the_fabric_takes_the_node_or_the_whole_peer_set(strike):
    """On a rack-scale fabric a quarter of the faults take every tray of the rack; elsewhere they end at the node."""
    sizes = []
    for seed in range(40):
        plant = strike(NETWORK, seed, site="gb200-rack")
        if plant.node["fault_xid"][0, 0] in (XID_FABRIC, CLASS_XID[NETWORK]):
            sizes.append(int((plant.node["down_s"][0] > 0).sum()))
            assert (plant.node["xid"][0][plant.node["down_s"][0] > 0] == XID_FABRIC).all()
    assert set(sizes) == {1, 18}
    boards = [strike(NETWORK, seed) for seed in range(20)]
    assert {int((p.node["down_s"][0] > 0).sum()) for p in boards} <= {0, 1}


def test_codes_agree_with_the_arbiters_table():
    """What a class reports is what the arbiter's health rules act on as this module does."""
    actions = {name: xid_action(code) for name, code in zip(CLASSES, CLASS_XID, strict=True)}
    assert actions == {
        "gpu": "reboot",
        "hbm": "gpu_reset",
        "hbm-contained": "app_restart",
        "sram": "gpu_reset",
        "gsp": "gpu_reset",
        "network": "human",
        "host": "human",
    }
    assert xid_action(XID_FABRIC) == "fabric" and CLASS_XID[HOST] == 0


def test_a_fault_that_casts_a_shadow_is_seen_before_it_strikes(make_core):
    """Corrected errors rise before a memory fault and the temperature before a GPU's; without a shadow neither does."""
    core = make_core("steady", batch=1, overrides=COOL)
    plant, node = core.plant, core.plant.node[0]
    node["fault_margin"][:4] = SHADOW_MARGIN / 2
    node["fault_next"][:4] = (HBM, GPU, HBM, GPU)
    node["has_shadow"][:4] = (1, 1, 0, 0)
    fault_tick(
        0, 0, 3600.0, True, plant.fleet.node_static, plant.profiles, plant.params, plant.node, plant.service,
        plant.totals,
    )  # fmt: skip
    assert node["ecc_count"][0] > 5 and node["wear_c"][1] > 2
    assert (node["ecc_count"][1:4] == 0).all() and (node["wear_c"][[0, 2, 3]] == 0).all()


def test_without_faults_nothing_breaks(make_core):
    """A scale of 0 winds no clock down."""
    core = make_core("steady", batch=1, overrides=("seconds=240", "warmup_s=0"))
    margin = core.plant.node["fault_margin"].copy()
    for _ in range(40):
        core.step(core.base)
    assert (core.plant.node["fault_margin"] == margin).all() and (core.plant.node["down_s"] == 0).all()
