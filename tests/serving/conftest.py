"""A small site, an engine on a clock that the test moves, and obedient agents."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from flyball.fleet.topology import Fleet, Node, PowerDomain, Service, Slo
from flyball.serving.app import create_app
from flyball.serving.assurance import NeutralPolicy
from flyball.serving.auth import Auth, load_tokens
from flyball.serving.clock import ManualClock
from flyball.serving.engine import Engine
from flyball.serving.store import Store

TOKENS = """
[[token]]
name = "op"
role = "operator"
secret = "operator-secret-0001"

[[token]]
name = "eye"
role = "viewer"
secret = "viewer-secret-000001"

[[token]]
name = "proxy"
role = "agent"
secret = "proxy-secret-0000001"
nodes = ["*"]

[[token]]
name = "rack0-node0"
role = "agent"
secret = "agent-secret-0000001"
nodes = ["rack0-node0"]
"""
OPERATOR = {"Authorization": "Bearer operator-secret-0001"}
VIEWER = {"Authorization": "Bearer viewer-secret-000001"}
PROXY = {"Authorization": "Bearer proxy-secret-0000001"}
AGENT0 = {"Authorization": "Bearer agent-secret-0000001"}


def small_fleet(racks: int = 2, nodes_per_rack: int = 4, feed_w: int = 50_000) -> Fleet:
    """Racks of 8-GPU H100 nodes whose feed cannot carry them all at full power."""
    domains = [PowerDomain("feed", feed_w, unknown_reserve=0)]
    domains += [PowerDomain(f"rack{r}", 26_500, parent="feed", unknown_reserve=0) for r in range(racks)]
    nodes = [
        Node(
            f"rack{r}-node{k}",
            f"rack{r}",
            "H100-SXM",
            8,
            1500,
            "chat",
            "prefill" if k % 2 else "decode",
            f"rack{r}",
        )
        for r in range(racks)
        for k in range(nodes_per_rack)
    ]
    return Fleet.build("test", domains, nodes, [Service("chat", "llama-70b", Slo())])


@dataclass
class Agents:
    """Agents that obey: they apply every lease and report it with the next telemetry."""

    fleet: Fleet
    clock: ManualClock
    demand_w: float = 5200.0
    boot: dict[str, str] = field(default_factory=dict)
    held: dict[str, dict] = field(default_factory=dict)
    stage: dict[str, int] = field(default_factory=dict)
    mute: set[str] = field(default_factory=set)
    xid: dict[str, list[int]] = field(default_factory=dict)
    history: list[dict[str, int]] = field(default_factory=list)

    def body(self, name: str) -> dict[str, Any]:
        held = self.held.get(name)
        i = self.fleet.node_index[name]
        cap_w = held["cap_w"] if held else 5600
        return {
            "node": name,
            "boot_id": self.boot.get(name, "boot-1"),
            "sent_at": self.clock.now_s(),
            "ack_epoch": held["epoch"] if held else 0,
            "ack_seq": held["seq"] if held else 0,
            "cap_w": cap_w,
            "fallback_w": held["fallback_w"] if held else None,
            "power_w": min(cap_w, self.demand_w),
            "demand_w": self.demand_w,
            "util_frac": 0.8,
            "clock_frac": 0.9,
            "temp_c": 61.0,
            "stage": self.stage.get(name, int(self.fleet.node_static["stage"][i])),
            "moving_s": 0,
            "xid": self.xid.get(name, []),
            "gpus": [f"GPU-{name}-{g}" for g in range(8)],
            "dry_run": False,
        }

    def take(self, name: str, answer: dict[str, Any]) -> None:
        if answer.get("lease"):
            self.held[name] = answer["lease"]
        if answer.get("stage") is not None:
            self.stage[name] = answer["stage"]

    def caps_w(self) -> dict[str, int]:
        return {n.name: self.held[n.name]["cap_w"] if n.name in self.held else 5600 for n in self.fleet.nodes}


class Site:
    """A service without a socket: its app, its engine, its clock and its agents."""

    OPERATOR, VIEWER, PROXY, AGENT0 = OPERATOR, VIEWER, PROXY, AGENT0

    def __init__(self, tmp_path, fleet: Fleet, policy=None, mode: str = "enforce", clock=None) -> None:
        self.fleet = fleet
        self.clock = clock or ManualClock()
        self.url = f"sqlite:///{tmp_path}/flyball.db"
        self.store = Store(self.url)
        self.engine = Engine(fleet, policy or NeutralPolicy(fleet), self.store, mode, self.clock)
        tokens = tmp_path / "tokens.toml"
        tokens.write_text(TOKENS)
        self.auth: Auth = load_tokens(tokens)
        self.app = create_app(self.engine, self.auth)
        self.agents = Agents(fleet, self.clock)

    def call(self, method: str, path: str, headers: dict | None = None, **more: Any) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://flyball") as client:
                return await client.request(method, path, headers=headers, **more)

        return asyncio.run(go())

    def beat(self) -> dict[str, Any]:
        """One second: every agent that is not mute posts, takes its lease, and the engine ticks."""
        names = [n.name for n in self.fleet.nodes if n.name not in self.agents.mute]
        body = {"nodes": [self.agents.body(name) for name in names]}
        answers = self.call("POST", "/v1/telemetry", PROXY, json=body).json()["nodes"]
        for name, answer in answers.items():
            self.agents.take(name, answer)
        self.agents.history.append(self.agents.caps_w())
        self.engine.tick()
        self.clock.advance(1.0)
        return answers

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.beat()


@pytest.fixture
def make_fleet():
    """Makes fleets of other sizes."""
    return small_fleet


@pytest.fixture
def fleet() -> Fleet:
    return small_fleet()


@pytest.fixture
def make_site(tmp_path, fleet):
    """Makes sites on one database, as restarts do; the stores are closed at the end."""
    made: list[Site] = []

    def make(**settings: Any) -> Site:
        made.append(Site(tmp_path, settings.pop("fleet", fleet), **settings))
        return made[-1]

    yield make
    for site in made:
        site.store.close()


@pytest.fixture
def site(make_site) -> Site:
    return make_site()
