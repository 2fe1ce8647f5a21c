"""The pages for people: the chat, the admin page, a run's report; and the files they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from daedap.errors import RunError
from daedap.evaluation.run_record import read_run_record
from daedap.i18n import about_file
from daedap.serve.errors import ApiError, not_found
from daedap.serve.page import Server, owner_of

if TYPE_CHECKING:
    from os import PathLike

_STATIC = Path(__file__).parent / "static"
_FRESH = {"Cache-Control": "no-cache"}
"""Asked for anew each time (mostly answered with 304): modules of two versions would not understand each other."""
_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""A report holds its stylesheet, and no script."""

router = APIRouter(include_in_schema=False)


class PageFiles(StaticFiles):
    """Scripts and stylesheet of the pages."""

    def __init__(self) -> None:
        super().__init__(directory=_STATIC)

    def file_response(self, full_path: str | PathLike[str], *arguments: Any, **options: Any) -> Response:
        """A file, or that it has not changed."""
        response = super().file_response(full_path, *arguments, **options)
        response.headers.update(_FRESH)
        return response


@router.get("/")
async def chat() -> FileResponse:
    """The chat."""
    return FileResponse(_STATIC / "index.html", headers=_FRESH)


@router.get("/admin")
async def admin() -> FileResponse:
    """The admin page, or its login."""
    return FileResponse(_STATIC / "admin.html", headers=_FRESH)


@router.get("/admin/runs/{number}/report")
def report(number: int, server: Server, request: Request) -> Response:
    """What `daedap report` writes; whoever is not the owner is led to the login."""
    from daedap.evaluation.diagnose import diagnose
    from daedap.evaluation.report import report_page  # with jinja2, which the server can start without

    if not owner_of(request):
        return RedirectResponse("/admin", status_code=303)
    run = next((run for run in server.bots.complete() if run.number == number), None)
    if not run:
        raise not_found("run")
    try:
        record = read_run_record(run)
    except RunError as error:
        raise ApiError(409, "conflict", "The run is damaged: daedap report tells more.") from error
    with about_file(korean=record.korean):
        html = report_page(record, diagnose(record))
    return HTMLResponse(html, headers={"Content-Security-Policy": _REPORT_POLICY, "Cache-Control": "no-store"})
