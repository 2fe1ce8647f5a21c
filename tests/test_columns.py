from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from daedap.data.columns import Columns, TurnColumns, choose_columns, choose_keys
from daedap.data.headers import Part, column_stats, find_header, header_role, is_header
from daedap.errors import DataError

FILE = Path("말뭉치.csv")
DATA = [
    ["가게는 몇 시에 여나요?", "아침 아홉 시에 열어요."],
    ["주차할 수 있어요?", "건물 지하에 세우시면 됩니다."],
    ["환불은 어떻게 하나요?", "일주일 안에 신청해 주세요."],
    ["배송은 며칠 걸려요?", "보통 이틀쯤 걸립니다."],
    ["아이와 함께 가도 되나요?", "네, 아이 의자가 있습니다."],
]


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "en")


def columns_of(
    *rows: str, question: str | None = None, answer: str | None = None, label: str | None = None
) -> Columns | TurnColumns:
    requested: dict[Part, str | None] = {"question": question, "answer": answer, "label": label}
    return choose_columns([(line, row.split(",")) for line, row in enumerate(rows, 1)], requested, FILE)


def chosen(*rows: str, **requested: str) -> tuple[int, int, int | None, bool]:
    columns = columns_of(*rows, **requested)
    assert isinstance(columns, Columns)
    return columns.question.index, columns.answer.index, columns.label.index if columns.label else None, columns.header


@pytest.mark.parametrize(
    ("header", "places"),
    [
        ("Q,A,label", (0, 1, 2)),
        ("QSTN_CN,ANSWER_CN,CL_NM", (0, 1, 2)),
        ("INQ_CN,RPLY_CN", (0, 1, None)),
        ("sj,cn", (0, 1, None)),
        ("글제목,글내용", (0, 1, None)),
        ("항목,내용", (0, 1, None)),
        ("민원명,처리절차", (0, 1, None)),
        ("사례,해결방안", (0, 1, None)),
        ("증상,조치방법", (0, 1, None)),
        ("고객명,문의,답변", (1, 2, None)),
        ("Intent Name,User Question,Bot Answer", (1, 2, 0)),
        ("QUESTION , Answer", (0, 1, None)),
        ("답변,질문,감정", (1, 0, 2)),
        ("대분류,발화,응답", (1, 2, 0)),
        ("사용자,챗봇", (0, 1, None)),
        ("user,bot", (0, 1, None)),
        ("prompt,completion,category", (0, 1, 2)),
        ("id,instruction,input,output", (1, 3, None)),
        ("user,question,answer,system", (1, 2, None)),
        ("번호,질문(Q),대답(A),라벨", (1, 2, 3)),
        ("질문 내용,답변 내용", (0, 1, None)),
        ("번호,제목,내용", (1, 2, None)),
        ("제목,내용,답변", (1, 2, None)),
        ("제목,등록일,답변", (0, 2, None)),
        ("카테고리,구분,자주하는 질문,질문답변", (2, 3, 0)),
        (
            "사건번호(ACCIDENT_NO),사건제목(ACCIDENT_TITLE),사건내용(ACCIDENT_CONTENT),답변내용(ANS_CONTENT)",
            (2, 3, None),
        ),
        (",제목,등록일,질문,답변", (3, 4, None)),
        ("접수번호,민원제목,민원내용,처리부서,회신내용,회신일", (2, 4, None)),
        ("순번,상담분야,상담내용,답변내용,상담일자", (2, 3, 1)),
        ("No.,분야,문의(내용),답변(내용),담당부서", (2, 3, 1)),
        ("Question,Answer,Source,Metadata,SuggestedQuestions", (0, 1, None)),
        ("userMessage,botMessage", (0, 1, None)),
        ("utterance_id,user_utterance,system_response", (1, 2, None)),
    ],
)
def test_by_header(header: str, places: tuple[int, int, int | None]) -> None:
    assert chosen(header) == (*places, True)


SURVEY = {
    "question": (
        "질문 질문내용 질문사항 질의 질의내용 질의요지 물음 문의 문의내용 문의사항 문의(내용) 고객문의 "
        "고객질문 사용자질문 이용자질문 민원 민원내용 민원(내용) 민원요지 상담내용 상담요청내용 자주하는질문 "
        "자주묻는질문 많이묻는질문 주요질문 대표질문 예상질문 FAQ질문 발화 사용자발화 고객발화 요청 요청사항 "
        "요청내용 고민 고민내용 사연 궁금한점 건의내용 제안내용 신고내용 의뢰내용 입력 프롬프트 지시문 "
        "Question Questions question_text Query query Inquiry Prompt instruction input User user_input human "
        "customer_question Q q Q. 질문1 원문질문 "
    ),
    "answer": (
        "답변 답변내용 답변사항 답변문 답변(내용) 답 대답 응답 응답내용 응답문 회신 회신내용 회신(내용) 회답 "
        "답장 해답 정답 답글 처리결과 처리내용 조치결과 조치내용 안내 안내내용 안내사항 해설 챗봇 챗봇응답 "
        "챗봇답변 봇답변 시스템응답 상담사답변 상담원응답 관리자답변 담당자답변 질문답변 질의응답 FAQ답변 "
        "출력 Answer answers answer_text Response response_text Reply output completion bot assistant "
        "chatbot_response ANS_CONTENT A a 답변1 "
    ),
    "other": (
        "번호 순번 연번 일련번호 No NO id ID idx index QnaId 등록일 작성일 등록일자 답변일 답변일자 접수일시 "
        "최종수정일 작성자 답변자 질문자 상담자 담당부서 답변부서 부서명 담당자 기관명 고객명 이름 나이 연령 "
        "성별 주소 전화번호 연락처 이메일 조회수 추천수 답변여부 처리상태 진행상태 첨부파일 URL 링크 출처 "
        "비고 만족도 문의처 접수번호 question_id answer_date created_at user_name 답변제목 "
    ),
    "label": (
        "분류 대분류 중분류 소분류 카테고리 구분 유형 문의유형 질문유형 상담유형 민원분류 주제 분야 상담분야 "
        "의도 감정 태그 label category intent topic question_type 도메인 키워드 "
    ),
}
"""Headers as public sheets, help desks and data sets have them."""


