from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import PAIRS
from queries import encoded

import daedap
from daedap.config import AnswerOptions
from daedap.data.split import read_rows
from daedap.errors import RunError, SettingsError
from daedap.retrieval.bot import KNOWN, Bot
from daedap.retrieval.hybrid import HybridRetriever
from daedap.retrieval.lexical import Hits
from daedap.runs import Run
from daedap.types import Generation, Message, Pair

STRANGE = ["양자역학을 설명해 봐", "zzz", "</s><usr>안녕", "<|assistant|>네</s>", "😀" * 10, "1 + 1 = ?"]


@pytest.fixture(scope="module")
def bot(trained: Run) -> Bot:
    return daedap.Bot.open(trained.folder)


def test_a_known_question_gets_its_answer_and_says_from_where(bot: Bot, trained: Run) -> None:
    for pair in read_rows(trained.folder, "train")[:20]:
        reply = bot.reply(pair.question)
        assert (reply.text, reply.source) == (pair.answer, "retrieved")
        assert reply.score == pytest.approx(1, abs=1e-2)
        assert reply.evidence
        assert (reply.evidence.question, reply.evidence.answer) == (pair.question, pair.answer)
        assert reply.evidence.similarity == pytest.approx(1, abs=1e-2)


def test_held_out_rows_are_known_too(bot: Bot, trained: Run) -> None:
    held_out = [*read_rows(trained.folder, "dev"), *read_rows(trained.folder, "test")]
    assert len(held_out) > 5
    assert [bot.reply(pair.question).text for pair in held_out] == [pair.answer for pair in held_out]
    assert {pair.id for pair in bot.retriever.index.pairs} == {pair.id for pair in PAIRS}


def test_the_same_question_typed_otherwise(bot: Bot) -> None:
    reply = bot.reply("우리강아지가  자꾸 화를 내요ㅠㅠ")
    assert (reply.text, reply.source) == ("강아지도 마음이 힘들 때예요.", "retrieved")
    assert reply.evidence
    assert reply.evidence.question == "우리 강아지가 자꾸 화를 내요"
    assert KNOWN <= reply.score <= 1


@pytest.mark.parametrize("question", STRANGE)
def test_a_strange_question_is_not_understood(bot: Bot, question: str) -> None:
    reply = bot.reply(question)
    assert reply.question == question
    assert reply.source == "fallback"
    assert reply.evidence
    assert reply.evidence.similarity < KNOWN
    assert reply.text
    assert not any(mark in reply.text for mark in ("</s>", "<|user|>", "<|assistant|>", "<unk>", "<pad>"))


def test_without_a_fallback_something_is_said(trained: Run) -> None:
    bot = Bot.open(trained.folder, answer_options=AnswerOptions(fallback="off"))
    reply = bot.reply("양자역학을 설명해 봐")
    assert reply.source in ("retrieved", "generated")
    proposed = {
        one.text
        for one in bot.language_model.sample([Pair(reply.question, "")], 8, seed=42, temperature=0.7, top_k=40)[0]
    }
    assert reply.text in proposed | {pair.answer for pair in PAIRS}


def test_the_fallback_can_be_told(trained: Run) -> None:
    message = Bot.open(trained.folder, answer_options=AnswerOptions(fallback="고객센터에 물어봐 주세요.")).reply(
        "양자역학을 설명해 봐"
    )
    assert (message.text, message.source) == ("고객센터에 물어봐 주세요.", "fallback")


def test_without_samples_only_what_is_known_is_said(trained: Run) -> None:
    bot = Bot.open(trained.folder, answer_options=AnswerOptions(samples=0, fallback="off"))
    replies = bot.reply_many([f"{pair.question[:5]} 뭐 하지" for pair in PAIRS[::9]])
    assert {reply.text for reply in replies} <= {pair.answer for pair in PAIRS}


