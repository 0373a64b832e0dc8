"""Shadow reports: both sides of a recorded run, what a change would be worth, and what cannot be said."""

import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from flyball import registry
from flyball.actuators.emulator.state import EmulatedGpus
from flyball.envs.core import Core
from flyball.envs.episodes import run_episodes
from flyball.envs.load import LoadSpec
from flyball.envs.scenario import BudgetEvent, load_scenario
from flyball.experiments.incumbent import CapTable, command, run_beside, shortened, write_caps
from flyball.experiments.shadow.demo import make_shadow_demo
from flyball.experiments.shadow.log import read_shadow, recorded_fleet
from flyball.experiments.shadow.page import render
from flyball.experiments.shadow.report import shadow_report
from flyball.experiments.shadow.side import Recorded
from flyball.fleet.errors import BadInput
from flyball.fleet.site_file import load_site
from flyball.serving.engine import Engine, policy_record, site_record
from flyball.serving.store import Store

START_S = 1_700_000_000.0
WINDOWS = 6


def ample_site():
    """demo-16 on feeds that carry every node at its largest cap."""
    fleet = load_site("demo-16")
    return replace(fleet, domains=tuple(replace(d, peak_w=3 * d.peak_w) for d in fleet.domains))


def scenario_on(fleet, seconds=300.0, events=(), util=0.5):
    """A steady scenario on a site at hand."""
    load = LoadSpec(target_util=util)
    return Recorded("test", "steady", "", "", seconds, 60.0, load=load, events=events, recorded=fleet)


def at_most(plant, view):
    """An incumbent that caps nothing."""
    return plant.fleet.node_static["cap_max_w"]


def run(tmp_path, scenario, incumbent, policy="uniform", **settings):
    """A shadow run; the URL of its database."""
    url = f"sqlite:///{tmp_path}/shadow.db"
    # a baseline's own constants: what tuning finds next must not change what is tested here
    run_beside(scenario, registry.baseline(policy, scenario, {}), incumbent, url, seed=5, start_s=START_S, **settings)
    return url


def report_on(url, tmp_path, windows=WINDOWS, from_s=None, to_s=None):
    return shadow_report(url, tmp_path / "report.html", from_s, to_s, windows)


def kpi(report, name):
    return next(r for r in report["prediction"]["changes"] if r["kpi"] == name)


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory):
    """The shadow run beside an uncapped incumbent on a feed that is cut without notice, and its report."""
    folder = tmp_path_factory.mktemp("cut")
    events = (BudgetEvent(limit_frac=0.85, t_s=180.0),)
    url = run(folder, scenario_on(load_site("demo-16"), events=events, util=0.9), at_most, "greedy")
    return url, folder, report_on(url, folder)


# ── the same on both sides ──────────────────────────────────────────────────────────────────────────────
def test_equal_sides_predict_no_change(tmp_path):
    """Where the incumbent does what Flyball would do, nothing differs and the intervals hold zero."""
    report = report_on(run(tmp_path, scenario_on(ample_site()), at_most), tmp_path)
    assert report["disagreement"]["differs_frac"] == 0.0
    assert report["disagreement"]["nodes"] == report["disagreement"]["moments"] == []
    for name in ("goodput_tok_s_per_mw", "mean_power_w", "itl_p99_s", "slo_attainment_frac"):
        change = kpi(report, name)["change"]
        assert change["ci95"][0] - 1e-9 <= 0.0 <= change["ci95"][1] + 1e-9, name
        assert abs(change["mean"]) < 1e-6, name
    assert "do not clearly change" in report["verdict"]


def test_an_incumbent_that_follows_the_plan_is_told_apart_by_less_than_a_percent(tmp_path):
    """On a feed that binds, caps copied from Flyball a second later are worth what Flyball's are."""

    def follower(plant, view):
        return plant.node["cap_w"][0] if view is None else view.plan.node["cap_w"][0]

    report = report_on(run(tmp_path, scenario_on(load_site("demo-16"), util=0.8), follower), tmp_path)
    assert report["disagreement"]["differs_frac"] < 0.15  # caps that moved within the second
    assert abs(kpi(report, "goodput_tok_s_per_mw")["change"]["mean"]) < 0.01


