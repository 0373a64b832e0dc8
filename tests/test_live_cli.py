"""The live verbs from the command line: one object on stdout, one line and exit code 2 for what a user can mend."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from flyball import registry
from flyball.cli import main
from flyball.experiments.processes import ServiceProcess
from flyball.experiments.site_scenario import site_scenario
from flyball.fleet.errors import BadInput
from flyball.serving.auth import read_secrets

SITE = Path(__file__).parent / "experiments" / "live_site.toml"


def refusal(*arguments: str) -> str:
    """The one line that a bad command line gets."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert result.stdout == "" and len(lines) == 1 and lines[0].startswith("error: "), result.output
    return lines[0]


def flyball(*arguments: str, env: dict[str, str] | None = None, timeout_s: float = 60.0):
    """One run of the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "flyball", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **(env or {})},
    )


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service on the test's site."""
    service = ServiceProcess(str(SITE), tmp_path_factory.mktemp("serve"), mode="advise")
    service.start()
    yield service
    service.stop()


def test_help_lists_the_live_verbs():
    """Every verb of the contract is there and answers --help."""
    for verb in ("serve", "agent", "emulate", "explain", "shadow"):
        result = CliRunner().invoke(main, [verb, "--help"])
        assert result.exit_code == 0
        assert "--json" in result.output or verb == "shadow"
    options = CliRunner().invoke(main, ["shadow", "report", "--help"]).output
    assert "--from" in options and "--json" in options


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    """No such site, policy, database or scenario, and times and URLs that make no sense."""
    db = str(tmp_path / "none.db")
    assert "no-such-site" in refusal("serve", "--site", "no-such-site", "--db", db)
    assert "no-such-policy" in refusal("serve", "--site", str(SITE), "--policy", "no-such-policy", "--db", db)
    assert "no database" in refusal("explain", "n0", "--db", db)
    assert "no-such-scenario" in refusal("emulate", str(SITE), "--scenario", "no-such-scenario")
    assert "no-such-site" in refusal("emulate", "no-such-site")
    assert "not a URL" in refusal("agent", "--server", "nonsense")
    assert "no database" in refusal("shadow", "report", "--db", db, "--out", str(tmp_path / "r.html"))
    assert "time 'soon'" in refusal("shadow", "report", "--db", db, "--from", "soon", "--out", "r.html")


@pytest.mark.parametrize("policy", registry.NEEDS_SIMULATOR)
def test_a_policy_that_needs_the_simulator_never_runs_live(tmp_path, policy):
    """It is refused before anything starts, with what can run instead."""
    db = str(tmp_path / "f.db")
    for line in (
        refusal("serve", "--site", str(SITE), "--policy", policy, "--db", db),
        refusal("emulate", str(SITE), "--policy", policy, "--out", str(tmp_path / "out")),
    ):
        assert f"policy {policy} " in line and "use champion, best-baseline or one of" in line
    assert list(tmp_path.iterdir()) == []


def test_a_learned_policy_on_a_base_that_needs_the_simulator_never_runs_live(monkeypatch):
    """Its file loads, but what it corrects cannot think without the plant."""
    learned = SimpleNamespace(name="policy.onnx", baseline=SimpleNamespace(name="rollout"))
    monkeypatch.setattr(registry, "policy", lambda name, scenario: learned)
    with pytest.raises(BadInput, match=r"policy.onnx \(on rollout\) .* cannot run live"):
        registry.live_policy("policy.onnx", site_scenario(SITE))


