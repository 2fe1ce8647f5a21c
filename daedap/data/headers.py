"""What a column's header (or a JSON key) and its content say about it.

A header is split into words (`ANS_CONTENT`, `userMessage`, `문의(내용)`); generic words (내용, text, …) are stripped
from its end, and the last remaining word decides on its role: 질문내용 is a question, 질문답변 an answer, 문의유형 a
label, 답변자 neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Literal, NamedTuple

from daedap.korean.text import HANGUL, comparison_form, speech_level

Part = Literal["question", "answer", "label"]
Role = Literal[Part, "title", "content", "alternatives", "speaker", "utterance", "conversation", "turn", "other"]


class HeaderRole(NamedTuple):
    """What a header stands for."""

    role: Role
    rank: float
    """Certainty, 0 is the surest: beside a column `question`, `user` holds the name of a person."""


_WORDS: dict[Role, Sequence[str]] = {  # one string a rank; Korean words also match the end of a longer word
    "question": (
        "질문 question questions q ques quest qstn qestn qust",
        "질의 물음 문의 발화 궁금한점 궁금한것 궁금증 query utterance inquiry enquiry inq inqire inqry"
        " patterns 묻기 묻고 묻다 물어보기 궁금해요",
        "민원 상담 요청 고민 사연 건의 제안 의뢰 신고 문제 지시 지시문 명령 명령문 명령어 프롬프트 쿼리 faq prompt"
        " instruction ask request problem",
        "",
        "입력 사용자 유저 고객 이용자 사람 환자 학생 내담자 손님 input user human customer client hs",
    ),
    "answer": (
        "답변 대답 응답 answer answers a ans reponse rply rspns",
        "답 회신 회답 답장 해답 정답 답글 답하기 답하다 알려드려요 completion output outputs response responses reply",
        "처리결과 조치결과 처리 조치 결과 처리절차 검토의견 멘트 해결방안 해결방법"
        " 해설 풀이 안내 안내문 해결 해결책 solution resolution target chosen",
        "",
        "출력 챗봇 봇 상담사 상담원 시스템 점원 직원 에이전트 chatbot bot assistant gpt system agent model ss",
    ),
    "label": (
        "라벨 레이블 분류 카테고리 범주 클래스 의도 인텐트 감정 유형 종류 주제 구분 분야 태그 도메인 토픽 label labels"
        " category categories class intent emotion sentiment topic tag tags domain type group genre section cl ctgry"
        " cate gubun 시나리오 메뉴 업무",
        "키워드 대상 keyword keywords",
    ),
    "title": ("제목 표제 타이틀 항목 title subject headline sj ttl",),
    "content": ("내용 본문 상세 설명 글 content contents body description detail details cn cont cntnt ctnt",),
    "alternatives": ("유사질문 동의질문 변형질문 alternatives phrasings paraphrases variants",),
    "speaker": (
        "화자 발화자 speaker participant sender role from 역할 발신자 대화자 participantid"
        " 보낸사람 보낸이 발신인 발송인 persontype sendertype usertype senderrole",
    ),
    "utterance": ("문장 발화문 대화 대사 메시지 메세지 텍스트 sentence text plaintext message msg line",),
    "conversation": (
        "대화번호 대화id 대화세트 세션 dialog dialogue dialogid dialogueid conversationid talkid session sessionid"
        " 상담번호 대화셋일련번호 대화세트일련번호 채팅id chatid roomid",
    ),
    "turn": ("turn turnid sentenceid utteranceid uttid 턴 발화번호 발화순번 발화순서",),
    "other": (
        "번호 순번 연번 일련번호 no num number id idx index seq url 링크 주소 link href 일자 날짜 일시 시간 시각"
        " 일 월 연도 년도 date time datetime created updated at year dt de tm nm"
        " 자 인 명 이름 성명 닉네임 name author writer"
        " 글쓴이 나이 연령 성별 age gender sex 전화 전화번호 연락처 휴대폰 핸드폰 phone tel mobile 이메일 메일 email"
        " mail 부서 담당부서 부서명 과 팀 기관 소속 처 담당 관리자 department dept team 수 건수 조회 조회수 추천수"
        " hit hits views count 여부 상태 진행상태 status state flag 비고 참고 note notes remark remarks 출처 source src"
        " 경로 방법 채널 channel 점수 평점 만족도 score rating 등급 순위 rank level 첨부 첨부파일 파일 file"
        " 코드 code key uuid 버전 version lang language 언어 지역 region 금액 가격 price"
        " 길이 length metadata meta prompts rejected",
    ),
}
_ROLES: dict[str, HeaderRole] = {
    word: HeaderRole(role, rank)
    for role, ranks in _WORDS.items()
    for rank, words in enumerate(ranks)
    for word in words.split()
}
_GENERIC_ENDINGS = ("내용", "사항", "요지", "본문", "원문", "문장", "텍스트", "문", "글")
_ENDINGS = sorted({*_GENERIC_ENDINGS, *(word for word in _ROLES if re.match("[가-힣]", word))}, key=len, reverse=True)
_GENERIC = {"text", "content", "contents", "body", "sentence", "string", "str", "message", "msg"}
_GENERIC |= {"cn", "cont", "cntnt", "ctnt"}  # 내용 in the databases of Korean authorities: QESTN_CN, ANSWER_CN
_LANGUAGES = {"kr", "ko", "kor", "korean", "korea", "en", "eng", "english", "clean", "raw", "full"}
_FOLLOW_UP = {"suggested", "related", "next", "followup", "관련", "추천", "연관", "후속", "이전"}
"""Before a question: neither the question of the row nor another wording of it."""
_FORM_REQUEST = re.compile(
    "[을를은는]?(?:간단히|자세히|모두)?(?:(?:적어|입력해|작성해|기재해|기입해|써|남겨|알려|말씀해)"
    "(?:주세요|주십시오|주시기바랍니다)|(?:입력|작성|기재|기입)(?:하세요|하십시오|바랍니다)|(?:적으|쓰|남기)(?:세요|십시오))$"
)
"""Ends the titles of a form's fields: 문의하실 내용을 적어 주세요."""
_FORM_VERB = re.compile(r"(?<=문의|질문|상담|신고|건의|요청|제안)하(?:실|신|는|고싶은)")
_ENGLISH_OTHER = re.compile("(?:id|idx|no|num|date|time|name|type|count|url)$")
_BRACKETS = re.compile(r"[(\[（](.*?)[)\]）]")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[가-힣ㄱ-ㅎ]+|\d+")