# ── planted disagreements ───────────────────────────────────────────────────────────────────────────────
def test_a_planted_disagreement_is_found_and_explained(tmp_path):
    """One node held at its smallest cap for no reason is the one that the report names, with why Flyball would not."""
    fleet = ample_site()
    odd = fleet.node_index["rack2-node1"]

    def odd_one(plant, view):
        cap_w = at_most(plant, view).copy()
        cap_w[odd] = fleet.node_static["cap_min_w"][odd]
        return cap_w

    report = report_on(run(tmp_path, scenario_on(fleet), odd_one), tmp_path)
    seen = report["disagreement"]
    assert [n["node"] for n in seen["nodes"]] == ["rack2-node1"]
    node = seen["nodes"][0]
    assert (node["incumbent_w"], node["proposed_w"]) == (1600.0, 5600.0) and node["differs_frac"] == 1.0
    assert node["reason"] in ("GRANTED", "CAP_RANGE") and node["because"] in node["sentence"]
    assert seen["differs_frac"] == pytest.approx(1 / 16) and seen["lower_frac"] == 0.0
    racks = {d["domain"]: d["differs_frac"] for d in seen["by_domain"]}
    assert racks["rack-2"] == pytest.approx(1 / 4) and racks["rack-1"] == 0.0
    assert "rack2-node1" in (tmp_path / "report.html").read_text()


def test_an_incumbent_above_the_limit_is_said_to_be(cut_run):
    """Caps that could break a limit are counted as such, the limit is named, and the replay scores the violation."""
    _, _, report = cut_run
    root = report["disagreement"]["by_domain"][0]
    assert root["domain"] == "utility" and root["lowest_limit_w"] == int(0.85 * 108_800)
    assert root["incumbent_over_frac"] == 1.0 and root["proposed_over_frac"] == 0.0
    limits = [r for r in report["disagreement"]["by_reason"] if r["reason"] == "DOMAIN_LIMIT"]
    assert limits and "utility" in limits[0]["domains"] and limits[0]["lower_hours"] > limits[0]["higher_hours"]
    moments = report["disagreement"]["moments"]
    assert any(m["domain"] == "utility" and "utility" in m["sentence"] for m in moments)
    over = kpi(report, "budget_violation_ws")
    assert over["incumbent"]["mean"] > 10_000 and over["flyball"]["mean"] == 0.0
    assert over["change"]["ci95"][1] < 0 and "limits in force are exceeded" in report["verdict"]


# ── the prediction ──────────────────────────────────────────────────────────────────────────────────────
def test_the_prediction_holds_the_counterfactual(tmp_path):
    """Against the plant that really ran, whose parameters the report does not know, the predicted spread is right."""
    scenario = shortened(load_scenario("demo"), 480.0)
    table = CapTable.provision(scenario.fleet, 0.85)
    seed = 5
    url = run(tmp_path, scenario, lambda plant, view: table.caps_w(plant.fleet, plant.node["stage"][0]), "greedy")
    report = report_on(url, tmp_path, windows=16)
    policy = registry.baseline("greedy", scenario, {})
    core = Core(scenario, policy, block="test")
    core.reset([seed])
    for _ in range(core.plant.ticks):
        stage = core.plant.node["stage"]
        core.plant.tick_under(command(core.plant, table.caps_w(scenario.fleet, stage), stage))
    name = "goodput_tok_s_per_mw"
    truth = run_episodes(scenario, policy, [seed], block="test").kpis[0][name] / core.kpis()[name] - 1.0
    change = kpi(report, name)["change"]
    assert min(change["draws"]) <= truth <= max(change["draws"])
    assert change["range95"][0] <= change["ci95"][0] <= change["mean"] <= change["ci95"][1] <= change["range95"][1]
    assert report["check"]["trust"]["power_w"] == "close" and abs(report["check"]["power_w"]["error_frac"]) < 0.06


