"""KakaoTalk chats as exported by its apps for iPhone, Android, Windows and Mac, in Korean and English.

A grammar of dates, times and line shapes instead of one pattern for each app: every app combines them differently and
changes them with its version, and spreadsheets rewrite the dates of the Mac's CSV.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

from daedap.data.clean import BadRow, excerpt
from daedap.data.conversation import Conversation
from daedap.data.tables import Record, bad_record
from daedap.korean.text import nfc
from daedap.types import Pair

PAUSE = timedelta(hours=1)
"""A longer silence begins a new conversation: later messages seldom answer earlier ones."""

_AM_PM = r"오전|오후|午前|午後|上午|下午|[AaPp]\.?\s?[Mm]\.?"
_TIME = rf"(?:(?P<half>{_AM_PM})\s?)?(?P<hour>\d{{1,2}}):(?P<minute>\d{{2}})(?::\d{{2}})?(?:\s?(?P<half2>{_AM_PM}))?"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
_WEEKDAY_EN = r"(?:(?:Mon|Tues?|Wed(?:nes)?|Thu(?:rs)?|Fri|Sat(?:ur)?|Sun)(?:day)?\.?,? )?"
_WEEKDAY_KO = r"(?: ?\(?(?:[월화수목금토일](?:요일)?|[月火水木金土日]曜日|星期[一二三四五六日])\)?)?"
_DATE = (
    rf"{_WEEKDAY_EN}(?:"
    r"(?P<year>\d{4}) ?[년年./-] ?(?P<month>\d{1,2}) ?[월月./-] ?(?P<day>\d{1,2})(?:일|日|\.(?!\d))?"
    r"|(?P<first>\d{1,2})[./-] ?(?P<second>\d{1,2})[./-] ?(?P<year2>\d{4}|\d{2})\.?"
    rf"|(?P<name>{_MONTH}) (?P<day2>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<year3>\d{{4}})"
    rf"|(?P<day3>\d{{1,2}})(?:st|nd|rd|th)? (?P<name2>{_MONTH}),? (?P<year4>\d{{4}})"
    rf"){_WEEKDAY_KO}(?:,? (?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day)?"
)
_STAMP = re.compile(rf"{_DATE}(?:,? at |, ?| ){_TIME}")
_PC = re.compile(rf"\[(?P<speaker>.*?)\] \[{_TIME}\](?: (?P<text>.*))?$")
_DAY = re.compile(rf"(?:-{{5,}} )?{_DATE}(?:,? {_TIME})?(?: -{{5,}})?$")
_PHONE = re.compile(rf"{_STAMP.pattern}(?P<rest>[,:] ?.*)$")
_TIME_ONLY = re.compile(rf"{_TIME}(?P<rest>, .*)$")
_TITLE = re.compile(r"(.*님과 카카오톡 대화|.* 카카오톡 대화|.* with KakaoTalk Chats|KakaoTalk Chats with .*)$")
_SAVED = re.compile(r"(저장한 날짜|Date Saved) ?: ")
_FILE = re.compile(r"(Talk|KakaoTalk)_\S+.*\.txt$")
_SPACES = re.compile("[\u00a0\u2007\u2009\u202f]")  # recent systems put U+202F before AM and PM

_SYSTEM = re.compile(
    r".+(?:님이|님께서|이|가) (?:채팅방을 )?(?:나갔습니다|들어왔습니다|퇴장했습니다|입장했습니다)\.?"
    r"|.+님을 (?:초대|강퇴)(?:했|하였)습니다\.?|.+님을 내보냈습니다\.?|.+님이 .+님을 .+습니다\.?"
    r"|.+(?:방장|부방장)(?:이|으로|에서) .*(?:되었|됐|변경|해제|임명).*습니다\.?"
    r"|.*채팅방 (?:이름|이미지|커버|배경|정보|설정)(?:을|를|이|가) .*(?:바꿨|바뀌었|변경(?:했|하였|되었|됐))습니다\.?"
    r"|채팅방 관리자가 메시지를 가렸습니다\.?|운영정책을 위반한 메시지로 .*|불법촬영물 ?등 .*|톡게시판 ['‘].*"
    r"|.+님이 (?:공지|투표|일정|게시글)[을를]? .*(?:등록|작성|시작|종료|마감)(?:했|하였)습니다\.?"
    r"|\S+(?: \S+){0,3} (?:left|joined|entered)(?: (?:this|the) (?:chat ?room|chat|group))?\."
    r"|\S+(?: \S+){0,3} (?:invited|removed|kicked out) .+\.|\S+(?: \S+){0,3} changed the (?:chat ?room|group) .+\."
)
"""Lines of the program that stand under no name."""
_CALLS = r"(?:그룹 ?)?(?:보이스톡|페이스톡|라이브톡|보이스룸|그룹콜)"
_ATTACHMENT = re.compile(
    r"[<‹(\[「]?(?:사진|동영상|이모티콘|스티커|음성 ?메시지|파일|연락처|지도|앨범)"
    r"(?: ?\d+ ?[장개])?(?:[을를]? ?(?:읽지|보지|받지) 않음)?[>›)\]」]?"
    r"|\(?삭제된 메시지입니다\.?\)?|메시지가 삭제되었습니다\.?|가려진 메시지입니다\.?"
    r"|(?:파일|연락처|지도|위치|샵검색|투표|일정|음악): .*|공지 ?: .*"
    rf"|{_CALLS} ?(?:해요|취소|부재중|종료|시작|참여|거절|(?:응답|수신) ?(?:없음|거부|거절)|\d+:\d+(?::\d+)?)?\.?"
    r"|선물(?: 메시지)?[을를] 보냈(?:습니다|어요)\.?|(?:송금|정산)(?: ?요청)? ?[\d,]+ ?원"
    r"|[<‹]?(?:Photo|Video|Emoticon|Sticker|Picture|Image|Voice (?:Note|Message)|Audio|Media|File)s?(?: \d+)?"
    r"(?: (?:not (?:read|viewed)|unread|omitted))?[>›]?"
    r"|\d+ (?:photos|videos|pictures|images)|(?:File|Contact|Location|Map|Poll|Event|Notice|Music): .*"
    r"|(?:(?:Group )?(?:Voice|Video) Call|Voice Talk|Face Talk|Live Talk)(?: .*|\d.*)?"
    r"|(?:This )?message (?:was|has been) deleted\.?|Deleted message\.?"
    r"|[^\s/]{1,150}\.(?:jpe?g|png|gif|webp|heic|bmp|mp4|mov|avi|mkv|3gp|m4a|mp3|wav|aac)",
    re.DOTALL | re.IGNORECASE,
)
"""What the export writes in place of photos, files, calls and deleted messages."""
_HEADER = {
    **dict.fromkeys(("date", "날짜", "일시", "日付"), "date"),
    **dict.fromkeys(("user", "사용자", "유저", "보낸사람", "ユーザー"), "user"),
    **dict.fromkeys(("message", "메시지", "메세지", "メッセージ"), "message"),
}
"""Headers of the table that the Mac's app writes."""
_PROGRAMS = frozenset({"오픈채팅봇", "방장봇", "Open Chat Bot", "OpenChat Bot"})
"""Names under which KakaoTalk itself greets and counts the members of an open chat."""