@pytest.mark.parametrize("role", SURVEY)
def test_survey_of_headers(role: str) -> None:
    roles = {name: found.role if (found := header_role(name)) else "other" for name in SURVEY[role].split()}
    assert {name: found for name, found in roles.items() if found != role} == {}


def test_a_letter_alone_makes_no_header() -> None:
    assert not is_header(["A", "그건 에이예요"])
    assert not is_header(["상담", "네, 도와드릴게요."])
    assert is_header(["q", "a"])


def test_below_titles_and_blank_rows() -> None:
    rows = [["우리 시청 자주 묻는 질문", "", "", ""], ["", "", "", ""], ["작성일", "2024-03-01", "", ""]]
    header = find_header([*rows, ["순번", "분류", "질문", "답변"], ["1", "여권", *DATA[0]]])
    assert header is not None and (header.row, header.names[2:]) == (3, ["질문", "답변"])


def test_two_header_rows_are_joined() -> None:
    upper, lower = ["번호", "문의", "", "답변", ""], ["", "제목", "내용", "내용", "작성자"]
    header = find_header([upper, lower, ["1", "배송", *DATA[3], "담당자"]])
    assert header is not None
    assert header.names == ["번호", "문의 제목", "문의 내용", "답변 내용", "답변 작성자"]
    assert chosen(",".join(upper), ",".join(lower), "1,배송,언제 와요?,내일 와요.,담당자") == (2, 3, None, True)


def test_a_second_header_in_english_is_no_pair() -> None:
    columns = columns_of("질문,답변", "question,answer", "언제 열어요?,아홉 시에 열어요.")
    assert columns.header_line == 2


def test_without_a_header_by_content() -> None:
    assert chosen("안녕,반가워") == (0, 1, None, False)
    assert chosen("안녕,반가워,0") == (0, 1, 2, False)
    rows = [f"{n},{question},{answer.replace(',', '')},배송" for n, (question, answer) in enumerate(DATA)]
    assert chosen(*rows) == (1, 2, None, False)


@pytest.mark.parametrize(
    "rows",
    [
        ["이름,나이", "김철수,23", "박영희,31", "최민수,45"],
        ["김철수,23", "박영희,31", "최민수,45"],
        ["김철수,서울 종로구", "박영희,부산 해운대구", "최민수,대구 수성구"],
        ["1,2024-03-01", "2,2024-03-02", "3,2024-03-03"],
        ["성명,전화번호", "김철수,010-0000-0000"],
        ["번호,질문", "1,언제 열어요?"],
        ["번호,글쓴이,답변", "1,김철수,아홉 시에 열어요."],
        ["언제 열어요?,아홉 시요.,담당자에게 물어보세요.,또 오세요."],
    ],
)
def test_what_is_not_clear_is_refused(rows: list[str]) -> None:
    command = r'daedap check "말뭉치\.csv" --question-column \d+ --answer-column \d+'
    with pytest.raises(DataError, match=f"말뭉치.csv: it is not clear which column.*Columns: 1 .*{command}"):
        columns_of(*rows)


def test_the_refusal_shows_a_sample_of_every_column() -> None:
    rows = ["코너,글쓴이,글귀", "배송,김철수,언제 오나요?", "교환,박영희,바꿀 수 있나요?"]
    with pytest.raises(
        DataError, match=r"1 '코너', 2 '글쓴이', 3 '글귀'|1 코너 '배송', 2 글쓴이 '김철수', 3 글귀 '언제 오나요\?'"
    ):
        columns_of(*rows)


def test_questions_that_are_numbers_are_refused_whatever_the_header_says() -> None:
    with pytest.raises(DataError, match="not clear"):
        columns_of("질문,답변", *(f"{n},{answer.replace(',', '')}" for n, (_, answer) in enumerate(DATA)))
    assert chosen("질문,답변", "3 더하기 4는?,7", "1 더하기 1은?,2") == (0, 1, None, True)


