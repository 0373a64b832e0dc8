"""Routes of operators' orders: pin, freeze, exclude, release; and the reset of the cordon breaker."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from ..fleet.errors import BadInput
from ..fleet.tables import NEVER_S
from .http import Refusal, body_of, engine_of, index_of, require_operator, require_viewer
from .messages import OverrideOrder, parse
from .store import Override

router = APIRouter(prefix="/v1")


def _json(order: Override) -> dict[str, Any]:
    out = asdict(order)
    out["until_s"] = None if order.until_s >= NEVER_S else order.until_s
    out["cap_w"] = order.cap_w or None
    return out


@router.post("/overrides")
async def post_override(request: Request) -> JSONResponse:
    """Pin, freeze, exclude, cordon, drain or release a node."""
    engine = engine_of(request)
    principal = require_operator(request)
    message = parse(OverrideOrder, await body_of(request))
    index_of("node", engine.fleet.node_index, message.node)
    if message.kind == "release":
        if message.node not in engine.orders:
            raise Refusal(404, f"no order stands for {message.node}; see GET /v1/overrides")
        await run_in_threadpool(engine.release, message.node, principal.name)
        return JSONResponse({"node": message.node, "order": None})
    if (message.cap_w is None) == (message.kind == "pin"):
        raise BadInput("cap_w: a pin needs one, other orders have none")
    if message.until_s is not None and message.for_s is not None:
        raise BadInput("until_s, for_s: give one of the two, or neither for an order without an end")
    until_s = NEVER_S if message.until_s is None else message.until_s
    if message.for_s is not None:
        until_s = engine.clock.now_s() + message.for_s
    order = await run_in_threadpool(
        engine.order, message.node, message.kind, principal.name, message.reason, message.cap_w or 0, until_s
    )
    return JSONResponse({"node": message.node, "order": _json(order)}, status_code=201)


@router.get("/overrides")
async def get_overrides(request: Request) -> JSONResponse:
    """Orders that stand, by node."""
    require_viewer(request)
    return JSONResponse([_json(order) for _, order in sorted(engine_of(request).orders.items())])


@router.post("/cordon-breaker:reset")
async def reset_cordon_breaker(request: Request) -> JSONResponse:
    """Let faulty nodes be drained again after the cordon breaker tripped."""
    engine = engine_of(request)
    principal = require_operator(request)
    engine.reset_breaker(principal.name)
    return JSONResponse({"reset_by": principal.name})