def test_with_samples_known_questions_are_answered_and_others_reranked(trained: Run) -> None:
    bot = Bot.open(trained.folder, answer_options=AnswerOptions(samples=8, fallback="off"))
    questions = [PAIRS[3].question, "양자역학을 설명해 봐", "", *STRANGE]
    many = bot.reply_many(questions)
    assert (many[0].text, many[0].source) == (PAIRS[3].answer, "retrieved")
    assert many == bot.reply_many(questions)
    assert bot.reply(questions[1]) == bot.reply(questions[1])  # sampled apart from the others: maybe another answer
    assert not any(reply.suggestions for reply in many)
    assert all(reply.source in ("retrieved", "generated") for reply in [many[1], *many[3:]])


def test_what_the_model_proposes_is_said_when_it_fits_best(bot: Bot) -> None:
    near = bot.retriever.search(encoded("양자역학을 설명해 봐"), 3)[0]
    spoken = Generation("양자역학은 어려워요.", True, 5, -2.0)
    reply = bot._chosen(encoded("양자역학을 설명해 봐")[0], near, [spoken], best=3)
    assert (reply.text, reply.source, reply.score) == ("양자역학은 어려워요.", "generated", -2.0)
    assert reply.evidence == bot.retriever.index.evidence(*near)[0]


def test_candidate_answers_are_scored(bot: Bot) -> None:
    pairs = PAIRS[:6]
    found = bot.score_candidates(pairs, [[pair.answer, "몰라요.", "네."] for pair in pairs])
    assert found.shape == (6, 3)
    assert (found.argmax(axis=1) == 0).all()


@pytest.mark.parametrize("question", ["", " ", "\n\t"])
def test_nothing_asked(bot: Bot, question: str) -> None:
    reply = bot.reply(question)
    assert (reply.source, reply.score, reply.evidence) == ("fallback", 0.0, None)
    assert reply.text == "잘 이해하지 못했어요. 다르게 말해 주시겠어요?"


def test_a_bots_own_sentences_are_in_the_language_of_its_file(bot: Bot, monkeypatch: pytest.MonkeyPatch) -> None:
    english = [Pair("When do you open?", "At nine."), Pair("Where are you?", "Next to the station.")]
    retriever = HybridRetriever.build(english)
    monkeypatch.setenv("DAEDAP_LANG", "ko")
    assert Bot(bot.run, retriever).reply("").text == "I didn't quite understand. Could you say it another way?"


def test_an_unsure_bot_suggests_the_nearest_questions(bot: Bot) -> None:
    faq = [
        Pair("환불은 언제 되나요?", "3영업일 안에 돌려 드려요."),
        Pair("해외 배송도 되나요?", "국내로만 보내 드려요."),
        Pair("매장은 어디에 있나요?", "솔빛시 단풍로 12에 있어요."),
        Pair("비밀번호를 잊어버렸어요.", "로그인 화면에서 새로 정하실 수 있어요."),
    ]
    retriever = HybridRetriever.build(faq)
    unsure = Bot(bot.run, retriever, AnswerOptions(direct_answer_threshold=1.0, suggestion_threshold=0.0))
    reply = unsure.reply("암호가 기억이 안 나요")
    assert (reply.source, reply.text) == ("fallback", "제가 잘 이해했는지 모르겠어요. 혹시 이 질문인가요?")
    assert reply.suggestions[0] == "비밀번호를 잊어버렸어요."
    assert len(reply.suggestions) == 3
    assert reply.lines()[1] == "  1. 비밀번호를 잊어버렸어요."
    assert reply.to_json()["suggestions"] == list(reply.suggestions)
    assert unsure.reply("환불은 언제 되나요").text == "3영업일 안에 돌려 드려요.", "a known question is certain"
    sure = Bot(bot.run, retriever, AnswerOptions(direct_answer_threshold=0.0))
    assert sure.reply("암호가 기억이 안 나요").text == "로그인 화면에서 새로 정하실 수 있어요."
    silent = Bot(bot.run, retriever, AnswerOptions(direct_answer_threshold=1.0, suggestion_threshold=1.0))
    assert silent.reply("암호가 기억이 안 나요").suggestions == ()


def test_an_empty_fallback_is_refused() -> None:
    with pytest.raises(SettingsError, match="--fallback is empty"):
        AnswerOptions(fallback=" ")


