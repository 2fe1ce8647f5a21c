"""The web application: routes, error shape, static files, put together for one process."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from daedap.errors import DaedapError, RunError, StorageError
from daedap.serve.admin import login_router
from daedap.serve.admin import router as admin_router
from daedap.serve.channels.kakao import router as kakao_router
from daedap.serve.channels.naver import router as naver_router
from daedap.serve.errors import ApiError
from daedap.serve.logs import log_failure
from daedap.serve.metrics import forget_process
from daedap.serve.openai import router as openai_router
from daedap.serve.page import router as page_router
from daedap.serve.pages import PageFiles
from daedap.serve.pages import router as pages_router
from daedap.serve.security import Guard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp

    from daedap.serve.channels.common import Channels
    from daedap.serve.service import Service


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
    _add_refusal_handlers(app)
    _add_failure_handlers(app)
    _add_health(app, service)
    app.include_router(openai_router)
    for name, router in (("kakao", kakao_router), ("naver", naver_router)):
        if channels and name in channels.secrets:
            app.include_router(router)
    if service.options.page:
        app.include_router(page_router)
        app.include_router(login_router)
        app.include_router(admin_router)
        app.include_router(pages_router)
        app.mount("/static", PageFiles(), name="static")
    return Guard(app, service)


def _add_refusal_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _invalid(error).response()

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        hint = " Use /v1/chat/completions." if error.status_code == 404 and request.url.path.startswith("/v1/") else ""
        return ApiError(error.status_code, code, f"{error.detail}: {request.method}.{hint}").response()


def _add_failure_handlers(app: FastAPI) -> None:
    @app.exception_handler(DaedapError)
    async def mistake(request: Request, error: DaedapError) -> JSONResponse:
        if isinstance(error, RunError | StorageError):  # the server's fault; the text holds local paths
            log_failure(error)
            return ApiError(500, "server_error", "The server can't answer right now.").response()
        return ApiError(400, "invalid_request", str(error)).response()

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "internal", "Something went wrong here.").response()  # and the guard logs where

    @app.exception_handler(DataError)
    async def no_data(request: Request, error: DataError) -> JSONResponse:
        return ApiError(400, "invalid_request", "The database can't hold one of the values.").response()

    @app.exception_handler(PoolTimeoutError)
    @app.exception_handler(DBAPIError)
    async def no_database(request: Request, error: Exception) -> JSONResponse:
        log_failure(error)
        return ApiError(503, "not_ready", "The database can't be used right now.", retry_after=5).response()


def _invalid(error: RequestValidationError) -> ApiError:
    """The first validation error, without the rejected input."""
    first: dict[str, Any] = error.errors()[0]
    place = [str(part) for part in first["loc"][1:]]
    where = ".".join(place)
    return ApiError(400, "invalid_request", f"{where or 'body'}: {first['msg']}", param=where or None)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/health", include_in_schema=False)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", include_in_schema=False)
    def ready() -> dict[str, Any]:
        service.lessons.revision()  # the database answers
        return {"status": "ready", "run": service.bots.current.run.number}

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")
