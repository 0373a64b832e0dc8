"""The service and the agents as processes of their own, started, found, killed and stopped by this one."""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from ..fleet.errors import BadInput, FlyballError

START_TIMEOUT_S = 60.0
"""A first start compiles kernels."""

STOP_TIMEOUT_S = 10.0


class ServiceFailed(FlyballError):
    """The service did not start, or does not answer."""


class ServiceLink:
    """A client of the service's API.

    Args:
        url: Of the service.
        token: Bearer token; None sends none.
        timeout_s: Of each exchange.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 2.0):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def call(self, method: str, path: str, body: dict | None = None) -> dict:
        """One exchange.

        Raises:
            ServiceFailed: no answer, or one that a later try may change.
            BadInput: the service refuses what was sent.
        """
        try:
            answer = self._client.request(method, path, json=body)
            content = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ServiceFailed(f"{self._client.base_url} does not answer ({type(error).__name__})") from None
        if answer.status_code >= 500:
            raise ServiceFailed(f"{path}: HTTP {answer.status_code} ({content.get('error', '')})")
        if answer.status_code >= 400:
            raise BadInput(f"{path}: HTTP {answer.status_code} ({content.get('error', '')})")
        return content

    def close(self) -> None:
        self._client.close()


def spawn(arguments: Sequence[str], log: Path, env: Mapping[str, str] | None = None, **options) -> subprocess.Popen:
    """Start `flyball` with some arguments; it gets SIGTERM when this process dies.

    Args:
        arguments: Of the command line.
        log: Where its stderr is appended.
        env: Variables beside this process's own.
        **options: Of `subprocess.Popen`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "flyball", *arguments],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **(env or {})},
            start_new_session=True,  # Ctrl-C is for this process, which stops the others in order
            preexec_fn=_die_with(ctypes.CDLL(None), os.getpid()),
            **options,
        )


def _die_with(libc: ctypes.CDLL, parent: int):
    """What a child runs before it starts: PR_SET_PDEATHSIG, so that nothing outlives a killed parent."""

    def ask() -> None:
        libc.prctl(1, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def stop_all(processes: Sequence[subprocess.Popen]) -> None:
    """Ask processes to end, all at once, and kill those that do not."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    until_s = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        try:
            process.wait(max(until_s - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_line(log: Path) -> str:
    """The last thing that a process said, for a message of one line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


@dataclass
class ServiceProcess:
    """`flyball serve` in a process of its own, on one database and one port through all its restarts.

    Attributes:
        site: Site file or name.
        folder: Of its database, its tokens and its log.
        policy: As of the command line.
        mode: enforce, advise or shadow.
        port: 0 takes a free one at the first start and keeps it.
        url: Where it listens, after a start.
        epoch: Of the last start.
    """

    site: str
    folder: Path
    policy: str = "best-baseline"
    mode: str = "enforce"
    port: int = 0
    url: str = ""
    epoch: int = 0
    process: subprocess.Popen | None = None

    @property
    def db(self) -> str:
        return str(self.folder / "flyball.db")

    @property
    def tokens(self) -> Path:
        return self.folder / "flyball-tokens.toml"

    @property
    def log(self) -> Path:
        return self.folder / "service.log"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def launch(self) -> None:
        """Start the process; `wait_ready` says when it listens."""
        arguments = ["serve", "--json", "--site", self.site, "--policy", self.policy, "--mode", self.mode]
        arguments += ["--port", str(self.port), "--db", self.db]
        self.process = spawn(arguments, self.log, stdout=subprocess.PIPE)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the process says where it listens.

        Raises:
            BadInput: if it ends before, with what it said.
            ServiceFailed: if it says nothing in time.
        """
        until_s = time.monotonic() + timeout_s
        while not self.is_ready(max(until_s - time.monotonic(), 0.0)):
            if time.monotonic() > until_s:
                raise ServiceFailed(f"the service did not start within {timeout_s:g} s; see {self.log}")

    def is_ready(self, wait_s: float = 0.0) -> bool:
        """Whether the process listens; its first line of output says where.

        Raises:
            BadInput: if it ended, with what it said.
        """
        assert self.process is not None and self.process.stdout is not None
        out: IO[bytes] = self.process.stdout
        if out.closed:
            return self.is_running
        if not select.select([out], [], [], wait_s)[0]:
            return False
        line = out.readline()
        if not line:
            self.process.wait()
            raise BadInput(f"the service did not start: {last_line(self.log)}")
        answer = json.loads(line)
        self.url, self.epoch, self.port = answer["url"], answer["epoch"], int(answer["url"].rpartition(":")[2])
        out.close()
        return True

    def start(self) -> None:
        """`launch` and `wait_ready`."""
        self.launch()
        self.wait_ready()

    def kill(self) -> None:
        """SIGKILL: nothing is said, nothing is saved."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask it to end and wait for it."""
        if self.process is not None:
            stop_all([self.process])
            if self.process.stdout is not None:
                self.process.stdout.close()