def test_a_report_is_the_same_twice(cut_run, tmp_path):
    """Draws are seeded: the same log gives the same numbers."""
    url, _, report = cut_run
    again = shadow_report(url, tmp_path / "again.html", None, None, WINDOWS)
    assert again["prediction"] == report["prediction"] and again["verdict"] == report["verdict"]


def test_the_recorded_policy_is_the_one_that_is_replayed(tmp_path):
    """A log holds a baseline's constants, so that later tuning does not change what it is said to have proposed."""
    scenario = scenario_on(load_site("demo-16"))
    policy = registry.baseline("static", scenario, {"prefill_watts": 1.37})
    assert policy_record(policy)["params"]["prefill_watts"] == 1.37
    url = f"sqlite:///{tmp_path}/shadow.db"
    run_beside(scenario, policy, at_most, url, start_s=START_S)
    assert report_on(url, tmp_path)["policy"]["params"]["prefill_watts"] == 1.37


# ── the data's quality ──────────────────────────────────────────────────────────────────────────────────
def test_missing_data_gaps_and_silent_nodes_are_reported(tmp_path):
    """What was not supplied is listed, with what cannot be judged for it; gaps are found and never carried over."""
    silent = 3

    def poor(tick, told):
        if 200 <= tick < 260:
            return None
        told.node["age_s"][0, silent] = 1.0  # never heard
        told.domain["meter_w"] = np.nan
        told.service["itl_s"] = np.nan
        return told

    url = run(tmp_path, scenario_on(load_site("demo-16"), 480.0), at_most, hears=poor)
    report = report_on(url, tmp_path)
    quality = report["quality"]
    assert quality["never_heard"] == [load_site("demo-16").nodes[silent].name]
    assert quality["gap_count"] == 1 and quality["gaps"][0]["seconds"] == pytest.approx(65.0)
    assert quality["coverage_frac"] < 0.9
    assert {"domain.meter_w", "service.itl_s"} <= set(quality["missing"])
    assert {c["feature"] for c in quality["cannot_judge"]} >= {"domain.meter_w", "service.itl_s"}
    assert report["check"]["power_source"] == "gpus"
    assert report["check"]["services"][0]["itl_s"] is None and report["check"]["trust"]["itl_s"] == "unknown"
    assert report["disagreement"]["by_domain"][0]["metered_over_ws"] is None
    assert report["prediction"]["stretches"] == 2
    html = (tmp_path / "report.html").read_text()
    assert "cannot be judged: whether the replay" in html and "Never heard: " in html and "no meter" in html


def test_a_clock_that_jumped_is_reported(tmp_path):
    """Rows out of order are counted and put in order; a time that was written twice counts once."""
    url = run(tmp_path, scenario_on(load_site("demo-16")), at_most)
    with closing(sqlite3.connect(tmp_path / "shadow.db")) as database:
        times = [row[0] for row in database.execute("select time_s from shadow_log order by id")]
        database.execute("update shadow_log set time_s = ? where time_s = ?", (times[19] - 2.0, times[20]))
        database.execute("update shadow_log set time_s = ? where time_s = ?", (times[39], times[40]))
        database.commit()
    report = report_on(url, tmp_path)
    quality = report["quality"]
    assert (quality["backwards"], quality["duplicates"]) == (1, 1) and quality["irregular_rows"] > 0
    assert quality["rows"] == len(times) - 1 and report["prediction"] is not None
    assert "The clock was irregular: 1 rows went back in time" in (tmp_path / "report.html").read_text()


def test_without_load_nothing_is_predicted(tmp_path):
    """No arrival rate, no numbers: the report says what is missing, and still compares caps."""

    def blind(tick, told):
        told.service["arrival_rps"] = np.nan
        return told

    report = report_on(run(tmp_path, scenario_on(load_site("demo-16")), at_most, hears=blind), tmp_path)
    assert report["prediction"] is None and report["check"] is None
    assert "arrival_rps" in report["not_predicted"] and report["disagreement"]["differs_frac"] > 0
    assert "cannot be predicted" in (tmp_path / "report.html").read_text()


