"""KakaoTalk chats as the app exports them: text from a PC or a phone, or a table of date, user and message."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

from daedap.data.clean import BadRow, excerpt
from daedap.data.jsonl import Conversation
from daedap.data.tables import Record, records
from daedap.korean.text import nfc
from daedap.types import Pair

PAUSE = timedelta(hours=1)
"""After a longer silence a new conversation begins: what is said then seldom answers what was said before."""

_TIME = r"(?:(?P<half>오전|오후) )?(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::\d{2})?(?: (?P<am>[AP]M))?"
_DATE = (
    r"(?:(?P<year>\d{4})[년.] ?(?P<month>\d{1,2})[월.] ?(?P<day>\d{1,2})[일.]?"
    r"|(?:[A-Z][a-z]+, )?(?P<name>[A-Z][a-z]{2,8}) (?P<day_en>\d{1,2}), (?P<year_en>\d{4}))"
)
_PC = re.compile(rf"\[(?P<speaker>.*?)\] \[{_TIME}\](?: (?P<text>.*))?$")
_RULE = re.compile(rf"-{{5,}} {_DATE}(?: \S+)? -{{5,}}$")
_PHONE = re.compile(rf"{_DATE}(?: at|,)? {_TIME}(?P<rest>[,:] ?.*)$")
_DAY = re.compile(rf"{_DATE}(?: .요일)?(?: {_TIME})?$")
_HEADER = re.compile(r"(.*님과 카카오톡 대화|.* 카카오톡 대화|.* with KakaoTalk Chats|KakaoTalk Chats with .*)$")
_SAVED = re.compile(r"(저장한 날짜|Date Saved) ?: ")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SYSTEM = re.compile(
    r".+님이 (나갔습니다|들어왔습니다)\.|.+님이 .+님을 (초대했습니다|초대하였습니다|내보냈습니다)\."
    r"|.+님을 내보냈습니다\.|채팅방 관리자가 메시지를 가렸습니다\.|운영정책을 위반한 메시지로 .*"
    r"|\S+ (left|joined this chatroom|invited .+)\."
)
_ATTACHMENT = re.compile(
    r"사진( \d+장)?|동영상|이모티콘|음성메시지|\(?삭제된 메시지입니다\.?\)?|(파일|연락처|지도|위치|샵검색): .*"
    r"|(보이스톡|페이스톡|라이브톡|보이스룸|그룹콜)( .*|\d.*)?|(Photo|Video|Emoticon)s?|videos|\d+ photos|Voice Note"
    r"|File: .*|(Voice|Video) Call.*|This message was deleted\.",
    re.DOTALL,
)


@dataclass(frozen=True)
class Said:
    """One message."""

    line: int
    speaker: str
    text: str
    at: datetime


def is_chat(sample: Sequence[str]) -> bool:
    """Whether a text file begins like an exported chat."""
    lines = [line.rstrip("\r\n") for line in sample]
    titled = any(_HEADER.match(line) for line in lines[:3]) and any(_SAVED.match(line) for line in lines[:5])
    return titled or any(isinstance(_begun(line, date.min, 0), Said) for line in lines)


def is_chat_table(names: Sequence[str]) -> bool:
    """Whether the first row of a table is that of an exported chat."""
    return [name.strip().casefold() for name in names] == ["date", "user", "message"]


def messages(lines: Iterable[str], delimiter: str) -> Iterator[Said | BadRow]:
    """Messages of an export: a table when it has a `delimiter`, else text."""
    return chat_records(records(lines, delimiter)) if delimiter else chat_lines(lines)


def chat_lines(lines: Iterable[str]) -> Iterator[Said | BadRow]:
    """Messages of a `.txt` export; a line that begins no message goes on with the last one."""
    day, open_, more = date.min, None, list[str]()
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip("\r\n")
        rule = _RULE.match(line) or _DAY.match(line)
        begun = None if rule else _begun(line, day, number)
        if not rule and not begun:
            more.append(line)
            continue
        if open_:
            yield _sorted_out(open_, more)
        if rule:
            day = _date(rule) or day
        if isinstance(begun, BadRow):
            yield begun
        open_, more = begun if isinstance(begun, Said) else None, []
    if open_:
        yield _sorted_out(open_, more)


def chat_records(found: Iterable[Record]) -> Iterator[Said | BadRow]:
    """Messages of a `.csv` export; the first record is the header."""
    for record in found:
        if not record.fields:
            yield BadRow(record.line, "quote" if record.fields is None else "blank", excerpt(record.text.strip()))
        elif not is_chat_table(record.fields):
            yield _of_record(record.line, record.fields, record.text)


def _of_record(line: int, fields: list[str], text: str) -> Said | BadRow:
    try:
        at, speaker, message = fields
        said = Said(line, nfc(speaker.strip()), message, datetime.fromisoformat(at.strip()))
    except ValueError:
        return BadRow(line, "fields", excerpt(text.strip()))
    # Only here do notices come under somebody's name; elsewhere such a text is what the person wrote.
    return BadRow(line, "system", excerpt(message)) if _SYSTEM.fullmatch(message) else _sorted_out(said, [])


def _begun(line: str, day: date, number: int) -> Said | BadRow | None:
    """The message or notice that begins in a line."""
    if found := _PC.match(line):
        at = _moment(found, day)
        speaker, text = found["speaker"], found["text"] or ""
    elif found := _PHONE.match(line):
        at = _moment(found, _date(found))
        speaker, colon, text = f"{found['rest']} ".removeprefix(", ").partition(" : ")
        if at and (not colon or found["rest"].startswith(":")):
            return BadRow(number, "system", excerpt(found["rest"].strip(",: ")))
    elif _SYSTEM.fullmatch(line):
        return BadRow(number, "system", excerpt(line))
    else:
        return None
    return Said(number, nfc(speaker.strip()), text.rstrip(), at) if at else None


def _sorted_out(said: Said, more: list[str]) -> Said | BadRow:
    """The whole message, unless it's a notice (nobody's), or stands for a picture or whatever else isn't text."""
    text = "\n".join([said.text, *more]).strip()
    if not said.speaker:
        return BadRow(said.line, "system", excerpt(text))
    if not text or _ATTACHMENT.fullmatch(text):
        return BadRow(said.line, "attachment", excerpt(text))
    return Said(said.line, said.speaker, text, said.at)


