"""The web application of one process: routes and pages put together, and one shape for all errors."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from daedap.errors import DaedapError, RunError, StorageError
from daedap.i18n import about_file
from daedap.serve.admin import login_router, run_record
from daedap.serve.admin import router as admin_router
from daedap.serve.channels.kakao import router as kakao_router
from daedap.serve.channels.naver import router as naver_router
from daedap.serve.errors import ApiError
from daedap.serve.observability import forget_process, log_failure
from daedap.serve.openai import router as openai_router
from daedap.serve.page import ServiceDep, owner_of
from daedap.serve.page import router as page_router
from daedap.serve.security import Guard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp

    from daedap.serve.channels.common import Channels
    from daedap.serve.service import Service

_STATIC = Path(__file__).parent / "static"
_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""A report holds its stylesheet, and no script."""


def build_app(service: Service, channels: Channels | None = None) -> ASGIApp:
    """The app of a server, and of the channels in which it answers, too."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield
            if channels:
                await channels.drain()
        forget_process()

    app = FastAPI(title="daedap", version=version("daedap"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service, app.state.channels = service, channels
    for kind in (ApiError, DaedapError, RequestValidationError, HTTPException, DBAPIError, PoolTimeoutError, Exception):
        app.add_exception_handler(kind, _refuse)
    routers = [health_router, openai_router]
    for name, router in (("kakao", kakao_router), ("naver", naver_router)):
        if channels and name in channels.secrets:
            routers.append(router)
    if service.options.page:
        routers += [page_router, login_router, admin_router, pages_router]
        app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    for router in routers:
        app.include_router(router)
    return Guard(app, service.options, service.request_limit, service.metrics)


# ---- errors ----


async def _refuse(request: Request, error: Exception) -> Response:
    return (_clients_fault(request, error) or _servers_fault(error)).response()


def _clients_fault(request: Request, error: Exception) -> ApiError | None:
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            first: dict[str, Any] = error.errors()[0]  # without the rejected input
            where = ".".join(str(part) for part in first["loc"][1:])
            return ApiError(400, "invalid_request", f"{where or 'body'}: {first['msg']}", param=where or None)
        case HTTPException(status_code=status):
            code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
            hint = " Use /v1/chat/completions." if status == 404 and request.url.path.startswith("/v1/") else ""
            return ApiError(status, code, f"{error.detail}: {request.method}.{hint}")
        case DataError():
            return ApiError(400, "invalid_request", "The database can't hold one of the values.")
        case DaedapError() if not isinstance(error, RunError | StorageError):  # their texts hold local paths
            return ApiError(400, "invalid_request", str(error))
    return None


def _servers_fault(error: Exception) -> ApiError:
    """An error that is told without its text, and logged; the guard logs those that nobody has expected."""
    match error:
        case DBAPIError() | PoolTimeoutError():
            log_failure(error)
            return ApiError(503, "not_ready", "The database can't be used right now.", retry_after=5)
        case RunError() | StorageError():
            log_failure(error)
            return ApiError(500, "server_error", "The server can't answer right now.")
    return ApiError(500, "internal", "Something went wrong here.")


# ---- health ----

health_router = APIRouter(include_in_schema=False)


@health_router.get("/health")
async def health() -> dict[str, str]:
    """That the process answers."""
    return {"status": "ok"}


@health_router.get("/ready")
def ready(server: ServiceDep) -> dict[str, Any]:
    """That the database answers, too."""
    server.lessons.revision()
    return {"status": "ready", "run": server.bots.current.run.number}


@health_router.get("/metrics")
def metrics(server: ServiceDep) -> Response:
    """For Prometheus."""
    return Response(server.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


# ---- pages ----

pages_router = APIRouter(include_in_schema=False)


@pages_router.get("/")
async def chat() -> FileResponse:
    """The chat."""
    return FileResponse(_STATIC / "index.html")


@pages_router.get("/admin")
async def admin() -> FileResponse:
    """The admin page, or its login."""
    return FileResponse(_STATIC / "admin.html")


@pages_router.get("/admin/runs/{number}/report")
def report(number: int, server: ServiceDep, request: Request) -> Response:
    """What `daedap report` writes; whoever is not the owner is led to the login."""
    from daedap.evaluation.diagnose import diagnose
    from daedap.evaluation.report import report_page  # with jinja2, which the server can start without

    if not owner_of(request):
        return RedirectResponse("/admin", status_code=303)
    record = run_record(server, number)
    with about_file(korean=record.korean):
        html = report_page(record, diagnose(record))
    return HTMLResponse(html, headers={"Content-Security-Policy": _REPORT_POLICY, "Cache-Control": "no-store"})
