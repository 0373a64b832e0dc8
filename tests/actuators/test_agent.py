"""Real agents, with their guardians, on emulated GPUs against a tiny service."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from flyball.actuators.agent import AgentConfig
from flyball.actuators.emulator.state import EmulatedGpus
from flyball.fleet.errors import BadInput


@pytest.fixture
def obeying(gpus, service, start_agent, wait_until):
    """An agent that has applied and acknowledged the first lease."""
    agent = start_agent()
    wait_until(lambda: service.received and service.received[-1]["ack_seq"] == 1)
    assert (gpus.caps_w == 500).all()
    return agent


def lease(**change):
    return {"epoch": 1, "seq": 1, "ttl_s": 5.0, "cap_w": 4000, "fallback_w": 3200, **change}


def test_a_lease_is_applied_read_back_and_acknowledged(gpus, service, obeying, wait_until):
    """Telemetry goes up, a lease comes down, caps are in force, and the next message says so."""
    gpus.set_power_w(450.0)
    gpus.table["util_frac"], gpus.table["temp_c"][3] = 0.8, 71.0
    wait_until(lambda: service.received[-1]["power_w"] == 3600.0)
    first, last = service.received[0], service.received[-1]
    assert first["ack_seq"] == 0 and first["cap_w"] == 5600 and first["fallback_w"] == -1
    assert (last["ack_epoch"], last["ack_seq"], last["cap_w"], last["fallback_w"]) == (1, 1, 4000, 3200)
    assert last["util_frac"] == pytest.approx(0.8) and last["temp_c"] == 71 and last["clock_frac"] == 1.0
    assert last["demand_w"] == pytest.approx(3600 * 1.03) and last["stage"] == 1 and not last["dry_run"]
    assert last["gpus"] == [u.decode() for u in gpus.table["uuid"]] and last["boot_id"]
    assert last["inventory"][0]["cap_max_w"] == 700 and last["problems"] == []
    assert service.authorization[0] == "Bearer a-secret-of-the-node"
    service.lease = lease(seq=2, cap_w=4807)
    wait_until(lambda: service.received[-1]["ack_seq"] == 2)
    assert gpus.caps_w.sum() == service.received[-1]["cap_w"] == 4807 and np.ptp(gpus.caps_w) == 1


def test_a_silent_service_means_the_fallback_at_the_deadline(gpus, service, start_agent, wait_until):
    """When the service dies every cap is at its fallback within the lease's time to live."""
    service.lease = lease(ttl_s=0.8)
    agent = start_agent()
    wait_until(lambda: (gpus.caps_w == 500).all())
    service.stop()
    sent_at_s = time.monotonic()
    wait_until(lambda: (gpus.caps_w == 400).all())
    assert time.monotonic() - sent_at_s < 0.8 + 0.1
    assert agent.process.poll() is None


def test_the_agent_finds_the_service_again(gpus, service, start_agent, wait_until):
    """After an outage longer than the lease the same command is taken again, with nothing restarted."""
    service.lease = lease(ttl_s=0.4)
    agent = start_agent()
    wait_until(lambda: (gpus.caps_w == 500).all())
    service.stop()
    wait_until(lambda: (gpus.caps_w == 400).all())
    gpus.raise_xid(2, 48)
    service.start()
    wait_until(lambda: (gpus.caps_w == 500).all())
    assert "does not answer" in agent.log and agent.log.count("does not answer") <= 3
    assert any(48 in body["xid"] for body in service.received)


def test_a_fallback_never_raises_a_cap(gpus, service, start_agent, wait_until):
    """A cap that is lower than the fallback stays where it is when the lease expires."""
    service.lease = lease(ttl_s=0.4, cap_w=2400)
    start_agent()
    wait_until(lambda: (gpus.caps_w == 300).all())
    service.stop()
    for _ in range(60):
        assert (gpus.caps_w == 300).all()
        time.sleep(0.01)