def _date(found: re.Match[str]) -> date | None:
    try:
        if found["year"]:
            return date(int(found["year"]), int(found["month"]), int(found["day"]))
        return date(int(found["year_en"]), _MONTHS.index(found["name"][:3]) + 1, int(found["day_en"]))
    except ValueError:
        return None


def _moment(found: re.Match[str], day: date | None) -> datetime | None:
    """None when there is no such date or time: then the line only looks like the beginning of a message."""
    hour = int(found["hour"])
    if half := found["half"] or found["am"]:
        hour = hour % 12 + 12 * (half in ("오후", "PM"))
    if day is None or hour > 23 or int(found["minute"]) > 59:
        return None
    return datetime.combine(day, time(hour, int(found["minute"])))


def speakers(said: Iterable[Said | BadRow]) -> Counter[str]:
    """How many messages each speaker wrote."""
    return Counter(item.speaker for item in said if isinstance(item, Said))


def chat_pairs(said: Iterable[Said | BadRow], speaker: str, name: str) -> Iterator[Pair | BadRow]:
    """What the others say is the question, what the speaker says next is the answer.

    Args:
        said: The chat, in order.
        speaker: Whose messages are the answers.
        name: The file's, for the threads.
    """
    talk, last = Conversation(""), None
    for item in said:
        if isinstance(item, BadRow):
            yield item
            continue
        if last is None or abs(item.at - last) > PAUSE:
            yield from talk.end()
            talk = Conversation(f"{name}:{item.line}")
        last = item.at
        yield from talk.add("assistant" if item.speaker == speaker else "user", item.text, item.line)
    yield from talk.end()