def test_too_little_data_is_said_instead_of_numbers(tmp_path):
    """Half a minute of log gives a report without a comparison and without a prediction."""
    url = run(tmp_path, scenario_on(load_site("demo-16"), 41.0), at_most)
    report = report_on(url, tmp_path)
    assert report["disagreement"] is None and report["prediction"] is None
    assert "too little to compare" in report["verdict"]
    assert "Too little to compare" in (tmp_path / "report.html").read_text()


def test_a_policy_that_is_gone_leaves_the_comparison(cut_run, tmp_path, monkeypatch):
    """Where the policy of a log cannot be made, what it proposed is still shown."""
    url, _, _ = cut_run
    monkeypatch.setattr(registry, "BASELINES", ())
    monkeypatch.setattr(registry, "_classes", lambda: {})
    report = shadow_report(url, tmp_path / "report.html", None, None, WINDOWS)
    assert report["prediction"] is None and "no policy 'greedy'" in report["not_predicted"]
    assert report["disagreement"]["differs_frac"] > 0


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("from_s", "to_s", "message"),
    [
        (START_S + 1e6, None, "the shadow log goes from"),
        (None, START_S - 1.0, "the shadow log goes from"),
        (START_S + 100.0, START_S + 50.0, "exchange them"),
        (START_S + 100.5, START_S + 101.5, "no rows"),
    ],
)
def test_a_range_without_rows_is_refused(cut_run, tmp_path, from_s, to_s, message):
    """An empty or reversed range is bad input in one line that says where the log is."""
    with pytest.raises(BadInput, match=message) as refused:
        shadow_report(cut_run[0], tmp_path / "report.html", from_s, to_s)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_a_range_within_the_log_selects_its_rows(cut_run, tmp_path):
    """From is included, to is not."""
    report = shadow_report(cut_run[0], tmp_path / "report.html", START_S + 50.0, START_S + 100.0, WINDOWS)
    assert (report["range"]["from_s"], report["range"]["to_s"]) == (START_S + 50.0, START_S + 95.0)


def test_databases_without_a_shadow_log_are_refused(tmp_path):
    """An absent database and one of an enforcing service are told apart."""
    with pytest.raises(BadInput, match="no database"):
        report_on(f"sqlite:///{tmp_path}/absent.db", tmp_path)
    url = f"sqlite:///{tmp_path}/enforced.db"
    fleet = load_site("demo-16")
    store = Store(url)
    Engine(fleet, registry.baseline("uniform", scenario_on(fleet)), store)
    store.close()
    with pytest.raises(BadInput, match="has no shadow log"):
        report_on(url, tmp_path)


@pytest.mark.parametrize(("name", "windows", "message"), [("report.pdf", 8, "html"), ("report.html", 1, "at least 2")])
def test_what_cannot_be_written_or_counted_is_refused(cut_run, tmp_path, name, windows, message):
    """A wrong suffix and a single window are bad input."""
    with pytest.raises(BadInput, match=message):
        shadow_report(cut_run[0], tmp_path / name, None, None, windows)


# ── the files ───────────────────────────────────────────────────────────────────────────────────────────
def test_json_and_html_carry_the_same_numbers(cut_run):
    """The JSON file, the value returned and the data within the page are one; the page shows them."""
    _, folder, report = cut_run
    written = json.loads((folder / "report.json").read_text())
    html = (folder / "report.html").read_text()
    assert written == {k: v for k, v in report.items() if k not in ("report", "json")}
    embedded = re.search(r'<script type="application/json" id="shadow">(.*?)</script>', html, re.S)
    assert embedded is not None and json.loads(embedded[1]) == written
    change = kpi(report, "goodput_tok_s_per_mw")["change"]["mean"]
    assert f"{100 * change:+.1f} %".replace("-", "−") in html
    assert render(written) == html