def test_a_killed_agent_leaves_its_fallback(gpus, obeying, wait_until):
    """After SIGKILL the guardian has every cap at the fallback within half a second, and goes."""
    guardian = obeying.guardian_pid
    obeying.signal(signal.SIGKILL)
    assert wait_until(lambda: (gpus.caps_w == 400).all()) < 0.5
    wait_until(lambda: not os.path.exists(f"/proc/{guardian}"))


def test_a_stopped_agent_is_noticed_at_the_hang_limit(gpus, obeying, wait_until):
    """After SIGSTOP the guardian acts at the hang limit, live lease or not; SIGCONT brings the cap back."""
    obeying.signal(signal.SIGSTOP)
    took_s = wait_until(lambda: (gpus.caps_w == 400).all())
    assert 0.3 < took_s < 0.9
    obeying.signal(signal.SIGCONT)
    wait_until(lambda: (gpus.caps_w == 500).all())


def test_a_write_after_the_fall_is_taken_back(gpus, service, start_agent, wait_until):
    """A cap raised behind a fallen guardian's back, as by an agent stopped mid-write, is lowered again."""
    service.lease = lease(ttl_s=0.6)
    agent = start_agent()
    wait_until(lambda: (gpus.caps_w == 500).all())
    agent.signal(signal.SIGSTOP)
    wait_until(lambda: (gpus.caps_w == 400).all())
    gpus.table["cap_w"] = 700
    assert wait_until(lambda: (gpus.caps_w == 400).all()) < 0.4


def test_a_stop_leaves_the_fallback(gpus, obeying):
    """SIGTERM ends the agent with every cap at min(cap, fallback)."""
    obeying.signal(signal.SIGTERM)
    assert obeying.wait() == 0
    assert (gpus.caps_w == 400).all() and "stopped at the fallback" in obeying.log


def test_an_agent_without_its_guardian_stops(gpus, obeying, wait_until):
    """When the guardian dies the agent goes to the fallback and ends, so that a supervisor restarts both."""
    os.kill(obeying.guardian_pid, signal.SIGKILL)
    assert obeying.wait() != 0
    assert (gpus.caps_w == 400).all() and "WatchdogGone" in obeying.log


def test_old_epochs_are_refused(gpus, service, start_agent, wait_until):
    """A lease of a service that was replaced is not obeyed, and the log says which epoch the node holds."""
    service.lease = lease(epoch=5)
    agent = start_agent()
    wait_until(lambda: service.received and service.received[-1]["ack_epoch"] == 5)
    service.lease = lease(epoch=4, seq=99, cap_w=5600)
    wait_until(lambda: "OLD_EPOCH" in agent.log)
    assert (gpus.caps_w == 500).all() and service.received[-1]["ack_seq"] == 1


def test_a_wrong_token_ends_the_agent_with_the_fix(gpus, service, start_agent):
    """Refused at its first message, the agent says which setting is wrong, and has written nothing."""
    service.token = "another"
    agent = start_agent()
    assert agent.wait() == 1
    assert "AgentRefused" in agent.log and "FLYBALL_TOKEN" in agent.log and gpus.setter_calls == 0


def test_an_unknown_node_ends_the_agent_with_the_fix(service, start_agent):
    """A node that the site does not have is named, with --node as the fix."""
    service.status = 404
    agent = start_agent(node="n17")
    assert agent.wait() == 1 and "no node 'n17'" in agent.log and "--node" in agent.log


def test_a_refusal_later_on_is_waited_out(gpus, service, obeying, wait_until):
    """A service that comes back with another token file does not end agents that once were welcome."""
    service.status = 401
    seen = len(service.received)
    wait_until(lambda: len(service.received) > seen + 2)
    assert obeying.process.poll() is None and (gpus.caps_w == 500).all()
    service.status = 200
    seen = len(service.received)
    wait_until(lambda: len(service.received) > seen + 1)


