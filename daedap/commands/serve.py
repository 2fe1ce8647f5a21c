"""`daedap serve`: a chat page, an admin page and OpenAI's API in one process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from daedap.config import RUNS, AnswerOptions
from daedap.errors import SettingsError
from daedap.i18n import tell, translate
from daedap.runs import find
from daedap.serve.options import ServeOptions


def serve(
    *,
    run: str = "latest",
    serve_options: Annotated[ServeOptions, Parameter(name="*")] = ServeOptions(),
    answer_options: Annotated[AnswerOptions, Parameter(name="*")] = AnswerOptions(),
    runs: Path = RUNS,
) -> None:
    """Serve a run: a chat page, the admin page, and OpenAI's API under /v1. Ctrl-C stops it.

    Raises RunError, SettingsError and StorageError.

    Parameters
    ----------
    run
        Number, latest or best.
    runs
        Folder of the runs.
    """
    _require_server()
    options = replace(
        serve_options,
        api_key=serve_options.api_key or os.environ.get("DAEDAP_API_KEY"),
        naver_token=serve_options.naver_token or os.environ.get("DAEDAP_NAVER_TOKEN"),
    )
    if options.is_public and not options.api_keys:
        raise SettingsError(
            "--host {host}: other machines could use the API without a key.",
            "Set one: DAEDAP_API_KEY=… daedap serve --host {host}",
            host=options.host,
        )
    if options.watch and run not in ("latest", "best"):
        raise SettingsError("--watch takes new runs, and --run {run} names one.", "Use --run latest.", run=run)
    from daedap.serve.server import (
        PASSWORD,
        Served,
        channel_secrets,
        listen,
        owner_password,
        serve_many,
        serve_one,
    )  # a second to import

    number = find(run, runs).number
    owner_password(options, runs)  # makes it, should this be the first start
    served = Served(run, runs, options, answer_options)
    with listen(options.host, options.port) as listening:
        where = f"http://{_shown(options.host)}:{listening.getsockname()[1]}"
        app = served.app() if options.workers == 1 else None  # several processes open their bots themselves
        tell([translate("Run {number} answers at {url} (Ctrl-C stops it)", number=number, url=where)])
        if options.page and not (options.owner_password or os.environ.get("DAEDAP_OWNER_PASSWORD")):
            message = "The admin page: {url}/admin, its password is in {file}"
            tell([translate(message, url=where, file=runs / PASSWORD)])
        tell(_channel_lines(options, where, channel_secrets(options, runs)))
        if app:
            serve_one(app, options, listening)
        else:
            serve_many(served, listening)


def _channel_lines(options: ServeOptions, where: str, secrets: Mapping[str, str]) -> list[str]:
    """What to paste where, for each channel."""
    public = f"https://{options.allowed_hosts[0]}" if options.allowed_hosts else where
    lines = []
    for channel, secret in secrets.items():
        template = (
            "KakaoTalk: make a skill with this URL at https://chatbot.kakao.com: {url}"
            if channel == "kakao"
            else "Naver TalkTalk: enter this webhook at https://partner.talk.naver.com, under Chatbot API: {url}"
        )
        lines.append(translate(template, url=f"{public}/channels/{channel}/{secret}"))
    if secrets and not options.allowed_hosts:
        lines.append(
            translate("They reach only a server on the web, under its own name: --allowed-hosts chat.example.com")
        )
    return lines


def _require_server() -> None:
    """Raise SettingsError when a package of the extra is missing."""
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if not find_spec(name)]
    if missing:
        raise SettingsError(
            "daedap serve needs {names}, which is not installed.",
            'Install it: pip install "daedap[serve]"',
            names=", ".join(missing),
        )


def _shown(host: str) -> str:
    """An address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
