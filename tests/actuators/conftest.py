"""Emulated GPUs, a tiny service that says what the test tells it to, and agents as real processes."""

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest

from flyball.actuators.emulator.state import EmulatedGpus

CAP_W, FALLBACK_W = 4000, 3200
"""Of eight GPUs: 500 W and 400 W each."""


@dataclass
class FakeService:
    """Answers every telemetry message with one lease; the test changes its attributes at will."""

    lease: dict | None = field(
        default_factory=lambda: {"epoch": 1, "seq": 1, "ttl_s": 5.0, "cap_w": CAP_W, "fallback_w": FALLBACK_W}
    )
    status: int = 200
    reply: dict = field(default_factory=dict)
    token: str | None = None
    is_mute: bool = False
    received: list = field(default_factory=list)
    received_at_s: list = field(default_factory=list)
    authorization: list = field(default_factory=list)
    port: int = 0
    server: http.server.ThreadingHTTPServer | None = None
    connections: list = field(default_factory=list)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.received.append(body)
                service.received_at_s.append(time.monotonic())
                service.authorization.append(self.headers.get("Authorization"))
                if service.is_mute:
                    self.close_connection = True
                    return
                status = service.status
                if service.token and self.headers.get("Authorization") != f"Bearer {service.token}":
                    status = 401
                content = (
                    {"detail": "no"}
                    if status != 200
                    else {
                        "lease": service.lease,
                        "stage": 1,
                        "clock_frac": 1.0,
                        "cordoned": False,
                        "drained": False,
                        "server_time_s": 0.0,
                        **service.reply,
                    }
                )
                answer = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def process_request(self, request, client_address):
                service.connections.append(request)
                super().process_request(request, client_address)

            def handle_error(self, *_args):
                pass  # an agent that is killed leaves a broken connection

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self):
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None
            # connections are kept alive: a service that ends closes them
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.connections.clear()


def wait_until(condition, timeout_s=5.0):
    """Poll a condition; the seconds it took, or a failure."""
    start_s = time.monotonic()
    while not condition():
        if time.monotonic() - start_s > timeout_s:
            raise AssertionError(f"not within {timeout_s} s")
        time.sleep(0.002)
    return time.monotonic() - start_s


@pytest.fixture(name="wait_until")
def _wait_until():
    return wait_until


@pytest.fixture
def gpus(tmp_path):
    """Eight emulated H100."""
    return EmulatedGpus.create(tmp_path / "gpus.bin", ["H100-SXM"] * 8)


@pytest.fixture
def service():
    """A service that grants `CAP_W` with `FALLBACK_W`."""
    service = FakeService().start()
    yield service
    service.stop()


PREAMBLE = """
import json, sys
import pynvml
from flyball.actuators import nvml
from flyball.actuators.errors import *
from flyball.actuators.emulator.load import load_emulated
load_emulated(sys.argv[1])

def code(function, *arguments):
    try:
        function(*arguments)
    except pynvml.NVMLError as error:
        return error.value
    except GpuError as error:
        return type(error).__name__
    return 0
"""


@pytest.fixture
def nvml_script(gpus):
    """Run a script on real pynvml over the emulated library; its variable `out` comes back as JSON."""

    def run(body):
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-c",
                PREAMBLE + body + "\nprint(json.dumps(out))",
                str(gpus.path),
            ],
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


AGENT = """
import json, logging, sys
from pathlib import Path
from flyball.fleet.errors import FlyballError
from flyball.actuators.agent import AgentConfig, run_agent
logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
settings = json.loads(sys.argv[1])
for name in {"nvml_state", "state_dir", "command_file"} & settings.keys():
    settings[name] = Path(settings[name])
try:
    run_agent(AgentConfig(**settings))
except FlyballError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class AgentProcess:
    """One agent in a process of its own."""

    def __init__(self, settings, log_path):
        self.log_path = log_path
        self._log = open(log_path, "a")  # noqa: SIM115 - closed by end()
        env = {k: v for k, v in os.environ.items() if not k.startswith("FLYBALL_")}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", AGENT, json.dumps(settings)], stderr=self._log, env=env
        )

    @property
    def pid(self):
        return self.process.pid

    @property
    def log(self):
        return self.log_path.read_text()

    @property
    def guardian_pid(self):
        with open(f"/proc/{self.pid}/task/{self.pid}/children") as f:
            return int(f.read().split()[0])

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout_s=5.0):
        return self.process.wait(timeout_s)

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(5.0)
        self._log.close()


@pytest.fixture
def start_agent(gpus, service, tmp_path):
    """Start agents on the emulated GPUs; all are killed at the end."""
    agents = []

    def start(**settings):
        defaults = {
            "server": service.url,
            "node": "n0",
            "nvml": "emulated",
            "nvml_state": str(gpus.path),
            "state_dir": str(tmp_path / "state"),
            "tick_s": 0.1,
            "hang_limit_s": 0.5,
            "token": "a-secret-of-the-node",
        }
        agents.append(AgentProcess({**defaults, **settings}, tmp_path / "agent.log"))
        return agents[-1]

    yield start
    for agent in agents:
        agent.end()
