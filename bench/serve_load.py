"""A server under load: replies per second, latency, wrong replies, beside other servers; and kills at random moments.

    python bench/serve_load.py load --url http://127.0.0.1:8000/v1 --questions asked.csv --clients 64 --seconds 60
    python bench/serve_load.py load --url http://127.0.0.1:8000/v1 --url http://127.0.0.1:8080/v1 …   # side by side
    python bench/serve_load.py kill --runs runs --moments 50 [--db postgresql://…]

`asked.csv` has the columns question and answer: questions whose reply is known. Start daedap with
`--requests-per-minute 0`; any server with OpenAI's /v1/chat/completions can stand beside it (`daedap export` for
llama.cpp or vLLM). With several URLs, they take turns of ten seconds, so that all of them meet the same machine.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from daedap.database.connection import Database
from daedap.database.conversations import ConversationStore
from daedap.database.lessons import LessonStore

TURN = 10.0
"""Seconds that one server is asked before the next one's turn."""


@dataclass
class Tally:
    """What one server did."""

    seconds: list[float] = field(default_factory=list)
    """Of each reply."""
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    """Replies that are another question's answer."""
    asked_for: float = 0.0
    """Seconds in which it was asked."""

    def line(self) -> str:
        """For a table."""
        times = sorted(self.seconds) or [0.0]
        p50, p95 = statistics.median(times), times[int(0.95 * (len(times) - 1))]
        rate = len(self.seconds) / max(self.asked_for, 1e-9)
        return (
            f"{rate:8.1f} replies/s   p50 {1000 * p50:7.1f} ms   p95 {1000 * p95:7.1f} ms   "
            f"wrong {self.wrong}   {dict(self.statuses)}"
        )


def load(urls: list[str], file: Path, clients: int, seconds: float) -> None:
    """Ask all servers by turns and print what came of it."""
    with file.open(encoding="utf-8-sig", newline="") as table:
        rows = [(row["question"], row["answer"]) for row in csv.DictReader(table)]
    tallies = {url: Tally() for url in urls}
    left = dict.fromkeys(urls, seconds)
    for url in itertools.cycle(urls):
        if not any(left.values()):
            break
        turn = min(TURN, left[url])
        left[url] -= turn
        if turn:
            _ask_for(url, rows, clients, turn, tallies[url])
    for url, tally in tallies.items():
        print(f"{url:40} {tally.line()}")


def _ask_for(url: str, rows: list[tuple[str, str]], clients: int, seconds: float, tally: Tally) -> None:
    end, lock, answers = time.monotonic() + seconds, threading.Lock(), {answer for _, answer in rows}
    model = httpx2.get(f"{url}/models").json()["data"][0]["id"]

    def client(seed: int) -> None:
        rng = random.Random(seed)
        with httpx2.Client(timeout=60) as http:
            while time.monotonic() < end:
                question, answer = rng.choice(rows)
                body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 64}
                started = time.monotonic()
                try:
                    response = http.post(f"{url}/chat/completions", json=body)
                    status, took = str(response.status_code), time.monotonic() - started
                except httpx2.TransportError as error:
                    status, took = type(error).__name__, 0.0
                with lock:
                    tally.statuses[status] += 1
                    if status == "200":
                        text = response.json()["choices"][0]["message"]["content"]
                        tally.seconds.append(took)
                        tally.wrong += text != answer and text in answers
                if status == "429":
                    time.sleep(float(response.headers.get("retry-after", 1)))

    started = time.monotonic()
    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tally.asked_for += time.monotonic() - started


@dataclass
class Acknowledged:
    """What the server said it has done, until it died."""

    replies: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Id → question, answer, vote."""
    lessons: dict[str, str] = field(default_factory=dict)
    """Id of a correction → its answer."""

    def missing_from(self, database: Database) -> list[str]:
        """Ids of what is not in the database as it was acknowledged."""
        store, lessons = ConversationStore(database), {one.id: one.answer for one in LessonStore(database).all()}
        kept = {id: (one.question, one.answer, one.vote) for id in self.replies if (one := store.reply(id))}
        lost = [id for id, response in self.replies.items() if kept.get(id) != response]
        return lost + [id for id, answer in self.lessons.items() if lessons.get(id) != answer]


def kill(runs: Path, moments: int, db: str | None, seed: int) -> None:
    """Kill the server again and again under load; every acknowledged message, vote and correction must be kept."""
    rng, lost, replies, lessons = random.Random(seed), 0, 0, 0
    for moment in range(moments):
        response = Acknowledged()
        process, url, _ = start_server(runs, db)
        talkers = [threading.Thread(target=_talk, args=(url, response)) for _ in range(8)]
        for talker in talkers:
            talker.start()
        time.sleep(rng.uniform(0.05, 3.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for talker in talkers:
            talker.join()
        database = Database.open(db, runs)
        missing = response.missing_from(database)
        if database.is_sqlite:
            with database.read() as connection:
                assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        database.close()
        lost, replies, lessons = lost + len(missing), replies + len(response.replies), lessons + len(response.lessons)
        counts = f"{len(response.replies):5} replies, {len(response.lessons):5} corrections"
        print(f"{moment + 1:3} {counts}, {len(missing)} lost")
    print(f"{replies} messages with their votes and {lessons} corrections acknowledged, {lost} lost")
    sys.exit(bool(lost))


def start_server(runs: Path, db: str | None, *options: str) -> tuple[subprocess.Popen[str], str, list[str]]:
    """A server that is ready, its address, and the lines that it logs."""
    words = ["serve", "--runs", str(runs), "--port", "0", "--requests-per-minute", "0", *options]
    words += ["--db", db] if db else []
    environment = {**os.environ, "DAEDAP_LANG": "en"}
    process = subprocess.Popen(
        [sys.executable, "-m", "daedap", *words], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr
    log: list[str] = []
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            threading.Thread(target=log.extend, args=(process.stderr,), daemon=True).start()
            httpx2.get(f"{found[0]}/ready", timeout=60).raise_for_status()
            return process, found[0], log
    raise SystemExit("the server did not start")


def _talk(url: str, response: Acknowledged) -> None:
    """Ask, vote and correct until the server dies."""
    with httpx2.Client(base_url=url, timeout=60) as client:
        try:
            for number in itertools.count():
                reply = client.post("/api/ask", json={"question": f"질문 {number}"}).raise_for_status().json()
                vote = "bad" if number % 2 else "good"
                client.put(f"/api/replies/{reply['id']}/vote", json={"vote": vote}).raise_for_status()
                response.replies[reply["id"]] = (reply["question"], reply["answer"], vote)
                right = {"reply": reply["id"], "answer": f"바른 대답 {number}"}
                taught = client.post("/api/corrections", json=right).raise_for_status().json()["lesson"]
                response.lessons[taught["id"]] = taught["answer"]
        except (httpx2.TransportError, json.JSONDecodeError):
            return


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    loading = commands.add_parser("load")
    loading.add_argument("--url", action="append", required=True)
    loading.add_argument("--questions", type=Path, required=True)
    loading.add_argument("--clients", type=int, default=64)
    loading.add_argument("--seconds", type=float, default=60)
    killing = commands.add_parser("kill")
    killing.add_argument("--runs", type=Path, required=True)
    killing.add_argument("--moments", type=int, default=50)
    killing.add_argument("--db")
    killing.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.command == "load":
        load(given.url, given.questions, given.clients, given.seconds)
    else:
        kill(given.runs, given.moments, given.db, given.seed)


if __name__ == "__main__":
    main()