def test_a_service_that_is_not_there_yet_is_waited_for(gpus, service, start_agent, wait_until):
    """The agent starts before the service and takes its first lease when it comes, with growing waits."""
    service.stop()
    agent = start_agent()
    wait_until(lambda: "does not answer" in agent.log)
    time.sleep(0.3)
    assert agent.log.count("does not answer") == 1 and gpus.setter_calls == 0
    service.start()
    wait_until(lambda: (gpus.caps_w == 500).all())


def test_failed_exchanges_are_spaced_out(service, start_agent, wait_until):
    """A failing service is asked less and less often."""
    service.status = 503
    start_agent()
    wait_until(lambda: len(service.received_at_s) >= 5)
    gaps = [b - a for a, b in zip(service.received_at_s, service.received_at_s[1:], strict=False)]
    assert gaps[3] > 1.5 * gaps[0] and gaps[3] < 1.2


def test_a_dry_run_calls_no_setter(gpus, service, start_agent, wait_until):
    """Through leases, clock ceilings, expiry and stop, a dry run writes nothing and acknowledges nothing."""
    service.lease = lease(ttl_s=0.3)
    service.reply = {"clock_frac": 0.5}
    agent = start_agent(is_dry_run=True)
    wait_until(lambda: len(service.received) > 3)
    assert all(b["dry_run"] and b["ack_seq"] == 0 and b["fallback_w"] == -1 for b in service.received)
    service.stop()
    time.sleep(0.5)
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 0
    assert gpus.setter_calls == 0 and (gpus.caps_w == 700).all()


def test_without_a_lease_nothing_is_written(gpus, service, start_agent, wait_until):
    """A service that commands nothing gets telemetry, and caps stay as they were."""
    service.lease = None
    start_agent()
    wait_until(lambda: len(service.received) > 3)
    assert gpus.setter_calls == 0 and service.received[-1]["cap_w"] == 5600


def test_orphaned_caps_are_taken_over_at_start(gpus, service, obeying, start_agent, wait_until):
    """Caps that an agent left behind, its guardian killed with it, go to the fallback before any lease."""
    guardian = obeying.guardian_pid
    os.kill(guardian, signal.SIGSTOP)
    obeying.signal(signal.SIGKILL)
    obeying.wait()
    os.kill(guardian, signal.SIGKILL)
    assert (gpus.caps_w == 500).all()
    service.lease = None
    seen = len(service.received)
    start_agent()
    wait_until(lambda: len(service.received) > seen)
    assert (gpus.caps_w == 400).all()
    assert service.received[-1]["fallback_w"] == 3200 and service.received[-1]["ack_seq"] == 0


def test_after_a_reboot_nothing_is_taken_over(gpus, service, obeying, start_agent, wait_until):
    """Another boot id: caps are the driver's default, reported as such, and the epoch is still remembered."""
    obeying.signal(signal.SIGTERM)
    obeying.wait()
    gpus.reboot()
    service.lease = lease(epoch=0, cap_w=5600)
    seen = len(service.received)
    agent = start_agent(boot_id="another-boot")
    wait_until(lambda: len(service.received) > seen)
    body = service.received[seen]
    assert body["cap_w"] == 5600 and body["fallback_w"] == -1 and body["boot_id"] == "another-boot"
    wait_until(lambda: "OLD_EPOCH" in agent.log)


def test_a_lost_gpu_is_reported_and_the_others_stay_capped(gpus, service, obeying, wait_until):
    """XID 79: the code travels up, the lost GPU counts at its maximum, the others share the rest."""
    gpus.raise_xid(3, 79, is_lost=True)
    wait_until(lambda: any(79 in b["xid"] for b in service.received))
    body = next(b for b in service.received if 79 in b["xid"])
    uuid = gpus.table["uuid"][3].decode()
    assert body["xid_gpus"][body["xid"].index(79)] == uuid
    seen = len(service.received)
    wait_until(lambda: len(service.received) > seen + 2)
    assert service.received[-1]["lost"] == [uuid] and service.received[-1]["xid"] == [79]
    alive = [i for i in range(8) if i != 3]
    assert gpus.caps_w[alive].sum() == 3300 and service.received[-1]["cap_w"] == 4000