@lru_cache(4096)
def header_role(name: str) -> HeaderRole | None:
    """The role of a header; None when it is unknown. Case, spacing, punctuation and numbering do not count."""
    for text in (_BRACKETS.sub(" ", name), _BRACKETS.sub(r"\1", name), *_BRACKETS.findall(name)):
        if (role := _role(text)) is not None:
            return role
    return HeaderRole("other", 0) if not comparison_form(name) or name.strip().isdecimal() else None


def has_role(name: str, *roles: Role, below: float = 9) -> bool:
    """Whether a header has one of these roles, at a rank below a limit: at ranks below 3 it names what, not who."""
    role = header_role(name)
    return role is not None and role.role in roles and role.rank < below


def roles_of(names: Iterable[str]) -> set[Role]:
    """The roles among some headers."""
    return {role.role for name in names if (role := header_role(name))}


def _role(text: str) -> HeaderRole | None:
    if (whole := comparison_form(text)) in _ROLES:
        return _ROLES[whole]
    # A Korean header without its spaces: `자주 하는 질문` and `자주하는질문` are the same.
    joined = re.sub(r"(?<=[가-힣])[\s_/·.-]+(?=[가-힣])", "", text)
    joined = _FORM_VERB.sub("", _FORM_REQUEST.sub("", joined.strip(" .!*?:")))
    words = [word.casefold() for word in _WORD.findall(joined) if not word.isdecimal()]
    words = [word for word in words if word not in _LANGUAGES] or words
    if words[1:] and words[0] in ("faq", "qna", "qa"):
        del words[0]
    core = list(words)
    while core and core[-1] in _GENERIC:
        core.pop()
    if not core:
        return _ROLES.get(words[-1]) if words else None
    role = _word_role(core[-1])
    if core[1:] and core[-1] in ("name", "nm") and (named := _word_role(core[-2])) and named.role == "label":
        role = named
    if role and role.role == "question" and (core[0] in _FOLLOW_UP or core[-1][:2] in _FOLLOW_UP):
        return HeaderRole("other", 0)
    return HeaderRole("content", 0) if role is None and len(core) < len(words) else role


