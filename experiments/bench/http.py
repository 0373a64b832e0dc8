"""Latency and throughput of `POST /v1/decide`, over HTTP on this machine's loopback.

The service runs in a process of its own, as `flyball serve` runs it, ticks included; the policy is the packaged one. A
request carries a snapshot and the arbiter's state of a site under load, with a token. The client writes bytes that were
made beforehand to a kept-alive connection and reads the answer whole without decoding it: what is measured is the
service. The 99th percentile means something on an idle machine alone.
"""

import json
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import msgpack
import numpy as np

from ... import registry
from ...envs.core import Core
from ...envs.scenario import Scenario, load_scenario
from ...fleet.arbiter import ArbiterState
from ...fleet.errors import FlyballError
from ...fleet.observe import observe
from ...fleet.snapshot import Snapshot
from ...policies.onnx import OUTPUTS, OnnxPolicy
from ...serving.auth import read_secrets
from ...serving.server import Listening, ServeConfig, Service
from ...serving.wire import table_columns, to_base64
from .fleets import rows_of_racks, scenario_on
from .timing import REPEATS, Sample, seconds_per_call

SCENARIO, POLICY = "bursty", "champion"
RACK, FLEET = 16, 256
"""Nodes of the two sites."""

CONNECTIONS = 4
"""Of the throughput: requests wait at the service, so that it never does."""

BATCH = 64
"""Racks in one request of the batched figure."""

STEPS = 12
"""Control intervals before the snapshot is taken: queues are filled, and limits bind."""

START_TIMEOUT_S = 120.0
"""A first start compiles kernels."""


def figures(progress: Callable[[str, float], None], repeat_s: float = 1.0, batch: int = BATCH) -> dict[str, float]:
    """Measure.

    Args:
        progress: Called with a label and the share done.
        repeat_s: Length of each of the repeats.
        batch: Racks in one request of the batched figure.

    Returns:
        `rack16_msgpack_p50_us`, `rack16_json_p50_us`, `fleet256_msgpack_p50_us` with their 99th percentiles, one
        request at a time; `rack16_per_s`, decisions over `connections`; `rack16_batched_per_s`, decisions of `batch`
        racks to a request; `session_run_16_us`, the policy's network alone, in this process.

    Raises:
        FlyballError: if the service does not start, or refuses a request.
    """
    rack, fleet = _scenario(RACK), _scenario(FLEET)
    progress(f"the network, {RACK} nodes", 0.0)
    snapshot, state = under_load(rack, 1)
    out = _session_sample(rack, snapshot, state, repeat_s).figures("session_run_16_us", 1e6)
    packed, columns = packed_request(snapshot, state), json_request(snapshot, state)
    many = packed_request(*under_load(rack, batch))
    progress(f"a service of {RACK} nodes", 0.1)
    with service(RACK) as listening:
        links = [Link(listening) for _ in range(CONNECTIONS)]
        out |= _latency(links[0], packed, repeat_s, "rack16_msgpack")
        progress("JSON", 0.3)
        out |= _latency(links[0], columns, repeat_s, "rack16_json")
        progress(f"{CONNECTIONS} connections", 0.45)
        out |= _rate(links, packed, repeat_s).figures("rack16_per_s")
        progress(f"{batch} racks to a request", 0.6)
        out |= _rate(links, many, repeat_s).figures("rack16_batched_per_s", batch)
        for link in links:
            link.close()
    progress(f"a service of {FLEET} nodes", 0.75)
    packed = packed_request(*under_load(fleet, 1))
    with service(FLEET) as listening:
        link = Link(listening)
        out |= _latency(link, packed, repeat_s, "fleet256_msgpack")
        link.close()
    progress("done", 1.0)
    return {**out, "connections": CONNECTIONS, "batch": batch}


def _scenario(nodes: int) -> Scenario:
    return scenario_on(rows_of_racks(nodes), load_scenario(SCENARIO))


# ── what is asked ───────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Body:
    """A request's body with its type."""

    content: bytes
    media_type: str


def under_load(scenario: Scenario, batch: int) -> tuple[Snapshot, ArbiterState]:
    """Snapshots and states of sites in the middle of the scenario, one seed each."""
    core = Core(scenario, registry.policy(POLICY, scenario), batch=batch)
    core.reset(np.arange(batch))
    for _ in range(STEPS):
        core.step(core.base)
    return core.plant.snapshot.copy(), core.plant.state.copy()


def packed_request(snapshot: Snapshot, state: ArbiterState) -> Body:
    """Tables as bytes in MessagePack; any batch."""
    message = {"snapshot": snapshot.to_bytes(), "state": state.to_bytes()}
    return Body(msgpack.packb(message), "application/msgpack")