def test_an_ignored_write_is_not_acknowledged(gpus, service, obeying, wait_until):
    """A lower cap that the hardware does not take is reported as the cap in force, and not acknowledged."""
    gpus.table["is_write_ignored"][5] = 1
    service.lease = lease(seq=2, cap_w=3200)
    wait_until(lambda: service.received[-1]["cap_w"] == 7 * 400 + 500)
    assert service.received[-1]["ack_seq"] == 1 and "still reports 500 W" in service.received[-1]["problems"][0]
    gpus.table["is_write_ignored"][5] = 0
    wait_until(lambda: service.received[-1]["ack_seq"] == 2)
    assert service.received[-1]["problems"] == []


def test_without_permission_the_agent_reports_and_does_not_acknowledge(gpus, service, start_agent, wait_until):
    """An agent that may not write keeps telling the truth and says how to be allowed."""
    gpus.table["is_forbidden"] = 1
    start_agent()
    wait_until(lambda: service.received and service.received[-1]["problems"])
    body = service.received[-1]
    assert body["ack_seq"] == 0 and body["cap_w"] == 5600 and "root" in body["problems"][0]


def test_a_foreign_limit_is_reported_and_not_fought(gpus, service, obeying, wait_until):
    """A tighter out-of-band limit shows up as a problem, and no further write follows from it."""
    before = gpus.setter_calls
    gpus.table["out_of_band_w"][0] = 300
    wait_until(lambda: service.received[-1]["problems"])
    time.sleep(0.3)
    assert "300 W by something else" in service.received[-1]["problems"][0] and gpus.setter_calls == before


def test_a_cap_that_was_lost_is_set_again(gpus, obeying, wait_until):
    """A driver that forgets its caps gets them back at the next tick."""
    gpus.table["cap_w"][4] = 700
    assert wait_until(lambda: (gpus.caps_w == 500).all()) < 0.5


def test_a_local_maximum_holds_against_the_lease(gpus, service, start_agent, wait_until):
    """The node's owner may allow less than the service grants; that is still an acknowledgement."""
    start_agent(local_max_w=2400)
    wait_until(lambda: service.received and service.received[-1]["ack_seq"] == 1)
    assert (gpus.caps_w == 300).all() and service.received[-1]["cap_w"] == 2400


def test_clock_ceilings_follow_the_reply_and_end_with_the_agent(gpus, service, start_agent, wait_until):
    """A ceiling locks the clocks; a stop unlocks them, because the watt cap alone carries the guarantee."""
    service.reply = {"clock_frac": 0.5}
    agent = start_agent()
    wait_until(lambda: (gpus.table["locked_clock_mhz"] == 990).all())
    agent.signal(signal.SIGTERM)
    agent.wait()
    assert (gpus.table["locked_clock_mhz"] == 0).all()


def test_a_service_that_never_answers_costs_no_heartbeat(gpus, service, start_agent, wait_until):
    """While an exchange hangs the guardian does not take the agent for hung; the lease decides."""
    service.lease = lease(ttl_s=1.2)
    start_agent(timeout_s=1.0)
    wait_until(lambda: (gpus.caps_w == 500).all())
    service.server.RequestHandlerClass.do_POST = lambda handler: time.sleep(5.0)
    end_s = time.monotonic() + 0.9
    while time.monotonic() < end_s:
        assert (gpus.caps_w == 500).all()
        time.sleep(0.01)
    wait_until(lambda: (gpus.caps_w == 400).all())


def test_a_second_agent_for_a_node_is_refused(obeying, start_agent):
    """Two agents never write the same GPUs' caps."""
    second = start_agent()
    assert second.wait() == 1 and "another agent already runs" in second.log


