"""The command line as a new user meets it."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from flyball.cli import main


def call(*args):
    """Run a command in this process; returns (exit code, stdout, stderr)."""
    result = CliRunner().invoke(main, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_module_runs_as_a_program():
    """`python -m flyball --help` is the command line too."""
    out = subprocess.run([sys.executable, "-m", "flyball", "--help"], capture_output=True, text=True, check=True)
    assert "flyball demo" in out.stdout


@pytest.mark.parametrize(
    "verb",
    ["demo", "scenarios", "simulate", "evaluate", "tune", "train", "sweep", "export", "plan", "bench", "leaderboard"],
)
def test_every_verb_explains_itself(verb):
    """Each verb has help with its options."""
    code, out, _ = call(verb, "--help")
    assert code == 0 and "Usage:" in out


def test_simulate_prints_the_contract():
    """`simulate --json` prints one object with the fields and KPI names that outside checks read."""
    code, out, err = call("simulate", "bursty", "--policy", "greedy", "--seconds", "180", "--seed", "3", "--json")
    assert code == 0 and err == ""
    result = json.loads(out)
    assert set(result) == {"scenario", "policy", "load", "load_scale", "seed", "kpis"}
    for kpi in (
        "goodput_tok_s_per_mw", "slo_attainment_frac", "ttft_p50_s", "ttft_p99_s", "itl_p99_s", "tokens_per_joule",
        "energy_j", "budget_violation_ws", "overshoot_ws", "breaker_trips", "cap_changes_per_node_hour",
        "interventions", "requests", "lost_requests", "jobs_completed", "queue_wait_p95_s", "fairness_jain",
        "drained_nodes", "mttr_s",
    ):  # fmt: skip
        assert kpi in result["kpis"]
    assert result["kpis"]["budget_violation_ws"] == 0.0


@pytest.mark.parametrize(("given", "meant"), [("1e3", 1000), ("2.5e3", 2500), ("400", 400)])
def test_soak_takes_whole_numbers_in_float_notation(given, meant, monkeypatch):
    """`--node-settlements 1e7` is a whole number."""
    asked = []
    monkeypatch.setattr("flyball.commands._bench", lambda name, as_json, **options: asked.append(options))
    assert call("bench", "soak", "--node-settlements", given)[0] == 0
    assert asked == [{"node_settlements": meant, "seed": 0}]


@pytest.mark.parametrize("given", ["1.5", "inf", "nan", "1e999", "many"])
def test_soak_refuses_what_is_no_whole_number(given):
    """Fractions, infinities and words get one line that says how to write it, and exit code 2."""
    code, _, err = call("bench", "soak", "--node-settlements", given)
    assert code == 2 and "whole number" in err


def test_simulate_repeats_by_seed():
    """The same command gives the same numbers."""
    args = ("simulate", "faults", "--policy", "random", "--seconds", "120", "--json")
    assert call(*args)[1] == call(*args)[1]
    assert call(*args, "--seed", "1")[1] != call(*args)[1]


def test_evaluate_prints_the_contract(tmp_path):
    """`evaluate --json` prints rows with means, intervals, worst windows and paired differences, and resumes."""
    args = ("evaluate", "--scenario", "steady", "--policy", "static", "--seeds", "3", "--out", str(tmp_path))
    args = (*args, "--set", "seconds=180", "--json")
    code, out, _ = call(*args)
    result = json.loads(out)
    assert code == 0 and {row["policy"] for row in result["rows"]} >= {"static"}
    row = result["rows"][0]
    assert set(row["kpis"]["goodput_tok_s_per_mw"]) == {"mean", "ci95", "worst"}
    assert set(row["vs_best_baseline"]) == {"baseline", "diff", "ci95"}
    assert "recovered_headroom" in row
    assert list((tmp_path / "windows").glob("*.json"))
    assert json.loads(call(*args)[1]) == result


def test_evaluate_takes_several_scenarios_after_one_flag():
    """`--scenario a b` compares on both."""
    args = ("evaluate", "--scenario", "steady", "bursty", "--policy", "static", "--seeds", "1", "--set", "seconds=120")
    rows = json.loads(call(*args, "--json")[1])["rows"]
    assert {row["scenario"] for row in rows} == {"steady", "bursty"}


def test_a_rate_table_is_a_load(tmp_path):
    """A rate table drives a simulation, and its factor is printed."""
    table = tmp_path / "rates.csv"
    table.write_text("t_s,rate_rps\n0,5\n300,9\n600,4\n900,5\n")
    code, out, _ = call("simulate", "steady", "--policy", "static", "--load", str(table), "--seconds", "120", "--json")
    result = json.loads(out)
    assert code == 0 and result["load_scale"] > 1 and "rates.csv" in result["load"]


BAD_LOADS = {
    "empty.csv": b"",
    "malformed.csv": b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,x\n",
    "unsorted.csv": b"t_s,rate_rps\n10,5\n0,5\n",
    "negative.jsonl": b'{"timestamp": -5, "input_length": 10, "output_length": 5}\n',
    "junk.bin": bytes(range(256)),
}


@pytest.mark.parametrize("name", sorted(BAD_LOADS))
def test_bad_load_files_are_refused_in_one_line(tmp_path, name):
    """Empty, malformed, unsorted, negative and binary files: exit 2 and one line with the file's name."""
    path = tmp_path / name
    path.write_bytes(BAD_LOADS[name])
    code, out, err = call("simulate", "steady", "--load", str(path), "--json")
    assert code == 2 and out == ""
    assert len(err.strip().splitlines()) == 1 and name in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("simulate", "nope"), "no scenario"),
        (("simulate", "steady", "--policy", "nope"), "no policy"),
        (("simulate", "steady", "--policy", "missing.onnx"), "missing.onnx"),
        (("simulate", "steady", "--set", "load.nope=1"), "nope"),
        (("simulate", "steady", "--set", "events=[{limit_frac=0.1, t_s=5}]"), "parked"),
        (("simulate", "steady", "--seconds", "-5"), "seconds"),
        (("evaluate", "--suite", "nope"), "no suite"),
        (("evaluate", "--suite", "smoke", "--scenario", "steady"), "not both"),
        (("evaluate", "--suite", "smoke", "--seeds", "0"), "at least 1"),
        (("tune", "nope", "steady"), "no baseline"),
        (("tune", "static", "steady", "--cpu-seconds", "0"), "above 0"),
        (("train", "steady", "--minutes", "1", "--steps", "5"), "not both"),
        (("export", "nowhere", "--out", "x.onnx"), "no such run"),
    ],
)
def test_mistakes_are_said_in_one_line(args, says):
    """What a user can mend: exit 2, nothing on stdout, one line that says what to change."""
    code, out, err = call(*args)
    assert code == 2 and out == ""
    assert says in err and len(err.strip().splitlines()) == 1


def test_a_site_with_a_cycle_is_refused(tmp_path):
    """A power tree that bites its tail is named in one line."""
    site = tmp_path / "site.toml"
    site.write_text(
        'name = "x"\n[[service]]\nname = "a"\nmodel = "llama-70b-bf16"\n'
        '[[domain]]\nname = "p"\nparent = "q"\npeak_w = 99999\n[[domain]]\nname = "q"\nparent = "p"\npeak_w = 99999\n'
        '[[nodes]]\nprefix = "n"\ncount = 2\ndomain = "p"\nsku = "H100-SXM"\ngpus = 8\nnon_gpu_max_w = 2800\n'
        'service = "a"\nprefill = 1\n'
    )
    code, _, err = call("simulate", "steady", "--set", f"site={site}")
    assert code == 2 and "cycle" in err and len(err.strip().splitlines()) == 1


def test_tune_prints_constants_and_both_scores():
    """`tune --json` prints the constants, their validation score and that of the defaults."""
    code, out, _ = call("tune", "static", "small", "--cpu-seconds", "0.2", "--json")
    result = json.loads(out)
    assert code == 0 and result["score"] >= result["default_score"] * 0.999 and result["candidates"] >= 1
