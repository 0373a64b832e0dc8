"""The emulated fleet: the plant under caps from outside, what is announced when, and what shadow mode leaves alone."""

import asyncio
import math
import socket
import time
from dataclasses import replace
from pathlib import Path

import httpx
import msgpack
import numpy as np
import pytest

from flyball import registry
from flyball.envs.core import Core
from flyball.envs.scenario import BudgetEvent, load_scenario
from flyball.experiments.emulation.emulation import Emulation
from flyball.experiments.emulation.limit_meter import LimitMeter
from flyball.experiments.processes import ServiceProcess
from flyball.experiments.site_scenario import site_scenario
from flyball.fleet.errors import BadInput
from flyball.fleet.observe import observe
from flyball.fleet.tables import DECODE, PARKED
from flyball.serving.app import create_app
from flyball.serving.auth import dev_token_file, load_tokens, read_secrets
from flyball.serving.engine import Engine
from flyball.serving.store import Store

SITE = Path(__file__).with_name("live_site.toml")


@pytest.fixture
def core():
    """One environment of the test site, begun."""
    scenario = site_scenario(SITE, seconds=120.0, warmup_s=0.0)
    core = Core(scenario, registry.policy("uniform", scenario))
    core.reset([3])
    core.plant.params["dropout_frac"] = 0.0
    return core


def live(core, cap_w, since_s=0.0, stage=None, drained=0):
    """One tick of the plant under caps from outside."""
    plant = core.plant
    shape = plant.node.shape
    return plant.tick_live(
        np.broadcast_to(cap_w, shape),
        np.full(shape, since_s),
        plant.node["stage"] if stage is None else stage,
        np.ones(shape),
        np.full(shape, drained),
    )


# ── the plant under caps from outside ───────────────────────────────────────────────────────────────────
def test_a_cap_written_outside_is_in_force_after_the_hardwares_latency(core):
    """A cap written at the start of a tick holds by its end; one written late in the tick holds in the next."""
    plant = core.plant
    live(core, 900)
    assert (plant.node["cap_w"] == 900).all() and (plant.node["pending_s"] < 0).all()
    live(core, 600, since_s=0.9)
    assert (plant.node["cap_w"] == 900).all() and (plant.node["pending_w"] == 600).all()
    live(core, 600)
    assert (plant.node["cap_w"] == 600).all()
    assert (plant.node["gpu_w"] <= 600 * (1 + plant.params["firmware_overshoot_frac"])).all()


def test_a_cap_that_changes_late_in_every_tick_still_comes_into_force(core):
    """A write that overtakes another one never keeps both from the GPUs."""
    for cap_w in (1300, 1200, 1100, 1000):
        live(core, cap_w, since_s=0.95)
    assert (core.plant.node["cap_w"] == 1100).all() and (core.plant.node["pending_w"] == 1000).all()


def test_stages_and_drains_are_taken_from_outside(core):
    """A commanded stage starts to move, a drained node gets no work, and no acknowledgement is invented."""
    plant = core.plant
    before = plant.node["ack_seq"].copy()
    stage = plant.node["stage"].copy()
    stage[0, 0], stage[0, 1] = DECODE, PARKED
    live(core, 1000, stage=stage, drained=1)
    assert plant.node["stage"][0, :2].tolist() == [DECODE, PARKED] and plant.node["moving_s"][0, 0] > 0
    assert (plant.node["is_drained"] == 1).all() and (plant.node["util_frac"] == 0).all()
    assert (plant.node["ack_seq"] == before).all()


def test_a_node_broken_from_outside_is_down_until_it_is_repaired(core):
    """Its code stands and it draws idle power; requests that decoded on it are lost."""
    plant = core.plant
    for _ in range(10):
        live(core, 1400)
    before = plant.service["lost_tok"].sum()
    node = int(np.flatnonzero(plant.node["stage"][0] == DECODE)[0])
    plant.fail(node, 79, 3.0)
    live(core, 1400)
    assert plant.node["xid"][0, node] == 79 and plant.node["gpu_w"][0, node] < 0.2 * 1400
    assert plant.service["lost_tok"].sum() > before
    for _ in range(3):
        live(core, 1400)
    assert plant.node["xid"][0, node] == 0 and plant.node["down_s"][0, node] == 0


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────
def test_watts_above_limits_are_added_up_apart():
    """Above the limit in force is a violation, between it and the demanded one is overshoot, per domain."""
    meter, in_force, demanded = LimitMeter(), np.array([100, 50]), np.array([80, 50])
    for t_s in (1.0, 2.0):
        meter = meter.add(np.array([90, 40]), demanded, in_force, t_s, 1.0)
    assert (meter.violation_ws, meter.overshoot_ws, meter.overshoot_s, meter.margin_w) == (0.0, 20.0, 2.0, 10.0)
    meter = meter.add(np.array([70, 53]), demanded, in_force, 2.5, 0.5)
    assert meter.violation_ws == 1.5 and meter.overshoot_s == 2.5 and meter.margin_w == -3.0
    meter = meter.add(np.array([70, 40]), demanded, in_force, 3.5, 1.0)
    assert meter.violation_ws == 1.5 and meter.overshoot_ws == 20.0 and math.isnan(meter.over_since_s)


def make_emulation(tmp_path, events) -> Emulation:
    scenario = site_scenario(SITE, seconds=60.0, warmup_s=0.0, events=events)
    names = ["operator", "emulation", *(n.name for n in scenario.fleet.nodes)]
    return Emulation(scenario, tmp_path, "http://127.0.0.1:1", dict.fromkeys(names, "secret"))