@dataclass(frozen=True)
class ChatMessage:
    """One message of a chat."""

    line: int
    speaker: str
    text: str
    at: datetime


def is_chat(sample: Sequence[str]) -> bool:
    """Whether a text file begins like an exported chat."""
    lines = [_line(raw) for raw in sample]
    titled = any(_TITLE.match(line) for line in lines[:3]) and any(_SAVED.match(line) for line in lines[:5])
    return titled or any(isinstance(_parse_line(line, None, 0), ChatMessage) for line in lines)


def chat_columns(names: Sequence[str]) -> tuple[int, int, int] | None:
    """Columns of date, user and message when a row is the header of an exported chat, else None."""
    folded = [_HEADER.get(name.strip().lstrip("\ufeff").casefold(), "") for name in names]
    complete = {"date", "user", "message"} <= {*folded}
    return (folded.index("date"), folded.index("user"), folded.index("message")) if complete else None


def text_messages(lines: Iterable[str]) -> Iterator[ChatMessage | BadRow]:
    """Messages of a `.txt` export; a line that begins no message continues the one before."""
    day: date | None = None
    current: ChatMessage | None = None
    more: list[str] = []
    for number, raw in enumerate(lines, 1):
        line = _line(raw)
        rule = _DAY.match(line)
        parsed = None if rule else _parse_line(line, day, number)
        if not (rule or parsed or _TITLE.match(line) or _SAVED.match(line) or _FILE.match(line)):
            more.append(line)
            continue
        if current:
            yield _finished(current, more)
        day = (_date(rule) if rule else None) or day
        if isinstance(parsed, BadRow):
            yield parsed
        current, more = parsed if isinstance(parsed, ChatMessage) else None, []
    if current:
        yield _finished(current, more)


