"""What every route shares: who is asking, how much may be sent, and refusals of one line."""

import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..fleet.errors import BadInput
from .auth import Auth, Principal
from .engine import Engine, NoPlan
from .store import Fenced
from .telemetry import StaleSender

log = logging.getLogger(__name__)

SMALL_BODY = 256 * 1024
"""Bytes of one report or order: a node of 1024 GPUs with their UUIDs fits well."""

BATCH_BODY = 64 * 1024 * 1024
"""Bytes of a batch or a whole snapshot: 50,000 nodes."""


class Refusal(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def refuse(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """One line in the shape that every refusal has."""
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


def install_refusals(app: FastAPI) -> None:
    """Map the package's errors to statuses."""

    def on(kind: type[Exception], answer: Callable[[Any], JSONResponse]) -> None:
        async def handler(_request: Request, error: Exception) -> JSONResponse:
            return answer(error)

        app.add_exception_handler(kind, handler)

    on(
        Refusal,
        lambda e: refuse(e.status, e.message, {"WWW-Authenticate": "Bearer"} if e.status == 401 else None),
    )
    on(BadInput, lambda e: refuse(422, str(e)))
    on(StaleSender, lambda e: refuse(409, str(e)))
    on(NoPlan, lambda e: refuse(503, str(e), {"Retry-After": "1"}))
    on(Fenced, lambda e: refuse(503, str(e)))
    on(HTTPException, lambda e: refuse(e.status_code, str(e.detail), e.headers))

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return refuse(500, "the service failed on this request; its log says why")

    app.add_exception_handler(Exception, unexpected)


def engine_of(request: Request) -> Engine:
    return request.app.state.engine


def principal_of(request: Request) -> Principal:
    """Who is asking.

    Raises:
        Refusal: 401 without a valid token.
    """
    auth: Auth = request.app.state.auth
    header = request.headers.get("authorization")
    principal = auth.identify(header)
    if principal is None:
        what = "this token is not known here" if header else "no token"
        raise Refusal(
            401,
            f"{what}; send 'Authorization: Bearer SECRET' with a secret of {auth.source or 'the token file'}",
        )
    return principal


def require_agent(request: Request, what: str) -> Principal:
    """A principal that may speak for a node, a domain:NAME or a service:NAME."""
    principal = principal_of(request)
    if not principal.may_speak_for(what):
        raise Refusal(403, f"token {principal.name!r} may not report for {what}; use the agent token of {what}")
    return principal


def require_operator(request: Request) -> Principal:
    principal = principal_of(request)
    if not principal.may_operate:
        raise Refusal(403, f"token {principal.name!r} has role {principal.role}; this needs role operator")
    return principal


def require_viewer(request: Request) -> Principal:
    principal = principal_of(request)
    if not principal.may_view:
        raise Refusal(403, f"token {principal.name!r} has role {principal.role}; this needs viewer or operator")
    return principal


async def body_of(request: Request, limit: int = SMALL_BODY) -> bytes:
    """The body, refused before it is read to the end if it is too long."""
    too_long = Refusal(413, f"body: longer than {limit} bytes; split it")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_long
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_long
        chunks.append(chunk)
    return b"".join(chunks)


def index_of(what: str, index: dict[str, int], name: str) -> int:
    """Position of a name.

    Raises:
        Refusal: 404 if the site has none of that name.
    """
    if name not in index:
        raise Refusal(404, f"the site has no {what} {name[:200]!r}; declare it in the site file or mend the name")
    return index[name]