def test_events_are_announced_when_the_scenario_says(tmp_path):
    """With notice before the start, without it at the start, and a raise withdraws the cut only when it starts."""
    events = (BudgetEvent(0.9, 20.0, "", 12.0), BudgetEvent(0.8, 30.0, until_s=5.0), BudgetEvent(1.0, 40.0, "", 10.0))
    emulation = make_emulation(tmp_path, events)
    due = [(told.at_s, told.message(told.at_s)) for told in emulation.due]
    assert [at_s for at_s, _ in due] == [8.0, 30.0, 40.0]
    first, second, third = (body for _, body in due)
    assert first["limit_w"] == 6120 and first["notice_s"] == 12.0 and "until_s" not in first
    assert "notice_s" not in second and second["until_s"] == pytest.approx(time.time() + 5.0, abs=1.0)
    assert third["supersedes"] == [first["id"]] and "notice_s" not in third


def test_a_site_starts_with_caps_that_fit(tmp_path):
    """Before any agent has written a cap, the emulated GPUs run a table that fits every limit."""
    emulation = make_emulation(tmp_path, ())
    assert (emulation.bounds_w(emulation.nodes.caps_w()) <= emulation.fleet.domain_static["peak_w"]).all()
    assert emulation.nodes.setter_calls == 0


def test_a_lost_gpu_counts_at_its_maximum(tmp_path):
    """Nobody can say what cap a GPU runs that fell off the bus."""
    emulation = make_emulation(tmp_path, ())
    before_w = emulation.nodes.caps_w()
    emulation.inject_xid(0, 1, 79)
    assert emulation.nodes.caps_w()[0] - before_w[0] == 700 - emulation.nodes.gpus[0].caps_w[1]
    assert emulation.nodes.floors_w().tolist() == [900, 400, 400, 400]
    assert emulation.plant.node["down_s"][0, 0] > 0


def test_what_cannot_be_emulated_is_bad_input(tmp_path):
    """An unknown site, an unknown scenario and a token file of another site: one line each."""
    with pytest.raises(BadInput, match="no-such-site"):
        site_scenario("no-such-site")
    with pytest.raises(BadInput, match="no-such-scenario"):
        site_scenario(SITE, "no-such-scenario")
    with pytest.raises(BadInput, match="no token 'n0'"):
        Emulation(site_scenario(SITE), tmp_path, "http://127.0.0.1:1", {"operator": "a", "emulation": "b"})


# ── one code in both worlds ─────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["best-baseline", "static"])
def test_simulator_and_service_make_the_same_plan_of_one_snapshot(tmp_path, name):
    """A recorded snapshot through the plant's loop, the engine and HTTP gives identical bytes of plan and state."""
    scenario = load_scenario("demo")
    policy = registry.policy(name, scenario)
    core = Core(scenario, policy)
    core.reset([7])
    for _ in range(8):
        core.step(core.base)
    plant = core.plant
    state, snapshot = plant.state.copy(), plant.snapshot.copy()
    # a decision from outside starts with a fresh memory, as `Engine.decide` says
    bids, _ = policy.bid(snapshot, observe(scenario.fleet, state, snapshot), policy.start(1))
    plant.step(bids, ticks=1)
    store = Store(f"{tmp_path}/flyball.db")
    try:
        engine = Engine(scenario.fleet, policy, store)
        state_after, plan = engine.decide(snapshot, state)
        assert plan.to_bytes() == plant.plan.to_bytes()
        assert state_after.to_bytes() == plant.state.to_bytes()
        tokens = dev_token_file(tmp_path / "tokens.toml", ["n0"])
        answer = asyncio.run(_decide(create_app(engine, load_tokens(tokens)), read_secrets(tokens), snapshot, state))
        assert answer == {"plan": plan.to_bytes(), "state": state_after.to_bytes()}
    finally:
        store.close()


async def _decide(app, secrets, snapshot, state) -> dict:
    headers = {"Authorization": f"Bearer {secrets['viewer']}", "Content-Type": "application/msgpack"}
    content = msgpack.packb({"snapshot": snapshot.to_bytes(), "state": state.to_bytes()})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://flyball") as client:
        return msgpack.unpackb((await client.post("/v1/decide", content=content, headers=headers)).content)


# ── shadow mode, and a service that comes late ──────────────────────────────────────────────────────────
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_shadow_mode_calls_no_setter_and_a_late_service_is_found(tmp_path):
    """Real agents that started before their service find it, are heard, and never touch a cap in shadow mode."""
    scenario = replace(site_scenario(SITE, seconds=30.0, warmup_s=0.0), name="shadow")
    service = ServiceProcess(str(SITE), tmp_path, mode="shadow", port=free_port())
    secrets = read_secrets(dev_token_file(service.tokens, [n.name for n in scenario.fleet.nodes]))
    try:
        with Emulation(scenario, tmp_path, f"http://127.0.0.1:{service.port}", secrets) as emulation:
            before_w = emulation.nodes.caps_w()
            service.start()
            emulation.wait_for_agents(emulation.has_answers)
            seconds = list(emulation.run(4.0))
            emulation.nodes.check()
            assert emulation.nodes.setter_calls == 0 and (emulation.nodes.caps_w() == before_w).all()
            assert len(seconds) == 4 and seconds[-1].power_w[0] > 0
            assert emulation.reporter.seen["mode"] == "shadow" and emulation.reporter.refused == []
            assert (emulation.nodes.owned()[0] == -1).all() and emulation.kpis()["budget_violation_ws"] == 0
        assert all(process.poll() is not None for process in emulation.nodes.agents)
        assert emulation.nodes.setter_calls == 0
    finally:
        service.stop()
