"""KakaoTalk, as a skill server sees it: requests at a steady rate, all at once, twice, broken, and too large.

    daedap serve --kakao --requests-per-minute 0
    python bench/channel_load.py --url http://127.0.0.1:8000/channels/kakao/SECRET --questions asked.csv

`asked.csv` has a column question. Three parts, each by people of its own, as one person may ask 30 times a minute:

- `steady`: so many requests a second, sent on time whether or not earlier ones are answered; seconds are counted from
  the moment at which a request was due. Every twentieth is sent once more, as Kakao does when it has given up.
- `at once`: so many people in the same moment, a few times.
- `broken`: no JSON, other JSON, wrong types, a wrong secret, a megabyte too many.

A deadline is missed by an answer that takes longer than 5 seconds, and by one that only asks to come back later.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

DEADLINE = 5.0
PUT_OFF = ("잠시 뒤에 다시", "try again", "ask again")
"""In answers that are none: too many ask, or it took too long."""
REPEATED = 20
"""One request of so many is sent twice."""
BROKEN: list[bytes] = [
    b"{",
    b"",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"userRequest": {"utterance": 7, "user": {"id": "u"}}}',
    b'{"userRequest": {"utterance": "\\ud800", "user": {"id": "\\ud800"}}}',
    b'{"userRequest": {"utterance": "?", "user": {"id": ""}}, "action": 7}',
    json.dumps({"userRequest": {"utterance": "가" * 5000, "user": {"id": "u"}}}).encode(),
    b"x" * ((1 << 20) + 1),
]


@dataclass
class Tally:
    """What came of the requests of one part."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    """Deadlines."""
    answered_otherwise: int = 0
    """Repetitions whose answer is not that of the first request."""

    def line(self, name: str) -> str:
        """For a table."""
        times = sorted(self.seconds) or [0.0]
        p50, p99 = (1000 * times[round(share * (len(times) - 1))] for share in (0.5, 0.99))
        return (
            f"{name:8} {len(self.seconds):5} answered   "
            f"p50 {p50:.1f} ms   p99 {p99:.1f} ms   longest {1000 * times[-1]:.1f} ms   "
            f"deadlines missed {self.missed}   repetitions answered otherwise {self.answered_otherwise}   "
            f"{dict(self.statuses)}"
        )


def skill_request(question: str, user: str) -> dict[str, Any]:
    """What Kakao sends from a fallback block."""
    block = {"id": "block", "name": "폴백 블록"}
    return {
        "intent": {**block, "extra": {"reason": {"code": 1, "message": "OK"}}},
        "userRequest": {
            "timezone": "Asia/Seoul",
            "params": {"surface": "Kakaotalk.plusfriend"},
            "block": block,
            "utterance": question,
            "lang": "ko",
            "user": {"id": user, "type": "botUserKey", "properties": {"plusfriendUserKey": user}},
        },
        "contexts": [],
        "bot": {"id": "bot", "name": "bot"},
        "action": {"name": "bot", "clientExtra": None, "params": {}, "id": "action", "detailParams": {}},
    }


async def ask(client: httpx2.AsyncClient, url: str, body: dict[str, Any], due: float, tally: Tally) -> Any:
    """The answer to a request that was due at a time of the monotonic clock; None: there is none."""
    try:
        response = await client.post(url, json=body)
    except httpx2.TransportError as error:
        tally.statuses[type(error).__name__] += 1
        tally.missed += 1
        return None
    tally.statuses[str(response.status_code)] += 1
    seconds = time.monotonic() - due
    if response.status_code != 200:
        return None
    tally.seconds.append(seconds)
    answer = response.json()
    text = answer.get("template", {}).get("outputs", [{}])[0].get("simpleText", {}).get("text", "")
    tally.missed += seconds > DEADLINE or not text or any(words in text for words in PUT_OFF)
    return answer


async def steady(url: str, questions: Iterator[str], requests: int, rate: float) -> Tally:
    """So many requests, `rate` a second; every twentieth twice."""
    tally, start = Tally(), time.monotonic() + 0.1

    async def one(number: int, question: str) -> None:
        due, body = start + number / rate, skill_request(question, f"steady{number}")
        await asyncio.sleep(due - time.monotonic())
        first = asyncio.create_task(ask(client, url, body, due, tally))
        if number % REPEATED == 0:
            await asyncio.sleep(0.01)
            again = await ask(client, url, body, time.monotonic(), tally)
            tally.answered_otherwise += again != await first
        await first

    async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=None)) as client:
        await asyncio.gather(*(one(number, next(questions)) for number in range(requests)))
    return tally


async def at_once(url: str, questions: Iterator[str], people: int, times: int) -> Tally:
    """So many people in the same moment, so many times."""
    tally = Tally()
    async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=None)) as client:
        for round_ in range(times):
            bodies = [skill_request(next(questions), f"once{round_}.{number}") for number in range(people)]
            due = time.monotonic()
            await asyncio.gather(*(ask(client, url, body, due, tally) for body in bodies))
    return tally


async def broken(url: str) -> Tally:
    """What no platform should send."""
    tally, headers = Tally(), {"Content-Type": "application/json"}
    async with httpx2.AsyncClient(timeout=60) as client:
        for where, body in [
            *((url, body) for body in BROKEN),
            (f"{url}x", json.dumps(skill_request("?", "u")).encode()),
        ]:
            try:
                response = await client.post(where, content=body, headers=headers)
                tally.statuses[str(response.status_code)] += 1
            except httpx2.TransportError as error:  # refused before all of it was sent
                tally.statuses[type(error).__name__] += 1
    return tally


async def measure(given: argparse.Namespace) -> bool:
    """Print all parts; whether none has missed a deadline, failed or answered a repetition otherwise."""
    with given.questions.open(encoding="utf-8-sig", newline="") as table:
        questions = itertools.cycle([row["question"] for row in csv.DictReader(table)])
    tallies = {
        "steady": await steady(given.url, questions, given.requests, given.rate),
        "at once": await at_once(given.url, questions, given.people, given.times),
        "broken": await broken(given.url),
    }
    for name, tally in tallies.items():
        print(tally.line(name))
    failed = sum(count for tally in tallies.values() for status, count in tally.statuses.items() if status[0] == "5")
    return not failed and not any(tally.missed or tally.answered_otherwise for tally in tallies.values())


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the skill, with its secret")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=20, help="requests a second")
    parser.add_argument("--people", type=int, default=64, help="who ask at once")
    parser.add_argument("--times", type=int, default=5, help="how often they do")
    sys.exit(not asyncio.run(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