def test_the_page_needs_nothing_else(cut_run):
    """No script but data, no style sheet, no picture and no font from anywhere."""
    html = (cut_run[1] / "report.html").read_text()
    body = html[: html.index('<script type="application/json"')]
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"', body)
    assert all(link.startswith("data:") for link in links)
    assert "<link" not in body and "@import" not in body and "<script" not in body


def test_names_from_the_site_cannot_become_markup(tmp_path):
    """Names are data: a node called like a tag is shown, not run."""
    fleet = ample_site()
    name = "</script><script>alert(1)</script>"
    fleet = replace(fleet, nodes=(replace(fleet.nodes[0], name=name), *fleet.nodes[1:]))
    scenario = scenario_on(fleet, 60.0)
    report = report_on(run(tmp_path, scenario, lambda plant, view: fleet.node_static["cap_min_w"]), tmp_path)
    assert any(n["node"] == name for n in report["disagreement"]["nodes"])
    assert "<script>alert" not in (tmp_path / "report.html").read_text()


def test_the_log_holds_its_site(cut_run):
    """The site is rebuilt from the log alone, to the same hash; a log of another version is refused."""
    fleet = load_site("demo-16")
    assert read_shadow(cut_run[0], None, None).fleet.hash == fleet.hash
    assert recorded_fleet(json.loads(json.dumps(site_record(fleet))), fleet.hash) == replace(fleet, source="")
    with pytest.raises(BadInput, match="another version"):
        recorded_fleet({}, fleet.hash)


# ── the incumbent ───────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("site", ["demo-16", "demo-16-two-services", "small-8"])
@pytest.mark.parametrize("limit_frac", [0.85, 1.0])
def test_a_provisioned_table_is_the_largest_that_fits(site, limit_frac):
    """Its caps and every declared bound fit the share of every limit; a watt more per GPU does not."""
    fleet = load_site(site)

    def fits(table):
        bound_w = table.caps_w(fleet, fleet.node_static["stage"]) + fleet.node_static["non_gpu_max_w"]
        return all(
            bound_w[d["node_start"] : d["node_end"]].sum() + d["unmanaged_w"] <= int(limit_frac * d["peak_w"])
            for d in fleet.domain_static
        )

    table = CapTable.provision(fleet, limit_frac)
    assert fits(table)
    top_w = int((fleet.node_static["cap_max_w"] / fleet.node_static["gpus"]).max())
    more = CapTable(int(1.2 * (table.decode_w + 1)), table.decode_w + 1)
    assert not fits(more) or table.decode_w == top_w


def test_a_table_that_cannot_fit_is_refused():
    """A limit below the smallest caps is bad input."""
    with pytest.raises(BadInput, match="smallest caps"):
        CapTable.provision(load_site("demo-16"), 0.3)


def test_caps_of_the_incumbent_reach_emulated_gpus_without_a_setter(tmp_path):
    """They are written from the hardware's side, within each GPU's range, and no NVML call is counted."""
    gpus = EmulatedGpus.create(tmp_path / "gpus.bin", ["H100-SXM"] * 8)
    write_caps(gpus, 8 * 397)
    assert (gpus.caps_w == 397).all() and gpus.setter_calls == 0
    write_caps(gpus, 0)
    assert (gpus.caps_w == gpus.table["cap_min_w"]).all()


def test_the_demo_reports_on_its_own_run(tmp_path):
    """One call makes a shadow run and its report; a second replaces it."""
    seen = []
    make_shadow_demo(tmp_path, 120)
    result = make_shadow_demo(tmp_path, 300, lambda label, share: seen.append(share))
    assert result["quality"]["starts"] == 1 and result["prediction"] is not None
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert (tmp_path / "shadow.html").exists() and (tmp_path / "shadow.json").exists()
    assert result["incumbent"]["fits_frac"] == 0.85
