"""The tick: restarts, order of messages, silence, orders, records."""

import time

import numpy as np
import pytest

from flyball.fleet.tables import NEVER_S
from flyball.serving.engine import Engine, NoPlan
from flyball.serving.store import Fenced, TickRecord
from flyball.serving.telemetry import NO_ACK, NodeReport, StaleSender, Telemetry


def test_no_cap_rises_before_its_node_has_resynchronised(make_site):
    """After a restart each node's cap stays at or below what it ran until it acknowledged the new epoch."""
    first = make_site()
    first.run(20)
    ran = first.agents.caps_w()
    first.clock.advance(3.0)
    second = make_site(clock=first.clock)
    assert second.engine.epoch == first.engine.epoch + 1
    second.agents.held, second.agents.stage = dict(first.agents.held), dict(first.agents.stage)
    second.agents.mute = {"rack1-node3"}
    resynchronised: set[str] = set()
    for _ in range(20):
        for name, answer in second.beat().items():
            lease = answer.get("lease")
            if lease is None:
                continue
            assert lease["epoch"] == second.engine.epoch
            assert name in resynchronised or lease["cap_w"] <= ran[name]
        rows = second.engine.telemetry.acknowledged()[0]
        resynchronised = {n.name for n, row in zip(second.fleet.nodes, rows, strict=True) if row["ack_seq"] != NO_ACK}
    assert resynchronised == {n.name for n in second.fleet.nodes} - {"rack1-node3"}
    assert second.agents.caps_w()["rack0-node0"] > 1600
    assert second.engine.view.node_possible_w[-1] == 5600 + 1500


def test_a_restart_knows_what_was_out(make_site):
    """Leases, acknowledgements, orders and budget events survive; the older service is fenced."""
    first = make_site()
    first.run(10)
    first.call("POST", "/v1/nodes/rack0-node0:drain", first.OPERATOR, json={"reason": "disk"})
    target = {"id": "cut", "domain": "feed", "limit_w": 45_000, "notice_s": 600}
    first.call("POST", "/v1/load-targets", first.OPERATOR, json=target)
    first.run(15)
    second = make_site(clock=first.clock)
    held = first.agents.held["rack1-node1"]
    restored = second.engine.restored["rack1-node1"]
    assert (restored.epoch, restored.cap_w, restored.fallback_w) == (1, held["cap_w"], held["fallback_w"])
    assert second.store.acknowledgements()["rack1-node1"].seq == held["seq"]
    assert second.engine.orders["rack0-node0"].reason == "disk"
    assert [e.id for e in second.engine.events] == ["cut"]
    with pytest.raises(Fenced):
        first.store.commit(first_record(first))
    first.engine.tick()
    with pytest.raises(NoPlan, match="epoch 2"):
        first.engine.fresh_view()


def first_record(site):
    """A further tick of a site's engine, as it would be written."""
    return TickRecord(site.engine.epoch, 10_000, site.clock.now_s(), False, b"")


def report(**more) -> NodeReport:
    """A report with the fields that matter to ordering."""
    return NodeReport(**({"boot_id": "a", "sent_at": 1.0, "power_w": 100.0} | more))


def test_duplicated_and_reordered_telemetry_is_dropped(fleet):
    """Only a report that was sent after the last one taken changes anything."""
    telemetry = Telemetry(fleet, 3)
    assert telemetry.report_node(0, report(sent_at=2.0, power_w=200.0), 50.0)
    assert not telemetry.report_node(0, report(sent_at=2.0, power_w=999.0), 51.0)
    assert not telemetry.report_node(0, report(sent_at=1.5, power_w=999.0), 52.0)
    assert telemetry.acknowledged()[0]["power_w"][0] == 200.0
    assert telemetry.dropped == 2


def test_a_reboot_starts_a_new_count_and_the_old_boot_is_refused(fleet):
    """A new boot may send earlier times, is silent for one snapshot, and outlives messages of the old one."""
    telemetry = Telemetry(fleet, 3)
    telemetry.report_node(0, report(sent_at=900.0, ack_epoch=3, ack_seq=7, cap_w=2000), 50.0)
    assert telemetry.report_node(0, report(boot_id="b", sent_at=5.0), 51.0)
    limits = [(d.peak_w, d.peak_w, NEVER_S) for d in fleet.domains]
    first = telemetry.snapshot(51.0, limits).node[0, 0]
    assert first["is_silent"] == 1 and first["ack_seq"] == NO_ACK and first["cap_w"] == -1
    assert telemetry.snapshot(51.5, limits).node["is_silent"][0, 0] == 0
    with pytest.raises(StaleSender, match="superseded"):
        telemetry.report_node(0, report(sent_at=901.0), 52.0)


def test_acknowledgements_of_another_epoch_do_not_count(fleet):
    """An older epoch's acknowledgement is none; a newer one means that we are the stale side."""
    telemetry = Telemetry(fleet, 3)
    telemetry.report_node(0, report(ack_epoch=2, ack_seq=40), 50.0)
    assert telemetry.acknowledged()[0]["ack_seq"][0] == NO_ACK
    with pytest.raises(StaleSender, match="newer service"):
        telemetry.report_node(0, report(sent_at=2.0, ack_epoch=4, ack_seq=1), 51.0)


def test_old_epochs_and_boots_get_409_over_http(site):
    """The status that agents read as "stop the service that was replaced"."""
    site.run(2)
    body = site.agents.body("rack0-node0") | {"ack_epoch": 99, "ack_seq": 1}
    answer = site.call("POST", "/v1/nodes/rack0-node0/telemetry", site.AGENT0, json=body)
    assert answer.status_code == 409 and "epoch 99" in answer.json()["error"]