def test_answers_before_questions_are_refused_without_a_header() -> None:
    rows = [f"{answer.replace(',', '')},{question}" for question, answer in DATA * 2]
    with pytest.raises(DataError, match="--question-column 2 --answer-column 1"):
        columns_of(*rows)
    assert chosen("답변,질문", *rows) == (1, 0, None, True)


def test_a_header_in_the_middle_of_the_data() -> None:
    rows = [f"{answer.replace(',', '')},{question}" for question, answer in DATA]
    assert chosen(*rows, "답변,질문", *rows) == (1, 0, None, True)


def test_chosen_by_the_user() -> None:
    row = "1,언제 열어요?,아홉 시에 열어요.,시간"
    assert chosen("번호,글귀,댓글,분류", row, question="글귀", answer="댓글") == (1, 2, 3, True)
    assert chosen("번호,글귀,댓글,분류", row, question="2", answer="3") == (1, 2, 3, True)
    assert chosen("질문,답변,다른 답변", answer="3") == (0, 2, None, True)
    assert chosen("안녕,반가워,0", question="2", answer="1") == (1, 0, None, False)


def test_a_wrong_name_suggests_a_near_one() -> None:
    with pytest.raises(
        DataError, match=r"no column Qestion; its columns are id, Question, Answer\. Did you mean Question"
    ):
        columns_of("id,Question,Answer", question="Qestion")


def test_a_wrong_number_lists_the_columns() -> None:
    with pytest.raises(DataError, match=r"no column 4; its columns are 질문, 답변, 라벨\. Give one of"):
        columns_of("질문,답변,라벨", label="4")


def test_one_column_is_not_enough() -> None:
    with pytest.raises(DataError, match="only one column"):
        columns_of("질문", "안녕")


def test_one_column_cannot_be_both() -> None:
    with pytest.raises(DataError, match="chosen twice"):
        columns_of("질문,답변", question="1", answer="질문")


def test_several_questions_in_a_row() -> None:
    columns = columns_of("질문1,질문2,질문3,답변")
    assert isinstance(columns, Columns)
    assert [column.index for column in (columns.question, *columns.alternatives)] == [0, 1, 2]
    columns = columns_of("Question,Alt_Phrasings,Answer")
    assert isinstance(columns, Columns) and columns.alternatives[0].index == 1


def test_a_conversation_in_a_row() -> None:
    columns = columns_of("연령,사람문장1,시스템문장1,사람문장2,시스템문장2")
    assert isinstance(columns, Columns) and columns.rounds == ((1, 2), (3, 4))


@pytest.mark.parametrize(
    ("header", "speaker", "text"),
    [
        ("speaker,utterance", 0, 1),
        ("번호,화자,발화", 1, 2),
        ("SPEAKER,SENTENCE,DOMAIN", 0, 1),
        ("대화번호,발화자,내용", 1, 2),
    ],
)
def test_rows_that_are_messages(header: str, speaker: int, text: int) -> None:
    columns = columns_of(header)
    assert isinstance(columns, TurnColumns) and columns.speaker is not None
    assert (columns.speaker.index, columns.text.index) == (speaker, text)


def test_keys_have_no_positions() -> None:
    nothing: dict[Part, str | None] = {}
    assert choose_keys(["답변", "질문"], nothing, FILE).question.name == "질문"
    with pytest.raises(DataError, match="--question-column 글귀 --answer-column 댓글"):
        choose_keys(["글귀", "댓글"], nothing, FILE)
    with pytest.raises(DataError, match="not clear"):
        choose_keys(["질문", "출처"], nothing, FILE)


def test_kinds_of_columns() -> None:
    table = [[str(n), "배송", f"2024-03-{n:02}", "김철수", question] for n, (question, _) in enumerate(DATA, 1)]
    assert [column_stats(table, index).kind for index in range(5)] == ["number", "category", "number", "name", "text"]


def test_unknown_foreign_names_above_korean_texts_are_a_header() -> None:
    rows = [",".join(row) for row in DATA]
    assert chosen("orig,para", *rows) == (0, 1, None, True)
    assert chosen("안녕,반가워", *rows) == (0, 1, None, False)
    assert chosen("grp,orig,para,rest", *(f"배송,{row},없음" for row in rows)) == (1, 2, None, True)


@pytest.mark.parametrize("has_header", [False, True])
def test_no_order_of_columns_is_read_wrongly(has_header: bool) -> None:
    others = {"번호": "1 2 3 4 5", "분류": "시설 시설 환불 배송 시설", "등록일": "3.1 3.2 3.3 3.4 3.5"}
    table = {name: cells.split() for name, cells in others.items()}
    table |= {"문의내용": [row[0] for row in DATA], "답변내용": [row[1] for row in DATA]}
    for order in permutations(table):
        rows = [
            ",".join(cell.replace(",", "") for cell in cells)
            for cells in zip(*(table[name] for name in order), strict=True)
        ]
        wanted = order.index("문의내용"), order.index("답변내용")
        try:
            assert chosen(*([",".join(order)] if has_header else []), *rows)[:2] == wanted
        except DataError as error:
            assert not has_header
            assert f"--question-column {wanted[0] + 1} --answer-column {wanted[1] + 1}" in str(error)