@pytest.mark.parametrize("change", [{"nvml": "fake"}, {"node": ""}, {"tick_s": 0.0}, {"local_max_w": -1}])
def test_settings_that_make_no_sense_are_refused(change):
    """Each wrong setting is bad input."""
    with pytest.raises(BadInput):
        AgentConfig(**{"server": "http://x", "node": "n", **change}).check()


def test_an_agent_loads_nothing_heavy():
    """Agents run beside paying work: neither NumPy nor anything of the service or of learning is loaded."""
    script = "import sys, flyball.actuators.agent, flyball.actuators.emulator.load; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"numpy", "numba", "torch", "fastapi", "pydantic", "httpx", "click", "asyncio", "flyball.envs"}
    assert heavy.isdisjoint(done.stdout.split())


def test_several_agents_run_side_by_side(tmp_path, service, start_agent, wait_until):
    """Agents of different nodes do not disturb one another."""
    nodes = [EmulatedGpus.create(tmp_path / f"n{i}.bin", ["H100-SXM"] * 8, f"n{i}") for i in range(3)]
    for i, node in enumerate(nodes):
        start_agent(node=f"n{i}", nvml_state=str(node.path))
    wait_until(lambda: all((node.caps_w == 500).all() for node in nodes))
    assert len({u for node in nodes for u in node.table["uuid"].tolist()}) == 24


def test_an_xid_is_reported_until_it_was_heard_and_then_no_more(gpus, service, obeying, wait_until):
    """A code raised while the service fails is in the first message that is answered, and not repeated."""
    service.status = 503
    seen = len(service.received)
    wait_until(lambda: len(service.received) > seen)
    gpus.raise_xid(1, 48)
    wait_until(lambda: sum(48 in b["xid"] for b in service.received) >= 2)
    service.status = 200
    wait_until(lambda: not service.received[-1]["xid"])
    assert service.received[-1]["lost"] == []


def test_a_node_that_leaves_gets_its_caps_back(gpus, obeying, nvml_script, tmp_path):
    """Asked by a person, and only without a running agent, the caps found at first are restored."""
    restore = f"""
from pathlib import Path
from flyball.actuators.agent import AgentConfig, restore_caps
from flyball.fleet.errors import BadInput
try:
    out = restore_caps(AgentConfig("http://x", "n0", "emulated", state_dir=Path({str(tmp_path / "state")!r})))
except BadInput as error:
    out = str(error)
"""
    assert "another agent already runs" in nvml_script(restore)
    obeying.signal(signal.SIGTERM)
    obeying.wait()
    assert (gpus.caps_w == 400).all()
    assert set(nvml_script(restore).values()) == {700} and (gpus.caps_w == 700).all()
    assert nvml_script(restore) == {}


def test_a_lease_that_parks_parks_at_its_deadline(gpus, service, start_agent, wait_until, tmp_path):
    """When the service dies, caps go to their lowest and whoever runs the stages is told to unload."""
    command = tmp_path / "command.json"
    service.lease = lease(ttl_s=0.6, fallback_w=0)
    start_agent(command_file=str(command))
    wait_until(lambda: (gpus.caps_w == 500).all() and command.exists())
    assert json.loads(command.read_text())["stage"] != 2
    service.stop()
    wait_until(lambda: (gpus.caps_w == 200).all())
    wait_until(lambda: json.loads(command.read_text())["stage"] == 2)


def test_the_guardian_parks_only_when_the_lease_has_expired(gpus, service, start_agent, wait_until, tmp_path):
    """A killed agent's caps fall at once; the model stays until the deadline, as a restarted agent may serve it on."""
    command = tmp_path / "command.json"
    service.lease = lease(ttl_s=1.5, fallback_w=0)
    agent = start_agent(command_file=str(command))
    wait_until(lambda: (gpus.caps_w == 500).all() and command.exists())
    agent.signal(signal.SIGKILL)
    wait_until(lambda: (gpus.caps_w == 200).all())
    assert json.loads(command.read_text())["stage"] != 2
    wait_until(lambda: json.loads(command.read_text())["stage"] == 2)