def test_a_node_that_falls_silent_is_budgeted_at_its_maximum(site):
    """After a lease's ttl without telemetry the node counts as unknown, and the sum still fits."""
    site.run(15)
    site.agents.mute = {"rack0-node0"}
    site.run(10)
    view = site.engine.view
    assert view.heard.node["is_silent"][0, 0] == 1
    assert view.node_possible_w[0] == 5600 + 1500
    assert any("rack0-node0: fell silent" in note.text for note in site.engine.notes)
    site.agents.mute = set()
    site.run(12)
    assert (site.engine.view.domain_possible_w <= site.engine.view.in_force_w).all()


def test_the_store_failing_does_not_stop_a_cut(site, monkeypatch):
    """Plans are issued without a record, and readiness says so until the store works again."""
    site.run(10)
    before = site.agents.caps_w()["rack0-node0"]

    def broken(_record):
        raise OSError("disk full")

    monkeypatch.setattr(site.store, "commit", broken)
    site.call("POST", "/v1/load-targets", site.OPERATOR, json={"id": "c", "domain": "feed", "limit_w": 40_000})
    site.run(8)
    assert site.agents.caps_w()["rack0-node0"] < before
    assert any("store" in problem for problem in site.engine.problems())
    monkeypatch.undo()
    site.run(2)
    assert site.engine.problems() == []


def test_the_tick_runs_off_the_event_loop_and_survives_a_failure(site, monkeypatch):
    """A tick that raises is counted and the next one runs; stopping joins the thread."""
    monkeypatch.setattr(Engine, "_make_view", lambda *_: 1 / 0)
    site.engine.start()
    for _ in range(500):
        if site.engine.counters.failed_ticks:
            break
        time.sleep(0.02)
    site.engine.stop()
    assert site.engine.counters.failed_ticks >= 1
    assert site.engine.view is None


def test_caps_always_fit_the_limit_in_force_through_two_cuts(site):
    """Possible draw stays within the limit in force at every tick, with and without notice."""
    site.run(20)
    site.call(
        "POST",
        "/v1/load-targets",
        site.OPERATOR,
        json={"id": "a", "domain": "feed", "limit_frac": 0.85, "notice_s": 20},
    )
    for k in range(60):
        if k == 40:
            cut = {"id": "b", "domain": "feed", "limit_frac": 0.7}
            site.call("POST", "/v1/load-targets", site.OPERATOR, json=cut)
        site.beat()
        view = site.engine.view
        assert (view.domain_possible_w <= view.in_force_w).all()
    assert np.isclose(view.in_force_w[0], 35_000)


def test_a_tripped_breaker_waits_for_an_operator(make_site):
    """The service says that the breaker tripped, keeps it so, and closes it at the tick after the reset."""
    site = make_site()
    site.run(3)
    # the arbiter's own tests trip it by faults; here only what the service does about it
    site.engine._state.fleet["is_tripped"] = 1
    site.run(3)
    assert site.engine.view.plan.fleet["is_tripped"][0] == 1
    site.engine.reset_breaker("ada")
    site.run(1)
    assert site.engine.view.plan.fleet["is_tripped"][0] == 0
    assert any("reset by ada" in note.text for note in site.engine.notes)


def test_a_tripped_breaker_and_a_take_back_survive_a_restart(make_site):
    """Drains of the window, the open breaker and what a meter took back are there at the next start."""
    first = make_site()
    first.run(10)
    for k in range(4):
        first.agents.xid[f"rack0-node{k}"] = [79]
    over_w = 1.05 * first.engine.view.in_force_w[0]
    first.call(
        "POST", "/v1/domains/feed/telemetry", first.PROXY, json={"meter_w": over_w, "sent_at": first.clock.now_s()}
    )
    first.engine._state.fleet["is_tripped"] = 1
    first.engine._state.node["cordoned_at_s"][0, 3] = first.engine._state.node["drained_at_s"][0, 3] = (
        first.clock.now_s()
    )
    first.run(2)
    kept = first.engine.view.state
    assert kept.domain["excursion_w"][0, 0] > 0 and kept.domain["breach"][0, 0] > 0
    second = make_site(clock=first.clock)
    for state in (second.engine._state,):
        assert state.fleet["is_tripped"][0] == 1
        assert state.domain["excursion_w"][0, 0] == kept.domain["excursion_w"][0, 0]
        assert state.domain["breach"][0, 0] == kept.domain["breach"][0, 0]
        assert (state.node["cordoned_at_s"] == kept.node["cordoned_at_s"]).all()
    second.run(1)
    assert second.engine.view.plan.fleet["is_tripped"][0] == 1
    second.engine.reset_breaker("ada")
    second.run(1)
    third = make_site(clock=second.clock)
    assert third.engine._state.fleet["is_tripped"][0] == 0


def test_a_lease_dies_a_ttl_after_its_plan_however_late_it_was_handed_out(site):
    """A service whose tick hangs keeps no cap up for longer than one that died at its last tick."""
    site.run(5)
    ttl_s = site.fleet.timing.lease_ttl_s
    planned_s = site.engine.view.time_s
    site.clock.advance(1.5)
    body = {"nodes": [site.agents.body("rack0-node0")]}
    sent_s = site.clock.now_s()
    lease = site.call("POST", "/v1/telemetry", site.PROXY, json=body).json()["nodes"]["rack0-node0"]["lease"]
    assert sent_s + lease["ttl_s"] == pytest.approx(planned_s + ttl_s)
