"""Where a bot is served, to whom, and what is kept: the options of `daedap serve`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from daedap.config import at_least_one
from daedap.errors import SettingsError

_ORIGIN = re.compile(r"https?://(\*\.)?[A-Za-z0-9.-]+(:\d{1,5})?")
"""Nothing else may enter the header that lists them."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Addresses that only this machine reaches."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Where a bot is served, to whom, and what is kept."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: all of this machine, which demands an API key."""
    port: int = 8000
    """Port to listen at; 0: any that is free."""
    workers: int = 1
    """Processes that share the work; each holds the bot in memory."""
    watch: bool = False
    """With --run latest or best: take a new run as soon as it is complete, without a pause."""
    db: str | None = None
    """URL of a PostgreSQL database, for several machines. [default: DAEDAP_DB, else daedap.db beside the runs]"""
    api_key: str | None = None
    """Key that clients of /v1 must send; several are separated by commas. [default: DAEDAP_API_KEY]"""
    owner_password: str | None = None
    """Password of the admin page. [default: DAEDAP_OWNER_PASSWORD, else one that is made and kept beside the runs]"""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server is reached, beside localhost: chat.example.com. Several are joined by commas."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages that may call /v1 from a browser: https://www.example.com. Several are joined by commas."""
    embed_origins: tuple[str, ...] = ()
    """Web pages that may show the chat page in a frame, as widget.js does: https://www.example.com. Several are joined
    by commas."""
    kakao: bool = False
    """Answer in a KakaoTalk channel; the address for the chatbot admin centre is printed at the start."""
    kakao_callback_hosts: tuple[str, ...] = ("kakao.com", "kakaocdn.net", "kakaoenterprise.com")
    """Names to which late answers to KakaoTalk may be posted, and those below them. Several are joined by commas."""
    kakao_block: str | None = None
    """Id of a block that uses the skill: buttons in KakaoTalk then name the reply that they belong to."""
    naver: bool = False
    """Answer in Naver TalkTalk; the address of the webhook is printed at the start."""
    naver_token: str | None = None
    """Token of the TalkTalk account, with which late answers are sent. [default: DAEDAP_NAVER_TOKEN]"""
    channel_votes: bool = False
    """Ask in KakaoTalk and TalkTalk whether an answer helped, by two more buttons."""
    page: bool = True
    """Serve the chat page and the admin page; without, only the API."""
    name: str | None = None
    """Name of the bot on the page. [default: daedap]"""
    ai_notice: bool = True
    """Say on the page that an AI answers; the law of Korea asks for it."""
    store: bool = True
    """Keep conversations and votes; without, nothing that people write outlives the reply."""
    store_api: bool = False
    """Keep what comes in by /v1, too."""
    retention_days: int | None = None
    """Delete conversations so many days after their last reply. [default: keep them]"""
    requests_per_minute: int = 600
    """Most requests of one address or key in a minute; 0: no limit."""
    queue: int = 256
    """Most questions that wait; more are refused with 429 and the time to come back."""
    timeout: float = 30.0
    """Seconds that a client may take to send a request or to read a reply, and a question may wait."""

    def __post_init__(self) -> None:
        at_least_one(self, "workers", "retention_days", "queue")
        if self.requests_per_minute < 0:
            raise SettingsError(
                "--{name} {value}: must not be negative.",
                "Try 600.",
                name="requests-per-minute",
                value=self.requests_per_minute,
            )
        if not 0 <= self.port <= 65535:
            raise SettingsError("--port {value}: must lie between 0 and 65535.", "Try 8000.", value=self.port)
        for origin in self.embed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise SettingsError(
                    "--embed-origins {value}: not the origin of a web page.",
                    "Leave out everything after the name: https://www.example.com",
                    value=origin,
                )
        if not 0 < self.timeout < math.inf:
            raise SettingsError("--timeout {value}: must be more than 0.", "Try 30.", value=self.timeout)

    @property
    def channels(self) -> tuple[str, ...]:
        """The messengers in which the bot answers."""
        return ("kakao",) * self.kakao + ("naver",) * self.naver

    @property
    def is_public(self) -> bool:
        """Whether other machines reach the server."""
        return self.host not in LOOPBACK

    @property
    def api_keys(self) -> tuple[str, ...]:
        """The keys of `--api-key a,b`."""
        return tuple(key.strip() for key in (self.api_key or "").split(",") if key.strip())
