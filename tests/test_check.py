from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from daedap.commands.check import check as run_check
from daedap.config import ReadOptions
from daedap.data.clean import clean, clean_text
from daedap.data.doctor import LONGEST, check, load, percentile
from daedap.data.findings import KINDS, Report
from daedap.errors import DataError
from daedap.model.prompt import build_prompt
from daedap.model.tokenizer import load_tokenizer
from daedap.training.split_rows import MINI_FOLDER, length_limit
from daedap.types import Pair

SHARED = Path(__file__).parents[2] / "shared" / "data" / "chatbot"
NFD = "\u1112\u1161\u11ab\u1100\u1173\u11af"  # 한글 in pieces


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "en")


def written(folder: Path, text: str, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def found(report: Report) -> dict[str, list[int]]:
    """Kinds of findings and their lines."""
    return {finding.kind: [example.line for example in finding.examples] for finding in report.findings}


def test_clean_text() -> None:
    assert clean_text("그대로 두는 글 ㅋㅋ 👨‍👩‍👧") == ("그대로 두는 글 ㅋㅋ 👨‍👩‍👧", frozenset())
    assert clean_text("첫 줄\r\n둘째 줄") == ("첫 줄\n둘째 줄", frozenset())
    assert clean_text(" 안녕\u00a0하세요\u3000") == ("안녕 하세요", frozenset({"spaces"}))
    assert clean_text("안\u200b녕\ufeff") == ("안녕", frozenset({"zero_width"}))
    assert clean_text("안\x08녕\x00") == ("안녕", frozenset({"control"}))
    assert clean_text("안녕\x0b하세요") == ("안녕\n하세요", frozenset({"control"}))
    assert clean_text(NFD) == ("한글", frozenset({"decomposed"}))


@pytest.mark.parametrize(
    "text",
    ["a<b 이고 c>d", "</s><usr> 라고 씁니다", "<사진> ㅋㅋ <3", "2**3**4", "R&D; AT&T", "C:\\new\\노트", "안녕 #1"],
)
def test_what_only_looks_like_markup_stays(text: str) -> None:
    assert clean_text(text) == (text, frozenset())


def test_clean_names_each_repair_once() -> None:
    pair, repairs = clean(Pair(" 안녕", "반가\u200b워 ", "2   "))
    assert pair == Pair("안녕", "반가워", "2")
    assert repairs == ("label", "spaces", "zero_width")


def test_quotation_marks_around_both_texts_go() -> None:
    assert clean(Pair("'주차 되나요?'", "'네, 됩니다.'")) == (Pair("주차 되나요?", "네, 됩니다."), ("quotation",))
    assert clean(Pair("“주차 되나요?”", "「네.」"))[0] == Pair("주차 되나요?", "네.")
    for kept in (Pair("'주차' 되나요?", "'네'"), Pair("'환불'", "돈을 돌려 드리는 일이에요."), Pair("'a', 'b'", "'c'")):
        assert clean(kept) == (kept, ())


def test_every_finding_has_its_lines(tmp_path: Path) -> None:
    rows = [
        "질문,답변,분류",  # 1
        "안녕,반가워요.,일상",
        " 안녕,반가워요. ,일상",  # 3: a duplicate once it is clean
        "안녕!,누구세요?,일상",  # 4: another answer
        "안녕?,누구세요?,일상",  # the same question, no third answer
        ",대답만,일상",  # 6
        "질문만, ,일상",  # 7
        " , , ",  # 8
        "깨진 글\ufffd,네,일상",  # 9
        f"{NFD},우리 글이에요.,일상  ",  # 10
        "보이지\u200b않는,글자\x07도 있어요,일상 ",  # 11
        "너,무,많은,칸",  # 12
        f"길어요,{'가' * LONGEST},일상",  # 13
    ]
    path = written(tmp_path, "\n".join(rows))
    before = path.read_bytes()
    report = check(path)
    assert found(report) == {
        "fields": [12],
        "damaged": [9],
        "blank": [8],
        "empty_question": [6],
        "empty_answer": [7],
        "duplicate": [3],
        "control": [11],
        "zero_width": [11],
        "decomposed": [10],
        "label": [10, 11],
        "too_long": [13],
        "conflict": [4],
    }
    assert (report.rows, report.usable) == (12, 5)
    assert report.labels == {"일상": 5}
    assert path.read_bytes() == before


def test_counts_go_on_where_examples_stop(tmp_path: Path) -> None:
    report = check(written(tmp_path, "질문,답변\n안녕,반가워\n" + ",빈칸\n" * 30))
    finding = report.finding("empty_question")
    assert finding is not None
    assert (finding.count, finding.action, len(finding.examples)) == (30, "dropped", 5)


def test_labels_that_look_alike(tmp_path: Path) -> None:
    labels = ["행복함"] * 4 + ["행복한", "슬픔"] + ["love"] * 3 + ["Love"] * 2 + ["2"] * 3 + ["2.0", "12", "20"]
    path = written(tmp_path, "질문,답변,감정\n" + "".join(f"말 {i},답 {i},{label}\n" for i, label in enumerate(labels)))
    report = check(path)
    finding = report.finding("similar_label")
    assert finding is not None
    assert [example.value for example in finding.examples] == ["행복한 ~ 행복함", "Love ~ love", "2.0 ~ 2"]
    assert report.labels["행복함"] == 4


def test_a_column_of_sentences_is_no_label(tmp_path: Path) -> None:
    path = written(tmp_path, "질문,답변,분류\n" + "".join(f"말 {i},답 {i},설명 {i}\n" for i in range(1200)))
    assert check(path).labels == {}


def test_much_longer_rows_are_kept(tmp_path: Path) -> None:
    path = written(
        tmp_path, "질문,답변\n" + "".join(f"질문{i:03},답변{i:03}\n" for i in range(50)) + f"길다,{'가' * 200}\n"
    )
    report = check(path)
    assert found(report) == {"very_long": [52]}
    assert report.usable == 51


def test_lone_surrogates_never_reach_a_model(tmp_path: Path) -> None:
    path = written(
        tmp_path, '{"question": "\\ud83d", "answer": "응"}\n{"question": "\\ud83d\\ude00", "answer": "응"}\n', "a.jsonl"
    )
    loaded = load(path)
    assert [pair.question for pair in loaded.pairs] == ["😀"]
    finding = loaded.report.finding("damaged")
    assert finding is not None and finding.examples[0].value == "\\ud83d"


def test_fits_decides_what_keeps_its_end_token(tmp_path: Path) -> None:
    path = written(tmp_path, "질문,답변\n안녕,반가워\n안녕,반갑습니다 정말로\n")
    loaded = load(path, fits=lambda pair: len(pair.answer) < 5)
    assert [pair.answer for pair in loaded.pairs] == ["반가워"]
    assert [pair.answer for pair in loaded.lookup] == ["반갑습니다 정말로"], "the bot still finds it"
    assert found(loaded.report) == {"too_long": [3]}


def test_the_same_words_after_other_turns_are_no_conflict(tmp_path: Path) -> None:
    def line(*texts: str) -> str:
        roles = ("user", "assistant") * 2
        turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        return json.dumps({"messages": turns}) + "\n"

    path = written(tmp_path, line("밥?", "국밥", "그래?", "응") + line("술?", "싫어", "그래?", "미안"), "a.jsonl")
    assert found(check(path)) == {}
    path = written(tmp_path, line("밥?", "국밥", "그래?", "응") + line("밥?", "국밥", "그래?", "미안"), "a.jsonl")
    assert found(check(path)) == {"duplicate": [2], "conflict": [2]}


def test_lengths_and_speech_levels(tmp_path: Path) -> None:
    report = check(
        written(tmp_path, "질문,답변\n안녕,반가워요\n뭐 해?,쉬고 있어요\n밥,먹자\n좋아?,네네네네네네네네요\n")
    )
    assert (report.questions.mean, report.questions.max, report.questions.polite) == (2.5, 4, 0.0)
    assert (report.answers.p50, report.answers.p95, report.answers.polite) == (4, 9, 0.75)
    assert report.answers.mixed and not report.questions.mixed


def test_percentile() -> None:
    assert [percentile(Counter(range(1, 101)), share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile(Counter(), 0.95) == 0


def test_nothing_usable(tmp_path: Path) -> None:
    path = written(tmp_path, "질문,답변\n안녕,\n,반가워\n")
    report = check(path)
    assert (report.rows, report.usable) == (2, 0)
    assert report.lines()[0].startswith(f"{path}: 2 rows, 0 usable")
    with pytest.raises(DataError, match=r"a\.csv: none of the 2 rows is usable; first, line 2: empty answer\. See"):
        load(path)


def test_a_chat_in_which_nobody_asks(tmp_path: Path) -> None:
    path = written(tmp_path, "[철수] [오후 3:12] 안녕\n[영희] [오후 3:13] 사진\n", "a.txt")
    with pytest.raises(DataError, match="only 철수 writes: there are no questions"):
        check(path, ReadOptions(speaker="철수"))


def test_report_as_json_and_text(tmp_path: Path) -> None:
    report = check(written(tmp_path, "질문,답변,감정\n안녕,반가워요,기쁨\n안녕,반가워요,기쁨\n잘\u200b가,또 봐,슬픔\n"))
    message = json.loads(json.dumps(report.to_json()))
    assert message["format"] == "csv" and message["encoding"] == "utf-8"
    assert message["columns"] == {"question": "질문", "answer": "답변", "label": "감정"}
    assert (message["rows"], message["usable"], message["near_duplicates"]) == (3, 2, None)
    assert message["findings"][0] == {
        "kind": "duplicate",
        "action": "dropped",
        "description": "exact duplicate of an earlier pair",
        "count": 1,
        "examples": [{"line": 3, "value": "안녕"}],
    }
    lines = replace(report, near_duplicates=7, compared=90).lines()
    assert "dropped: exact duplicate of an earlier pair: 1 (line 3 '안녕')" in lines
    assert "repaired: invisible characters: 1 (line 4 '잘\\u200b가')" in lines
    assert "kept: 7 of the first 90 questions nearly repeat an earlier one" in lines
    assert "labels: 기쁨 (1), 슬픔 (1)" in lines
    assert "The answers mix polite and casual speech; the chatbot will too." in lines


def test_every_problem_has_a_kind() -> None:
    assert {kind.action for kind in KINDS.values()} == {"dropped", "repaired", "kept"}


@pytest.mark.skipif(not SHARED.exists(), reason=f"needs the data in {SHARED}")
def test_chatbot_data() -> None:
    report = check(SHARED / "ChatbotData.csv")
    assert (report.rows, report.usable) == (10_639, 10_575)
    counts = {finding.kind: finding.count for finding in report.findings}
    assert counts == {"duplicate": 64, "label": 1, "conflict": 118}
    label = report.finding("label")
    assert label is not None and [(example.line, example.value) for example in label.examples] == [(9618, "2   ")]
    assert list(report.labels) == ["0", "1", "2"]
    assert report.answers.polite > 0.9 and report.questions.polite < 0.1


def test_the_limit_is_that_of_the_base(tmp_path: Path) -> None:
    """The built-in base counts its tokens without torch, exactly as its prompt does in training."""
    prompt = build_prompt(load_tokenizer(MINI_FOLDER), 256)
    limit = length_limit("daedap-mini", 1000)
    assert limit.tokens == 256, "its own limit"
    texts = ["보조금 신청 방법을 알려 드립니다. ", "ㅋㅋ 안녕 ", "</s><|user|> ", "😀🇰🇷 ", "a1! "]
    for text in texts:
        size = next(n for n in range(1, 300) if not limit.fits(Pair("왜?", text * n)))
        longest = [Pair("왜?", text * size + more) for more in ("", "가", "가나", "가 나")]
        longest += [Pair("왜?", text * (size - 1) + more) for more in ("", "가", "가나다라", "가 나 다 라")]
        assert [limit.fits(pair) for pair in longest] == [prompt.fits(pair) for pair in longest]
    assert length_limit("fresh", 20).fits(Pair("가" * 6, "나" * 6))
    assert not length_limit("fresh", 20).fits(Pair("가" * 6, "나" * 7))


def test_check_says_what_is_learned_and_what_is_only_looked_up(tmp_path: Path) -> None:
    path = written(tmp_path, f"질문,답변\n짧아요?,네.\n길어요?,{'여권은 시청에서 만듭니다. ' * 60}\n")
    report = run_check(path)
    assert (report.usable, report.looked_up, report.limit) == (1, 1, ("daedap-mini", 256))
    message = "learned: 1 rows of up to 256 tokens (daedap-mini); only looked up, as they are longer: 1"
    assert message in report.lines()
    assert report.to_json()["limit"] == {"base": "daedap-mini", "tokens": 256}
    report = run_check(path, base="fresh", max_length=2000)
    assert (report.usable, report.looked_up, report.limit) == (2, 0, ("fresh", 2000))
    assert "learned: all of them; fresh learns rows of up to 2000 tokens" in report.lines()