def test_a_port_in_use_is_bad_input(tmp_path):
    """The line names the port and the flag."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = refusal("serve", "--site", str(SITE), "--port", port, "--db", str(tmp_path / "f.db"))
    assert port in line and "--port" in line


def test_serve_says_where_it_listens(service):
    """With --json one object, once the port answers."""
    assert service.url.startswith("http://127.0.0.1:") and service.epoch == 1 and service.is_running


def test_an_agent_with_a_wrong_token_or_an_unknown_node_ends(service, tmp_path):
    """Exit code 2 and a line that says which variable or flag to mend."""
    from flyball.actuators.emulator.state import EmulatedGpus

    gpus = EmulatedGpus.create(tmp_path / "gpus", ["H100-SXM"] * 2, "n0")
    secrets = read_secrets(service.tokens)
    common = ["agent", "--server", service.url, "--nvml", "emulated", "--state-dir", str(tmp_path / "state")]
    env = {"FLYBALL_NVML_STATE": str(gpus.path)}
    wrong = flyball(*common, "--node", "n0", env={**env, "FLYBALL_TOKEN": "not-the-token-of-n0"})
    assert wrong.returncode == 2 and "FLYBALL_TOKEN" in wrong.stderr.strip().splitlines()[-1]
    other = flyball(*common, "--node", "n1", env={**env, "FLYBALL_TOKEN": secrets["n0"]})
    assert other.returncode == 2 and "'n1'" in other.stderr.strip().splitlines()[-1]
    unknown = flyball(*common, "--node", "n9", env={**env, "FLYBALL_TOKEN": secrets["n0"]})
    assert unknown.returncode == 2 and "--node" in unknown.stderr.strip().splitlines()[-1]
    assert gpus.setter_calls == 0


def test_the_agent_verb_loads_nothing_heavy():
    """A node's agent never loads torch, numba, FastAPI, or even NumPy."""
    code = (
        "import sys\nfrom flyball.cli import main\n"
        "try: main(['agent', '--server', 'nonsense'])\nexcept SystemExit as e: code = e.code\n"
        "print(code, *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[0] == "2" and "flyball" in out
    assert not {"torch", "numba", "fastapi", "numpy", "pydantic", "rich", "httpx"} & set(out)


def test_explain_answers_from_the_database(service):
    """The sentence and its numbers for a node that exists, one line for one that does not, at any time."""
    until_s = time.monotonic() + 20.0
    while (asked := CliRunner().invoke(main, ["explain", "n0", "--db", service.db, "--json"])).exit_code:
        assert time.monotonic() < until_s, asked.output
        time.sleep(0.2)
    answer = json.loads(asked.stdout)
    assert answer["node"] == "n0" and answer["domain"] == "feed" and "feed" in answer["sentence"]
    said = CliRunner().invoke(main, ["explain", "n0", "--at", "-0s", "--db", service.db])
    assert said.exit_code == 0 and said.stdout.startswith("node n0 ")
    assert "'n9'" in refusal("explain", "n9", "--db", service.db)
    assert "not running" in refusal("explain", "n0", "--at", "-1d", "--db", service.db)
    assert "time 'soon'" in refusal("explain", "n0", "--at", "soon", "--db", service.db)


def test_emulate_runs_until_ctrl_c_and_leaves_nothing_behind(tmp_path):
    """The dashboard's URL on stderr, KPIs on stdout, and no process of it afterwards."""
    arguments = ["emulate", str(SITE), "--seconds", "60", "--port", "0", "--out", str(tmp_path), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flyball", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs, and so tests run from one, inherit that interrupts are ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        said = ""
        while "Ctrl-C" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        assert "dashboard: http://127.0.0.1:" in said
        time.sleep(2.5)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    result = json.loads(out)
    assert result["site"] == "live-test" and 1.0 <= result["seconds"] < 30.0
    assert result["kpis"]["budget_violation_ws"] == 0 and result["mode"] == "enforce"
    asked = CliRunner().invoke(main, ["explain", "n0", "--db", result["db"]])
    assert asked.exit_code == 0 and "n0" in asked.stdout
    assert not processes_that_mention(str(tmp_path))


def processes_that_mention(text: str) -> list[str]:
    """Command lines of this machine's processes that hold a text, once the last ones had a second to end."""
    found: list[str] = []
    for _ in range(20):
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line and path.parent.name != str(os.getpid()):
                found.append(line)
        if not found:
            break
        time.sleep(0.1)
    return found