def json_request(snapshot: Snapshot, state: ArbiterState) -> Body:
    """Columns of numbers, and the state as an answer gave it; a batch of one."""
    tables = {name: table_columns(getattr(snapshot, name)[0]) for name in ("node", "domain", "service")}
    message = {"snapshot": {"time_s": float(snapshot.time_s[0]), **tables}, "state": to_base64(state.to_bytes())}
    return Body(json.dumps(message).encode(), "application/json")


# ── the service ─────────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def service(nodes: int) -> Iterator[Listening]:
    """A service on a generated site, on a free port of 127.0.0.1, in a process of its own."""
    with TemporaryDirectory(prefix="flyball-bench-") as folder:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=(nodes, folder, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            if not ours.poll(START_TIMEOUT_S):
                raise FlyballError(f"the service of {nodes} nodes did not start within {START_TIMEOUT_S:g} s")
            try:
                listening = ours.recv()
            except EOFError:
                raise FlyballError(f"the service of {nodes} nodes did not start; its message stands above") from None
            yield listening
        finally:
            ours.close()
            process.terminate()
            process.join()


def _serve(nodes: int, folder: str, ready: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked, which stops this one
    scenario = _scenario(nodes)
    policy = registry.live_policy(POLICY, scenario)
    made = Service(ServeConfig(scenario.fleet, policy, "advise", port=0, db_url=str(Path(folder) / "bench.db")))
    ready.send(made.listening)
    made.run()


class Link:
    """A kept-alive connection that posts a body and reads the answer whole."""

    def __init__(self, listening: Listening):
        where, self._secret = urlsplit(listening.url), read_secrets(listening.token_file)["viewer"]
        self._host = where.netloc
        self._socket = socket.create_connection((where.hostname, where.port), timeout=30.0)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def request(self, body: Body) -> bytes:
        """The bytes of one request."""
        head = (
            f"POST /v1/decide HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: Bearer {self._secret}\r\n"
            f"Content-Type: {body.media_type}\r\nContent-Length: {len(body.content)}\r\n\r\n"
        )
        return head.encode() + body.content

    def send(self, request: bytes) -> None:
        self._socket.sendall(request)

    def receive(self) -> bytes:
        """The next answer's body.

        Raises:
            FlyballError: if it is a refusal, or the connection ends.
        """
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        head = data[:end].lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        parts, missing = [data[end + 4 :]], length - (len(data) - end - 4)
        while missing > 0:
            parts.append(self._more())
            missing -= len(parts[-1])
        content = b"".join(parts)
        if not head.startswith(b"http/1.1 200"):
            raise FlyballError(f"the service refuses a decision: {content[:300].decode(errors='replace')}")
        return content

    def _more(self) -> bytes:
        data = self._socket.recv(1 << 20)
        if not data:
            raise FlyballError("the service closed the connection")
        return data

    def close(self) -> None:
        self._socket.close()


# ── measuring ───────────────────────────────────────────────────────────────────────────────────────────
def _latency(link: Link, body: Body, repeat_s: float, name: str) -> dict[str, float]:
    """Time from the first byte sent to the last one read, one request after another."""
    request = link.request(body)
    p50s, p99s = [], []
    for repeat in range(REPEATS + 1):
        took_s: list[float] = []
        until_s = time.perf_counter() + repeat_s
        while (began_s := time.perf_counter()) < until_s or len(took_s) < 2:
            link.send(request)
            link.receive()
            took_s.append(time.perf_counter() - began_s)
        if repeat:  # the first one warms up
            p50s.append(float(np.quantile(took_s, 0.5)))
            p99s.append(float(np.quantile(took_s, 0.99)))
    return Sample(tuple(p50s)).figures(f"{name}_p50_us", 1e6) | Sample(tuple(p99s)).figures(f"{name}_p99_us", 1e6)


def _rate(links: list[Link], body: Body, repeat_s: float) -> Sample:
    """Requests per second with one on its way on every connection."""
    requests = [link.request(body) for link in links]
    rates = []
    for repeat in range(REPEATS + 1):
        for link, request in zip(links, requests, strict=True):
            link.send(request)
        count, began_s = 0, time.perf_counter()
        while time.perf_counter() - began_s < repeat_s:
            for link, request in zip(links, requests, strict=True):
                link.receive()
                link.send(request)
                count += 1
        spent_s = time.perf_counter() - began_s
        for link in links:
            link.receive()
        if repeat:
            rates.append(count / spent_s)
    return Sample(tuple(rates))


def _session_sample(scenario: Scenario, snapshot: Snapshot, state: ArbiterState, repeat_s: float) -> Sample:
    """The network's time on what the request makes it see."""
    policy = registry.policy(POLICY, scenario)
    assert isinstance(policy, OnnxPolicy)
    observation = observe(scenario.fleet, state, snapshot)
    base, _ = policy.baseline.bid(snapshot, observation, policy.start(1))
    inputs = policy.inputs(observation, base)
    return seconds_per_call(lambda: policy.session.run(list(OUTPUTS), inputs), repeat_s=repeat_s)
