"""The built-in pairs: enough, clean, polite, and their paraphrases point at them."""

from __future__ import annotations

import csv
import re
from datetime import timedelta

from daedap.commands.train import starter_options
from daedap.config import TrainOptions
from daedap.data.doctor import load
from daedap.data.reader import STARTER
from daedap.korean.text import comparison_form, speech_level

PAIRS = load(STARTER).pairs
PARAPHRASES = STARTER.with_name("starter_paraphrases.csv")


def test_a_training_on_them_is_short_unless_the_user_says_how_long() -> None:
    budget = timedelta(minutes=5)
    chosen = starter_options(TrainOptions())
    assert (chosen.num_train_epochs, chosen.budget) == (1, timedelta(seconds=75))
    assert starter_options(TrainOptions(budget=budget)) == TrainOptions(num_train_epochs=1, budget=budget)
    for given in (TrainOptions(num_train_epochs=3), TrainOptions(num_train_epochs=3, budget=budget)):
        assert starter_options(given) == given


def test_enough_of_every_kind() -> None:
    assert len(PAIRS) >= 3_000
    assert len({pair.answer for pair in PAIRS}) >= 1_800
    assert {pair.label for pair in PAIRS} == {"0", "1", "2"}


def test_the_doctor_finds_nothing() -> None:
    report = load(STARTER).report
    assert report.rows == report.usable
    assert report.findings == ()


def test_answers_are_polite() -> None:
    assert [pair.answer for pair in PAIRS if speech_level(pair.answer) != "polite"] == []


def test_someone_in_distress_is_told_who_helps() -> None:
    answers = [pair.answer for pair in PAIRS if re.search("죽고 ?싶|자해|자살", pair.question)]
    assert answers
    assert [answer for answer in answers if not re.search("109|1577-0199|1388|119", answer)] == []


def test_paraphrases_ask_for_known_answers_in_other_words() -> None:
    with PARAPHRASES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ids, known = {pair.id for pair in PAIRS}, {comparison_form(pair.question) for pair in PAIRS}
    assert len({row["question"] for row in rows}) == len(rows) == 300
    assert all(set(row["answer_ids"].split("|")) <= ids for row in rows)
    assert [row["question"] for row in rows if comparison_form(row["question"]) in known] == []
