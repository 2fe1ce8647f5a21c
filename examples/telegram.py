"""A Telegram bot that answers from daedap, by the standard library alone.

    daedap serve
    TELEGRAM_TOKEN=123:abc python examples/telegram.py

The token comes from @BotFather. DAEDAP_URL and DAEDAP_API_KEY name another server and its key. daedap does not keep
these conversations, unless it was started with --store-api.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

TELEGRAM = os.environ.get("TELEGRAM_URL", "https://api.telegram.org")
DAEDAP = os.environ.get("DAEDAP_URL", "http://127.0.0.1:8000")
NOTICE = "AI가 답해요. 틀릴 수 있어요. 궁금한 것을 물어보세요."
LONGEST = 4000  # characters: Telegram takes 4,096


def call(url: str, body: dict[str, Any], key: str = "", timeout: float = 60) -> Any:
    """POST JSON, and read JSON."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=timeout) as response:
        return json.load(response)


def message_for(chat: int, text: str) -> dict[str, Any]:
    """What is sent to a chat for what was written there; suggestions become buttons."""
    if text.startswith("/start"):
        return {"chat_id": chat, "text": NOTICE}
    asked = {"model": "daedap", "messages": [{"role": "user", "content": text}]}
    (choice,) = call(f"{DAEDAP}/v1/chat/completions", asked, os.environ.get("DAEDAP_API_KEY", ""))["choices"]
    sent: dict[str, Any] = {"chat_id": chat, "text": choice["message"]["content"][:LONGEST]}
    if suggestions := choice.get("daedap", {}).get("suggestions"):
        keys = [[{"text": question}] for question in suggestions]
        sent["reply_markup"] = {"keyboard": keys, "one_time_keyboard": True, "resize_keyboard": True}
    return sent


def poll(api: str, offset: int) -> int:
    """Answer what has come since; returns where to go on, so that nothing is answered twice."""
    for update in call(f"{api}/getUpdates", {"offset": offset, "timeout": 30})["result"]:
        offset = update["update_id"] + 1
        message = update.get("message", {})
        if text := message.get("text"):
            try:
                call(f"{api}/sendMessage", message_for(message["chat"]["id"], text))
            except (URLError, TimeoutError) as error:  # this one is lost; the next ones are answered
                print("not answered:", error)  # noqa: T201
    return offset


def main() -> None:
    """Answer until Ctrl-C."""
    api, offset = f"{TELEGRAM}/bot{os.environ['TELEGRAM_TOKEN']}", 0
    while True:
        try:
            offset = poll(api, offset)
        except (URLError, TimeoutError) as error:
            print("Telegram can't be reached:", error)  # noqa: T201
            time.sleep(5)


if __name__ == "__main__":
    main()