def _word_role(word: str) -> HeaderRole | None:
    """The role of one word: of itself, or of its longest known ending."""
    if word in _ROLES:
        return _ROLES[word]
    if word.isascii():
        return HeaderRole("other", 0) if _ENGLISH_OTHER.search(word) else None
    ending = next((ending for ending in _ENDINGS if word.endswith(ending)), None)
    return _compound_role(word[: -len(ending)], ending) if ending else None


def _compound_role(base: str, ending: str) -> HeaderRole | None:
    """The role of a Korean compound such as 문의 + 제목, 고객 + 문의, 답변 + 일."""
    role, base_role = _ROLES.get(ending), _word_role(base) if base else None
    kind, rank = base_role or (None, 0.0)
    if ending in _GENERIC_ENDINGS:
        if kind in ("question", "answer", "label", "other"):
            return base_role
        return HeaderRole("content", 0) if ending in ("내용", "본문") else None
    assert role, "an ending is generic or has a role"
    if ending == "명" and (kind == "label" or (kind == "question" and rank < 3)):
        return HeaderRole(kind, rank + 0.5)  # 민원명 is a weaker question than 민원내용
    if ending in ("방법", "절차") and kind == "answer":
        return base_role
    if role.role == "title" and kind not in (None, "content"):
        # 문의제목 is a weaker question than 문의내용; 답변제목 is no answer.
        return HeaderRole("question", rank + 0.5) if kind == "question" else HeaderRole("other", 0)
    return None if len(ending) == 1 and role.role in ("question", "answer") else role


_STAFF = ["매니저", "운영자", "관리자", "담당자", "판매자", "사장", "manager", "operator", "admin", "staff", "seller"]


def speaker_side(name: str) -> Literal["question", "answer"] | None:
    """Whether somebody of this name (고객, 상담원, user, Q) asks or answers; None when the name does not tell."""
    if comparison_form(name) in _STAFF or has_role(name, "answer"):
        return "answer"
    return "question" if has_role(name, "question") else None


def is_header(names: Sequence[str]) -> bool:
    """Whether a row names a question or an answer column; letters as short as Q and A only beside each other."""
    filled = [name for name in names if comparison_form(name)]
    if len(filled) < 2 or any(len(name) > 40 for name in filled):
        return False
    if any(pair <= roles_of(filled) for pair in _ROLE_PAIRS):
        return True
    others = [name for name in filled if not has_role(name, "question", "answer") or len(comparison_form(name)) < 2]
    return len(others) < len(filled) and not any(map(is_sentence, others))


_ROLE_PAIRS = [
    set(pair.split())
    for pair in (
        *("question answer", "title content", "title answer", "content answer"),
        *("speaker utterance", "speaker content", "conversation question", "conversation utterance"),
    )
]


