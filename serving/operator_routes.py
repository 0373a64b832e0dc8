"""Routes of people and of their tools: look, explain, order, change budgets."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from ..fleet.errors import BadInput
from ..fleet.plan import Reason, Shed
from ..fleet.tables import NEVER_S
from .audit import notes_of, replay
from .budget import BudgetEvent
from .engine import Engine, NoPlan
from .explain import explain, parse_time
from .fleet_json import fleet_json
from .health import judge_health_event
from .http import (
    Refusal,
    body_of,
    engine_of,
    index_of,
    principal_of,
    require_operator,
    require_viewer,
)
from .messages import HealthEvent, LoadTarget, Order, parse
from .view import View

router = APIRouter(prefix="/v1")

PAST_START_S = 1.0
"""A start this far back is still "now": clocks differ."""

MAX_NOTES = 5000


def _view(engine: Engine) -> View:
    view = engine.view
    if view is None:
        raise NoPlan("the service has not made its first plan yet; retry in a second")
    return view


@router.get("/fleet")
async def get_fleet(request: Request) -> JSONResponse:
    """The live picture."""
    require_viewer(request)
    engine = engine_of(request)
    return JSONResponse(fleet_json(engine, _view(engine)))


@router.get("/nodes/{node}")
async def get_node(node: str, request: Request) -> JSONResponse:
    """Everything about one node, with the sentence that explains its cap."""
    require_viewer(request)
    engine = engine_of(request)
    i = index_of("node", engine.fleet.node_index, node)
    view = _view(engine)
    columns = fleet_json(engine, view)["nodes"]
    restored = engine.restored.get(node)
    order = engine.orders.get(node)
    answer: dict[str, Any] = {name: values[i] for name, values in columns.items()}
    answer |= engine.telemetry.identity(i)
    answer["possible_w"] = int(view.node_possible_w[i])
    answer["lease_before_start"] = None if restored is None else asdict(restored)
    answer["order"] = None if order is None else asdict(order)
    try:
        answer["why"] = (await run_in_threadpool(explain, engine.store, node, engine.clock.now_s())).sentence
    except BadInput as error:
        answer["why"] = str(error)
    return JSONResponse(answer)


@router.get("/explain/{node}")
async def get_explanation(node: str, request: Request, at: str | None = None) -> JSONResponse:
    """One sentence about a node's cap at a time (now without `at`)."""
    require_viewer(request)
    engine = engine_of(request)
    index_of("node", engine.fleet.node_index, node)
    now_s = engine.clock.now_s()
    at_s = now_s if at is None else parse_time(at, now_s)
    return JSONResponse(asdict(await run_in_threadpool(explain, engine.store, node, at_s)))


@router.get("/plans/{plan_id}")
async def get_plan(plan_id: str, request: Request) -> JSONResponse:
    """A plan from the audit: `latest`, a tick of this epoch, or EPOCH-TICK."""
    require_viewer(request)
    engine = engine_of(request)
    epoch, tick = _plan_id(engine, plan_id)
    frame = replay(await run_in_threadpool(engine.store.ticks_to, epoch, tick))
    if frame is None or frame.tick != tick:
        raise Refusal(404, f"no plan {plan_id!r} on record; plans are latest, TICK or EPOCH-TICK")
    names = [n.name for n in engine.fleet.nodes]
    if len(names) != len(frame.node):
        raise Refusal(409, f"plan {plan_id!r} was made for another site file; use `flyball explain` on the database")
    domains = [d.name for d in engine.fleet.domains]
    shown = (
        "cap_w",
        "want_w",
        "fallback_w",
        "possible_w",
        "seq",
        "stage",
        "is_cordoned",
        "is_drained",
        "since_s",
    )
    return JSONResponse(
        {
            "id": f"{epoch}-{tick}",
            "time_s": frame.time_s,
            "shed": Shed(frame.shed_level).name,
            "nodes": {
                name: {
                    **{field: row[field].item() for field in shown},
                    "reason": Reason(int(row["reason"])).name,
                    "bound_by": domains[row["bound_domain"]] if row["bound_domain"] >= 0 else None,
                }
                for name, row in zip(names, frame.node, strict=True)
            },
            "domains": {
                name: {field: row[field].item() for field in ("limit_w", "in_force_w", "possible_w", "measured_w")}
                for name, row in zip(domains, frame.domain, strict=True)
            },
        }
    )


def _plan_id(engine: Engine, plan_id: str) -> tuple[int, int]:
    if plan_id == "latest":
        return engine.epoch, _view(engine).tick
    epoch, _, tick = plan_id.rpartition("-")
    digits = (epoch or str(engine.epoch), tick)
    if not all(d.isdecimal() and len(d) < 16 for d in digits):
        raise BadInput(f"plan id {plan_id!r}: use latest, TICK or EPOCH-TICK")
    return int(digits[0]), int(digits[1])


@router.get("/interventions")
async def get_interventions(
    request: Request, since: str | None = None, until: str | None = None, limit: int = 200
) -> JSONResponse:
    """Bids that are not granted now, and what happened in words, from the audit if a time is given."""
    require_viewer(request)
    engine = engine_of(request)
    view, now_s = _view(engine), engine.clock.now_s()
    limit = max(1, min(limit, MAX_NOTES))
    if since is None and until is None:
        notes = list(engine.notes)
    else:
        from_s = parse_time(since, now_s) if since else 0.0
        to_s = parse_time(until, now_s) if until else now_s + 1.0
        notes = notes_of(await run_in_threadpool(engine.store.ticks_between, from_s, to_s))
    domains = engine.fleet.domains
    return JSONResponse(
        {
            "time_s": view.time_s,
            "now": [
                {
                    "node": engine.fleet.nodes[v.node].name,
                    "reason": v.reason.name,
                    "requested_w": v.requested_w,
                    "granted_w": v.granted_w,
                    "domain": domains[v.domain].name if v.domain >= 0 else None,
                }
                for v in view.plan.interventions()
            ],
            "notes": [note._asdict() for note in notes[-limit:]],
        }
    )


