"""The live loop, shortened: a lost GPU, two cuts, a killed service and its return, on real agents."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flyball.experiments.emulation.run import fresh_folder
from flyball.experiments.emulation.second import DRAINED, FALLEN, LEASED
from flyball.experiments.live.charts import live_charts
from flyball.experiments.live.result import LiveResult
from flyball.experiments.live.run import run_live
from flyball.experiments.live.script import QUICK
from flyball.fleet.errors import BadInput

SITE = Path(__file__).with_name("live_site.toml")

SCRIPT = replace(
    QUICK,
    seconds=27.0,
    xid_at_s=1.5,
    first_cut_s=6.0,
    notice_s=4.0,
    second_cut_s=8.0,
    restart_s=15.0,
    lift_s=22.5,
    first_frac=0.9,
    second_frac=0.8,
    settle_s=1.0,
    site=str(SITE),
    scenario="steady",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[LiveResult, Path]:
    out = tmp_path_factory.mktemp("live")
    shares: list[float] = []
    result = run_live(out, "best-baseline", lambda label, share: shares.append(share), script=SCRIPT)
    assert shares == sorted(shares) and shares[-1] == 1.0
    return result, out


@pytest.fixture(scope="module")
def result(run) -> LiveResult:
    return run[0]


def event(result: LiveResult, word: str):
    """The event whose text has a word."""
    return next(e for e in result.events if word in e.text)


def test_what_the_caps_allow_stays_below_the_limit_in_force(result):
    """At every look, through a fault, two cuts, a kill and a restart, caps in force and bounds fit the limit."""
    s = result.series
    assert len(s["t_s"]) == SCRIPT.seconds
    assert (s["bound_w"] <= s["in_force_w"]).all() and (s["power_w"] <= s["in_force_w"]).all()
    assert result.kpis["caps_margin_w"] >= 0
    assert result.kpis["budget_violation_ws"] == 0
    assert result.kpis["power_violation_ws"] == result.kpis["caps_violation_ws"] == 0


def test_overshoot_lies_within_the_declared_grace(result):
    """Above the demanded limit only after the un-noticed cut, and no longer than its grace."""
    k, s = result.kpis, result.series
    assert k["overshoot_s"] <= result.grace_s and k["overshoot_ws"] <= k["overshoot_allowed_ws"]
    is_over = s["bound_w"] > s["demanded_w"]
    assert not is_over[(s["t_s"] <= SCRIPT.second_cut_s) | (s["t_s"] > SCRIPT.second_cut_s + result.grace_s)].any()


def test_an_xid_ends_in_cordon_and_drain_of_its_node(result):
    """XID 79 travels from the driver through the agent to the plan and back as a drain, within seconds."""
    assert result.kpis["cordon_s"] <= 5.0
    broken = event(result, "is cordoned and drained")
    node = next(i for i, name in enumerate(result.nodes) if broken.text.startswith(name))
    drained = result.series["status"][result.series["t_s"] > broken.t_s + 1] == DRAINED
    assert drained[:2, node].all() and drained.sum(0).argmax() == node
    assert not np.delete(drained, node, 1).any()
    assert "drained" in result.explanations[0] and result.nodes[node] in result.explanations[0]


def test_every_node_falls_back_when_the_service_is_killed(result):
    """Killed during the second cut, before its grace is over: all are at their fallback within ttl + 1 s."""
    k = result.kpis
    assert 0 < k["kill_s"] < result.grace_s
    assert k["fallback_s"] <= result.lease_ttl_s + 1.0
    s = result.series
    dark = (s["t_s"] > event(result, "at its fallback").t_s) & (s["t_s"] < event(result, "listens again").t_s)
    assert dark.any() and (s["status"][dark] == FALLEN).all()
    assert (s["bound_w"][dark] <= SCRIPT.second_frac * result.nominal_w).all()


def test_no_cap_rises_before_its_node_has_resynchronised(result):
    """The restarted service has a higher epoch; caps rise again, and only under leases of it."""
    k, s = result.kpis, result.series
    assert k["epoch_after"] > k["epoch_before"] and k["rises_before_resync"] == 0
    assert event(result, "first cap rises").t_s >= event(result, "listens again").t_s
    assert (s["epoch"][-1] == k["epoch_after"]).all() and set(s["status"][-1]) <= {LEASED, DRAINED}
    assert s["cap_w"][-1].sum() > s["cap_w"][s["t_s"] < event(result, "listens again").t_s][-1].sum()


def test_any_moment_of_the_run_is_explained_with_its_limit(result):
    """One sentence each for the drained node, the cut, the time without a service and the end."""
    assert len(result.explanations) == 4
    assert all("feed" in sentence and " W" in sentence for sentence in result.explanations)
    assert "without a service" in result.explanations[2] and "fallback" in result.explanations[2]


def test_a_result_survives_json_and_is_drawn(result):
    """What is saved with the demo draws the same charts later."""
    content = json.loads(json.dumps(result.to_dict()))
    again = LiveResult.from_dict(content)
    assert again.events == result.events and (again.series["cap_w"] == result.series["cap_w"]).all()
    charts = live_charts(again)
    assert len(charts) == 3 and all(drawn.startswith("<svg") and caption for _, caption, drawn in charts)
    assert {"scenario", "policy", "load", "load_scale", "seed", "kpis"} <= set(result.summary())


def test_a_second_run_does_not_take_up_the_first(run):
    """Leases, caps and the audit of an earlier run go; tokens and what is not ours stay."""
    _, out = run
    (out / "mine.txt").write_text("kept")
    fresh_folder(out)
    assert not (out / "flyball.db").exists() and not list((out / "state").iterdir())
    assert (out / "mine.txt").exists() and (out / "flyball-tokens.toml").exists()
    with pytest.raises(BadInput, match="choose another --out"):
        fresh_folder(out / "mine.txt" / "below")