def names_other_data(names: Sequence[str]) -> bool:
    """Whether at least half of the cells of a row are header words, though none of a question or answer: 이름,나이."""
    filled = [name for name in names if comparison_form(name)]
    known = [bool(header_role(name)) and len(comparison_form(name)) > 1 for name in filled]
    return sum(known) >= max(2, len(filled) / 2) and not any(map(is_sentence, filled))


def is_second_header(names: Sequence[str]) -> bool:
    """Whether the row below a header continues it: all its cells are header words, such as question, answer."""
    filled = [name for name in names if comparison_form(name)]
    words = [name for name in filled if header_role(name) and not is_sentence(name) and not re.search(r"\d", name)]
    return 1 < len(filled) == len(words)


def is_sentence(text: str) -> bool:
    """Whether a text is too long for a header, or ends as a sentence does."""
    return len(text) > 20 or bool(re.search(r"[?!.…~]|(?:요|다|까|죠|네|해|어|아|지)$", text.strip()))


# ---- the header of a table ----

_HEADER_ROWS = 20
"""Rows at the beginning of a table among which its header is looked for."""


class Header(NamedTuple):
    """The header of a table."""

    names: list[str]
    row: int
    """Index of its last row among the rows given; -1 for one in the middle of the data, as in joined files."""


def find_header(rows: Sequence[Sequence[str]], requested: Sequence[str] = ()) -> Header | None:
    """The header: the first row that names columns, below title and blank rows; two rows of it are joined.

    A row that holds one of the `requested` names is the header.
    """

    def is_requested(row: Sequence[str]) -> bool:
        return any(index_of(name, row) is not None for name in requested)

    for accepts in (is_requested, is_header, names_other_data):
        for index, row in enumerate(rows[:_HEADER_ROWS]):
            if accepts(row) and all(_is_title(above, row) for above in rows[:index]):
                names = [name.strip().lstrip("\ufeff") for name in row]
                if len(rows) > index + 2 and is_second_header(rows[index + 1]):
                    return Header(_join_headers(names, rows[index + 1]), index + 1)
                return Header(names, index)
    first = next((index for index, row in enumerate(rows) if any(row)), None)
    if first is not None and _is_foreign(rows[first], rows[first + 1 :]):
        return Header([name.strip() for name in rows[first]], first)
    misplaced = next((row for row in rows if is_header(row) and is_second_header(row)), None)
    return Header(list(misplaced), -1) if misplaced else None