def table_messages(table: Iterable[Record]) -> Iterator[ChatMessage | BadRow]:
    """Messages of a `.csv` export; the first record is the header."""
    columns: tuple[int, int, int] | None = None
    for record in table:
        if not record.fields:
            yield bad_record(record)
        elif header := chat_columns(record.fields):
            columns = header
        elif columns:
            yield _of_record(record, record.fields, columns)


def _of_record(record: Record, fields: list[str], columns: tuple[int, int, int]) -> ChatMessage | BadRow:
    try:
        at, speaker, text = (fields[index] for index in columns)
        moment = _STAMP.match(_line(at).strip())
        when = (_moment(moment, _date(moment)) if moment else None) or datetime.fromisoformat(at.strip())
    except (IndexError, ValueError):
        return BadRow(record.line, "fields", excerpt(record.text.strip()))
    # Only this export puts notices under a name; in the others such a text was written by the person.
    if _SYSTEM.fullmatch(text.strip()):
        return BadRow(record.line, "system", excerpt(text))
    return _finished(ChatMessage(record.line, nfc(speaker.strip()), text, when), [])


def _line(raw: str) -> str:
    return _SPACES.sub(" ", raw.rstrip("\r\n").lstrip("\ufeff\u200e\u200f"))


def _parse_line(line: str, day: date | None, number: int) -> ChatMessage | BadRow | None:
    """The message or notice that begins in a line."""
    if match := _PC.match(line):
        at = _moment(match, day or date.min)
        return ChatMessage(number, nfc(match["speaker"].strip()), (match["text"] or "").rstrip(), at) if at else None
    if match := _PHONE.match(line):
        at = _moment(match, _date(match))
    elif day and (match := _TIME_ONLY.match(line)):
        at = _moment(match, day)
    else:
        return BadRow(number, "system", excerpt(line)) if _SYSTEM.fullmatch(line) else None
    if not at:
        return None
    speaker, colon, text = f"{match['rest']} ".removeprefix(", ").partition(" : ")
    if not colon or match["rest"].startswith(":"):
        return BadRow(number, "system", excerpt(match["rest"].strip(",: ")))
    return ChatMessage(number, nfc(speaker.strip()), text.rstrip(), at)


def _finished(message: ChatMessage, more: list[str]) -> ChatMessage | BadRow:
    """The whole message; a BadRow for notices (of no speaker) and for placeholders of photos and the like."""
    text = "\n".join([message.text, *more]).strip()
    if not message.speaker:
        return BadRow(message.line, "system", excerpt(text))
    if not text or _ATTACHMENT.fullmatch(text):
        return BadRow(message.line, "attachment", excerpt(text))
    return ChatMessage(message.line, message.speaker, text, message.at)


def _date(match: re.Match[str]) -> date | None:
    """None for an impossible date. Of 3/4/2021 the month comes first, of 13/4/2021 the day."""
    year = match["year"] or match["year2"] or match["year3"] or match["year4"]
    month, day = match["month"], match["day"] or match["day2"] or match["day3"]
    if match["first"]:
        month, day = match["first"], match["second"]
        if int(month) > 12:
            month, day = day, month
    elif name := match["name"] or match["name2"]:
        month = str(_MONTHS.index(name[:3].casefold()) + 1)
    try:
        return date(int(year) + 2000 * (len(year) == 2), int(month), int(day))
    except ValueError:
        return None


def _moment(match: re.Match[str], day: date | None) -> datetime | None:
    """None when there is no such date or time: then the line only looks like the beginning of a message."""
    hour = int(match["hour"])
    if half := match["half"] or match["half2"]:
        if hour > 12:
            return None
        hour = hour % 12 + 12 * (half in ("오후", "午後", "下午") or half[0] in "Pp")
    if day is None or hour > 23 or int(match["minute"]) > 59:
        return None
    return datetime.combine(day, time(hour, int(match["minute"])))


def chat_pairs(chat: Iterable[ChatMessage | BadRow], speaker: str, name: str) -> Iterator[Pair | BadRow]:
    """Pairs of a chat: what the others write is the question, what `speaker` writes next is the answer."""
    conversation, last = Conversation(""), None
    for item in chat:
        if isinstance(item, BadRow):
            yield item
            continue
        if item.speaker in _PROGRAMS and item.speaker != speaker:
            yield BadRow(item.line, "system", excerpt(item.text))
            continue
        if last is None or abs(item.at - last) > PAUSE:
            yield from conversation.end()
            conversation = Conversation(f"{name}:{item.line}")
        last = item.at
        yield from conversation.add("assistant" if item.speaker == speaker else "user", item.text, item.line)
    yield from conversation.end()
