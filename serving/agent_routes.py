"""Routes of agents, rack proxies, meters and model servers: telemetry in, leases out."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgpack
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from ..fleet.errors import BadInput
from .engine import Engine, NoPlan, Reply
from .http import (
    BATCH_BODY,
    Refusal,
    body_of,
    engine_of,
    index_of,
    principal_of,
    require_agent,
)
from .messages import (
    DecideRequest,
    DomainTelemetry,
    Message,
    NodeTelemetry,
    Registration,
    ServiceTelemetry,
    TelemetryBatch,
    parse,
)
from .telemetry import NodeReport, StaleSender
from .wire import (
    from_base64,
    plan_columns,
    snapshot_from_bytes,
    snapshot_from_columns,
    state_from_bytes,
    to_base64,
)

router = APIRouter(prefix="/v1")

INLINE_NODES = 4096
"""Decisions up to this many nodes run on the event loop: a thread hop costs more than they do."""

MSGPACK = "application/msgpack"
_SERVICE_FIELDS = [f for f in ServiceTelemetry.model_fields if f not in ("service", "sent_at")]


def _report(message: NodeTelemetry) -> NodeReport:
    return NodeReport(
        boot_id=message.boot_id,
        sent_at=message.sent_at,
        ack_epoch=message.ack_epoch,
        ack_seq=message.ack_seq,
        cap_w=message.cap_w,
        fallback_w=message.fallback_w,
        power_w=message.power_w,
        demand_w=message.demand_w,
        util_frac=message.util_frac,
        clock_frac=message.clock_frac,
        temp_c=message.temp_c,
        stage=message.stage,
        moving_s=message.moving_s,
        xid=tuple(message.xid or ()),
        gpus=tuple(message.gpus or ()),
        problems=tuple(message.problems or ()),
        is_dry_run=message.dry_run,
    )


def reply_json(engine: Engine, reply: Reply) -> dict[str, Any]:
    """A lease exchange's answer."""
    lease = None
    if reply.lease is not None:
        row = asdict(reply.lease)
        lease = {name: row[name] for name in ("epoch", "seq", "ttl_s", "cap_w", "fallback_w")}
    return {
        "lease": lease,
        "stage": reply.stage,
        "clock_frac": reply.clock_frac,
        "cordoned": reply.is_cordoned,
        "drained": reply.is_drained,
        "server_time_s": reply.server_time_s,
        "mode": str(engine.mode),
        "epoch": engine.epoch,
    }


def _take_node(engine: Engine, node: str, message: NodeTelemetry) -> dict[str, Any]:
    i = index_of("node", engine.fleet.node_index, node)
    if message.node not in (None, node):
        raise BadInput(f"node: the body says {message.node!r}, the address {node!r}; post each node to its own")
    return reply_json(engine, engine.take_node(i, _report(message)))


def _take_domain(engine: Engine, domain: str, message: DomainTelemetry) -> dict[str, Any]:
    d = index_of("power domain", engine.fleet.domain_index, domain)
    taken = engine.telemetry.report_domain(d, message.meter_w, message.sent_at, engine.clock.now_s())
    return {"taken": taken}


def _take_service(engine: Engine, service: str, message: ServiceTelemetry) -> dict[str, Any]:
    s = index_of("service", engine.fleet.service_index, service)
    values = {name: getattr(message, name) for name in _SERVICE_FIELDS}
    return {"taken": engine.telemetry.report_service(s, values, message.sent_at, engine.clock.now_s())}


@router.post("/nodes/{node}/telemetry")
async def post_node(node: str, request: Request) -> JSONResponse:
    """Telemetry of one node; the answer holds its lease."""
    engine = engine_of(request)
    principal_of(request)  # a wrong token must not learn which nodes exist
    index_of("node", engine.fleet.node_index, node)
    require_agent(request, node)
    return JSONResponse(_take_node(engine, node, parse(NodeTelemetry, await body_of(request))))


@router.post("/domains/{domain}/telemetry")
async def post_domain(domain: str, request: Request) -> JSONResponse:
    """A reading of a domain's meter."""
    require_agent(request, f"domain:{domain}")
    return JSONResponse(_take_domain(engine_of(request), domain, parse(DomainTelemetry, await body_of(request))))


@router.post("/services/{service}/telemetry")
async def post_service(service: str, request: Request) -> JSONResponse:
    """A service's queue, latencies and KV use."""
    require_agent(request, f"service:{service}")
    return JSONResponse(_take_service(engine_of(request), service, parse(ServiceTelemetry, await body_of(request))))