def _is_foreign(row: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """Whether a row names the columns of a Korean table by words such as QUST_TXT or src."""
    names = {index: name for index, cell in enumerate(row) if (name := cell.strip().lstrip("\ufeff"))}
    if len(below) < 2 or not all(re.fullmatch(r"[A-Za-z][\w.-]*", name, re.ASCII) for name in names.values()):
        return False
    korean = (sum(bool(HANGUL.search("".join(cells[index : index + 1]))) for cells in below) for index in names)
    return sum(count > 0.8 * len(below) for count in korean) > 1


def _is_title(row: Sequence[str], header: Sequence[str]) -> bool:
    """Whether a row above a header is a title or a remark: few of its cells are filled."""
    filled = [cell for cell in row if cell.strip()]
    remark = len(filled) == 2 and bool(header_role(filled[0]))
    few = len(filled) <= max(1, sum(bool(cell.strip()) for cell in header) // 3)
    return few or remark or bool(re.match(r"\ufeff?\s*sep=", "".join(row)))


def _join_headers(upper: Sequence[str], lower: Sequence[str]) -> list[str]:
    """Names from two header rows: an upper cell spans the empty cells to its right, as merged cells do.

    A second row that only repeats the first, or translates it, adds nothing.
    """
    if all(cell.strip() for cell in upper):
        return list(upper)
    names, group = [], ""
    for above, below in zip_longest(upper, lower, fillvalue=""):
        group = above.strip() or group
        names.append(f"{group} {below.strip()}" if below.strip() else above.strip())
    return names


def index_of(name: str, names: Sequence[str]) -> int | None:
    """Index of the column of this name; of one that differs in case, spacing and the like where there is none."""
    for form in (str.strip, comparison_form):
        if (index := next((i for i, other in enumerate(names) if form(other) == form(name)), None)) is not None:
            return index
    return None


# ---- content ----

Kind = Literal["empty", "number", "name", "category", "text"]

_NUMBER = re.compile(
    r"[-+]?[\d.,:/\s%~()-]*\d[\d.,:/\s%~()-]*(?:원|개|명|세|살|호|점|년|월|일|시|분|초|AM|PM|am|pm)?"
    r"|\d{2,4}\s*년\s*\d{1,2}\s*월.*|\d{4}[-./]\s?\d{1,2}[-./]\s?\d{1,2}.*|[A-Za-z]{0,4}[-_]?\d+|true|false|예|아니오|[YNyn]"
    r"|[\w.+-]+@[\w-]+\.[\w.]+"
)
"""Numbers, dates, times, amounts, codes, flags and e-mail addresses: no text to answer."""
_SURNAMES = (
    "김이박최정강조윤장임한오서신권황안송류전홍고문양손배백허유남심노하곽성차주우구민진지엄채원천방공현함변염여추도소석"
    "선설마길연위표명기반왕금옥육인맹제모탁국"
)
_NAME = re.compile(rf"[{_SURNAMES}][가-힣]{{2}}(?:씨|님)?")
_QUESTION = re.compile(
    r"[?？]|(?:나요|까요?|는지|은지|은가요?|는가요?|인가요?|죠|려면|어요|아요|해요|돼요|요)[\s.!?~ㅠㅜㅋㅎ]*$"
)
"""Ends as a question may; many answers end so, too."""
_ASKS = re.compile(
    r"[?？]|(?:나요|까요?|는지|은지|가요|니|냐|나|지|려면|을까|ㄹ까|대|(?<!그)래|싶어|싶다|방법)[\s.!~ㅠㅜㅋㅎ]*$"
)
_ANSWERS = re.compile(r"(?<!싶어)(?<!주세)(?<!돼)(?:요|다|죠|오)[.!]+$")
"""Ends as a question hardly ever does, or an answer often does."""


@dataclass(frozen=True)
class Column:
    """One column of a table, or one key of JSON objects."""

    index: int
    """From 0."""
    name: str
    """Its header; its number from 1 when there is no header."""


class ColumnStats(NamedTuple):
    """Content of one column."""

    kind: Kind
    questions: float
    """Share of cells that read like a question."""
    asks: float
    """Share of cells that end as questions do, less that of cells that end as answers do and of polite ones; -2 to 1.
    Answers are polite more often than questions are."""


def column_stats(rows: Sequence[Sequence[str]], index: int) -> ColumnStats:
    """Statistics of one column over sample rows (without the header)."""
    cells = [row[index].strip() for row in rows if index < len(row) and row[index].strip()]
    if not cells:
        return ColumnStats("empty", 0.0, 0.0)
    count = len(cells)
    asks = sum(bool(_ASKS.search(cell)) for cell in cells)
    asks -= sum(bool(_ANSWERS.search(cell)) + (speech_level(cell) == "polite") for cell in cells)
    questions = sum(bool(_QUESTION.search(cell)) for cell in cells) / count
    length = sum(map(len, cells)) / count
    repeats = len(set(cells)) <= max(1, (0.7 if length <= 6 else 0.5) * count)
    kind: Kind = "text"
    if sum(bool(_NUMBER.fullmatch(cell)) for cell in cells) >= 0.8 * count:
        kind = "number"
    elif count > 2 and sum(bool(_NAME.fullmatch(cell)) for cell in cells) >= 0.8 * count:
        kind = "name"
    elif count > 3 and length <= 15 and questions < 0.3 and repeats:
        kind = "category"
    return ColumnStats(kind, questions, asks / count)