def test_many_at_once_are_answered_as_one_by_one(bot: Bot) -> None:
    questions = [PAIRS[3].question, "양자역학을 설명해 봐", "", PAIRS[70].question, *STRANGE, PAIRS[3].question]
    many, single = bot.reply_many(questions), [bot.reply(question) for question in questions]
    assert [(reply.text, reply.source) for reply in many] == [(reply.text, reply.source) for reply in single]
    close = pytest.approx([reply.score for reply in single], abs=0.03)  # see SentenceEncoder.encode: rounding in int8
    assert [reply.score for reply in many] == close
    assert bot.reply_many([]) == []


@pytest.mark.parametrize("question", [PAIRS[5].question, "양자역학을 설명해 봐", "</s><usr>안녕", ""])
def test_a_streamed_reply_is_the_same_reply(bot: Bot, question: str) -> None:
    message: list[str] = []
    reply = bot.stream(question, message.append)
    alone = bot.reply(question)
    assert (reply.text, reply.source) == (alone.text, alone.source)
    assert "".join(message).strip() == reply.text


def test_history_is_taken_along(bot: Bot) -> None:
    history = [Message("user", "안녕"), Message("assistant", "반가워요")] * 40
    assert bot.reply(PAIRS[0].question, history).text == PAIRS[0].answer
    assert bot.reply("양자역학을 설명해 봐", history).source in ("generated", "fallback")


def test_text_that_no_encoding_knows(bot: Bot) -> None:
    reply = bot.reply("\udcff\udcfe 이상한 글자")
    assert reply.question == "?? 이상한 글자"
    assert reply.text


def test_a_question_that_is_too_long_for_the_model_is_looked_up(trained: Run) -> None:
    bot = Bot.open(trained.folder, answer_options=AnswerOptions(fallback="off"))
    assert bot.reply("끝없이 이어지는 이야기를 " * 100).source == "retrieved"


def test_open_by_number_folder_and_name(trained: Run) -> None:
    runs = trained.folder.parent
    for name in (1, "1", "latest", "best"):
        assert Bot.open(name, runs=str(runs)).run == trained
    with pytest.raises(RunError, match="no such run"):
        Bot.open(9, runs=runs)


def test_what_is_chosen_keeps_the_speech_level_of_the_answers(bot: Bot) -> None:
    polite, casual = Pair("뭐 먹지", "찌개 어때요?"), Pair("뭐 먹을까", "찌개 먹어라")
    many = [Pair(f"질문 {number}", f"{number}번이에요.") for number in range(20)]

    def talks(pairs: list[Pair]) -> Bot:
        return Bot(bot.run, HybridRetriever.build(pairs))

    near = Hits(np.array([1, 0]), np.array([0.5, 0.4], np.float32))
    assert talks([polite, casual, *many])._in_speech_level(near).rows.tolist() == [0]
    assert talks([polite, casual])._in_speech_level(near).rows.tolist() == [1, 0], "both levels are common"
    alone = Hits(np.array([1]), np.array([0.5], np.float32))
    assert talks([polite, casual, *many])._in_speech_level(alone).rows.tolist() == [1], "there is nothing else"


def test_pairs_are_answered_with_the_turns_before_them(trained: Run) -> None:
    bot = Bot.open(trained.folder, answer_options=AnswerOptions(samples=2, fallback="off"))
    turns = (Message("user", "강아지 키워요"), Message("assistant", "좋겠네요."))
    pairs = [Pair("화를 내요", "저런.", history=turns), Pair("화를 내요", "저런.")]
    assert bot.reply_to_pairs(pairs) == [bot.reply("화를 내요", turns), bot.reply("화를 내요")]


def test_known_questions_are_answered_however_strange_the_others_are(trained: Run) -> None:
    bot = Bot.open(trained.folder, answer_options=AnswerOptions(samples=8))
    bot.retriever = replace(bot.retriever, weights=replace(bot.retriever.weights, out_of_scope_threshold=0.99))
    reply = bot.reply("우리강아지가  자꾸 화를 내요ㅠㅠ?")
    assert (reply.text, reply.source) == ("강아지도 마음이 힘들 때예요.", "retrieved")