@router.post("/nodes/{node}:{action}")
async def order_node(node: str, action: str, request: Request) -> JSONResponse:
    """Cordon, drain or uncordon a node."""
    engine = engine_of(request)
    principal = require_operator(request)
    index_of("node", engine.fleet.node_index, node)
    if action not in ("cordon", "drain", "uncordon"):
        raise Refusal(404, f"no action {action[:50]!r}; use register, cordon, drain or uncordon")
    body = await body_of(request)
    message = parse(Order, body or b"{}")
    if action == "uncordon":
        await run_in_threadpool(engine.release, node, principal.name)
    else:
        await run_in_threadpool(engine.order, node, action, principal.name, message.reason)
    order = engine.orders.get(node)
    return JSONResponse({"node": node, "order": None if order is None else asdict(order)})


@router.post("/load-targets")
async def post_load_target(request: Request) -> JSONResponse:
    """Change a domain's limit, now or with notice."""
    engine = engine_of(request)
    principal = require_operator(request)
    message = parse(LoadTarget, await body_of(request))
    event = budget_event(engine, message, principal.name)
    await run_in_threadpool(engine.announce, event, message.supersedes)
    answer = _event_json(event)
    d = engine.fleet.domain_index[event.domain]
    inside = engine.fleet.node_static[
        slice(*(int(engine.fleet.domain_static[d][k]) for k in ("node_start", "node_end")))
    ]
    floor_w = int((inside["parked_max_w"] + inside["non_gpu_max_w"]).sum()) + engine.fleet.domains[d].unmanaged_w
    if event.limit_w < floor_w:
        answer["warning"] = (
            f"{event.domain} may draw {floor_w} W with every GPU parked, above this limit: caps alone cannot meet it"
        )
    return JSONResponse(answer, status_code=201)


def budget_event(engine: Engine, message: LoadTarget, author: str) -> BudgetEvent:
    """A checked budget event from a message.

    Raises:
        BadInput: naming the field at fault.
        Refusal: 404 for a domain that the site does not have.
    """
    d = index_of("power domain", engine.fleet.domain_index, message.domain)
    now_s = engine.clock.now_s()
    if (message.limit_w is None) == (message.limit_frac is None):
        raise BadInput("limit_w, limit_frac: give one of the two")
    if message.start_s is not None and message.notice_s is not None:
        raise BadInput("start_s, notice_s: give one of the two, or neither to start now")
    start_s = message.start_s if message.start_s is not None else now_s + (message.notice_s or 0.0)
    if start_s < now_s - PAST_START_S:
        raise BadInput(f"start_s: {now_s - start_s:.0f} s in the past; leave it out to start now")
    until_s = NEVER_S if message.until_s is None else message.until_s
    if until_s <= max(start_s, now_s):
        raise BadInput("until_s: must lie after the start and after now")
    peak_w = engine.fleet.domains[d].peak_w
    limit_w = message.limit_w if message.limit_w is not None else int((message.limit_frac or 0.0) * peak_w)
    if limit_w > peak_w:
        raise BadInput(f"limit_w: {limit_w} W is above the {peak_w} W of {message.domain} in the site file")
    return BudgetEvent(message.id, message.domain, max(start_s, now_s), until_s, limit_w, now_s, author, message.reason)


def _event_json(event: BudgetEvent) -> dict[str, Any]:
    out = asdict(event)
    out["until_s"] = None if event.until_s >= NEVER_S else event.until_s
    out["notice_s"] = round(event.start_s - event.announced_s, 3)
    return out


@router.get("/load-targets")
async def get_load_targets(request: Request) -> JSONResponse:
    """Budget events that stand."""
    require_viewer(request)
    return JSONResponse([_event_json(e) for e in engine_of(request).events])


@router.delete("/load-targets/{event_id}")
async def delete_load_target(event_id: str, request: Request) -> JSONResponse:
    """Withdraw a budget event."""
    engine = engine_of(request)
    principal = require_operator(request)
    await run_in_threadpool(engine.withdraw, event_id, principal.name)
    return JSONResponse({"withdrawn": event_id})


@router.post("/health-events")
async def post_health_event(request: Request) -> JSONResponse:
    """A health event of another agent: kept, and acted on where it asks for it."""
    engine = engine_of(request)
    principal = principal_of(request)
    message = parse(HealthEvent, await body_of(request))
    index_of("node", engine.fleet.node_index, message.nodeName)
    if not (principal.may_operate or principal.may_speak_for(message.nodeName)):
        raise Refusal(403, f"token {principal.name!r} may not report the health of {message.nodeName}")
    verdict = judge_health_event(
        message.isFatal,
        message.isHealthy,
        message.errorCode,
        message.recommendedAction,
        message.processingStrategy,
        message.quarantineOverrides.skip or message.drainOverrides.skip,
    )
    if message.quarantineOverrides.skip and verdict.action in ("cordon", "drain"):
        verdict = type(verdict)("none", f"{verdict.why}, but the event opts out of quarantine")
    author = message.agent or principal.name
    await run_in_threadpool(engine.take_health_event, message.nodeName, verdict, message.model_dump(), author)
    return JSONResponse({"node": message.nodeName, "action": verdict.action, "why": verdict.why}, status_code=202)