@router.post("/telemetry")
async def post_batch(request: Request) -> JSONResponse:
    """Many reports at once; a bad one is refused by name and the others are kept."""
    engine = engine_of(request)
    principal = principal_of(request)
    batch = parse(TelemetryBatch, await body_of(request, BATCH_BODY))
    kinds: tuple[tuple[str, str, str, list[dict[str, Any]], type[Message], Callable[..., Any]], ...] = (
        ("nodes", "node", "", batch.nodes, NodeTelemetry, _take_node),
        ("domains", "domain", "domain:", batch.domains, DomainTelemetry, _take_domain),
        ("services", "service", "service:", batch.services, ServiceTelemetry, _take_service),
    )
    answer: dict[str, dict[str, Any]] = {}
    for plural, key, prefix, entries, kind, take in kinds:
        answer[plural] = {}
        for k, entry in enumerate(entries):
            if k % 500 == 499:
                await asyncio.sleep(0)  # a fleet's worth of reports must not hold up the other agents
            name = str(entry.get(key, f"#{k}"))[:200]
            try:
                if not principal.may_speak_for(prefix + name):
                    raise Refusal(403, f"token {principal.name!r} may not report for {prefix}{name}")
                answer[plural][name] = take(engine, name, parse(kind, entry))
            except Refusal as error:
                answer[plural][name] = {"error": error.message, "status": error.status}
            except BadInput as error:
                answer[plural][name] = {"error": str(error), "status": 422}
            except StaleSender as error:
                answer[plural][name] = {"error": str(error), "status": 409}
            except NoPlan as error:
                answer[plural][name] = {"error": str(error), "status": 503}
    return JSONResponse(answer)


@router.post("/nodes/{node}:register")
async def register(node: str, request: Request) -> JSONResponse:
    """An agent introduces its node; a count of GPUs that is not the site file's is refused."""
    engine = engine_of(request)
    require_agent(request, node)
    i = index_of("node", engine.fleet.node_index, node)
    message = parse(Registration, await body_of(request))
    expected = engine.fleet.nodes[i].gpus
    if len(set(message.gpus)) != expected:
        raise Refusal(
            409,
            f"node {node!r}: the agent sees {len(set(message.gpus))} GPUs, the site file says {expected}; "
            "mend the site file or the node",
        )
    engine.telemetry.expect_boot(i, message.boot_id, tuple(message.gpus))
    timing, row = engine.fleet.timing, engine.fleet.node_static[i]
    return JSONResponse(
        {
            "node": node,
            "epoch": engine.epoch,
            "mode": str(engine.mode),
            "tick_s": timing.tick_s,
            "control_s": timing.control_s,
            "lease_ttl_s": timing.lease_ttl_s,
            "gpus": expected,
            "cap_min_w": int(row["cap_min_w"]),
            "cap_max_w": int(row["cap_max_w"]),
            "server_time_s": engine.clock.now_s(),
        }
    )


@router.post("/decide")
async def decide(request: Request) -> Response:
    """A plan for a snapshot from outside; nothing is commanded and nothing kept.

    JSON: `{"snapshot": columns or base64, "state": base64 or null}`. MessagePack: the same with raw
    bytes, which are `Snapshot.to_bytes()` and `ArbiterState.to_bytes()`; the answer's plan is
    `Plan.to_bytes()`.
    """
    principal_of(request)
    engine = engine_of(request)
    body = await body_of(request, BATCH_BODY)
    is_msgpack = request.headers.get("content-type", "").split(";")[0].strip() == MSGPACK
    if is_msgpack:
        snapshot, state = _decide_input_msgpack(engine, body)
    else:
        message = parse(DecideRequest, body)
        if isinstance(message.snapshot, str):
            snapshot = snapshot_from_bytes(engine.fleet, from_base64("snapshot", message.snapshot))
        else:
            snapshot = snapshot_from_columns(engine.fleet, message.snapshot)
        state = None
        if message.state is not None:
            state = state_from_bytes(engine.fleet, from_base64("state", message.state), snapshot.batch)
    began_s = time.perf_counter()
    if snapshot.node.size <= INLINE_NODES:
        state, plan = engine.decide(snapshot, state)
    else:
        state, plan = await run_in_threadpool(engine.decide, snapshot, state)
    took_ms = {"Server-Timing": f"decide;dur={1e3 * (time.perf_counter() - began_s):.3f}"}
    if is_msgpack:
        content = msgpack.packb({"plan": plan.to_bytes(), "state": state.to_bytes()})
        return Response(content, media_type=MSGPACK, headers=took_ms)
    answer: dict[str, Any] = {"plan_bytes": to_base64(plan.to_bytes()), "state": to_base64(state.to_bytes())}
    if snapshot.batch == 1:
        answer["plan"] = plan_columns(plan)
    return JSONResponse(answer, headers=took_ms)


def _decide_input_msgpack(engine: Engine, body: bytes) -> tuple[Any, Any]:
    try:
        message = msgpack.unpackb(body)
    except ValueError as error:
        raise BadInput(f"body: no MessagePack ({error})") from None
    if not isinstance(message, dict) or not isinstance(message.get("snapshot"), bytes):
        raise BadInput("body: needs a map with snapshot (bytes) and state (bytes or nil)")
    snapshot = snapshot_from_bytes(engine.fleet, message["snapshot"])
    data = message.get("state")
    if data is None:
        return snapshot, None
    if not isinstance(data, bytes):
        raise BadInput("state: must be bytes or nil")
    return snapshot, state_from_bytes(engine.fleet, data, snapshot.batch)
