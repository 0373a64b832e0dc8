"""The HTTP face of an engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from . import agent_routes, operator_routes, override_routes
from .auth import Auth
from .engine import Engine
from .http import install_refusals, require_viewer
from .metrics import make_registry, render_metrics

DASHBOARD = Path(__file__).parent / "dashboard" / "index.html"

# the page loads nothing from elsewhere and may not be framed
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def create_app(engine: Engine, auth: Auth, runs_engine: bool = False) -> FastAPI:
    """The service's application.

    Args:
        engine: The loop behind it.
        auth: Who may do what.
        runs_engine: Start and stop the engine's thread, and close its store, with the application.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if runs_engine:
            engine.start()
        try:
            yield
        finally:
            if runs_engine:
                engine.stop()
                engine.store.close()

    # the interactive documentation pages load scripts from elsewhere
    app = FastAPI(title="Flyball", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.engine, app.state.auth = engine, auth
    install_refusals(app)
    app.include_router(agent_routes.router)
    app.include_router(operator_routes.router)
    app.include_router(override_routes.router)
    registry = make_registry(engine)
    page = DASHBOARD.read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse)
    async def dashboard() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.get("/healthz")
    async def alive() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        problems = engine.problems()
        return JSONResponse({"ready": not problems, "problems": problems}, 503 if problems else 200)

    @app.get("/metrics")
    async def metrics(request: Request) -> PlainTextResponse:
        require_viewer(request)
        return PlainTextResponse(render_metrics(registry), media_type=CONTENT_TYPE_LATEST)

    return app
