"""Diagnosis of a run: rules on its data, training and replies. A rule turns the run record into a finding or None."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from daedap.evaluation.metrics import SHORT
from daedap.evaluation.row_rules import ROW_RULES, SEVERITIES, Finding, apply_rules, diagnose_rows, finding
from daedap.evaluation.run_record import DevEval, LogWindow, RunRecord
from daedap.evaluation.tables import MetricFormat, format_duration, format_score
from daedap.i18n import translate

# Rules on the data

_LEAK = 0.02
"""Share of test questions with a near-duplicate in training."""
_CONSTANT, _VERY_CONSTANT = 0.2, 0.5
"""Share of training rows with the same answer."""
_MIXED = (0.1, 0.9)
"""Share of polite answers between which the speech level is mixed."""
_FEW, _VERY_FEW = 1000, 200
"""Training rows. 1,000 rows of ChatbotData instead of 9,000 cost 0.8 nats per token (`training/planner.py`)."""
_FEW_FOR_LABEL = 10
_MAX_LABELS = 5


def leak(record: RunRecord) -> Finding | None:
    """Near-duplicates of test questions are in the training rows, so the scores are too high."""
    share = record.data["leak"]["questions"]
    if share < _LEAK:
        return None
    return finding(
        "serious",
        "Test rows leak: the scores are better than the bot.",
        "{questions:.0%} of the {rows:,} test questions have a near-duplicate in training (--split {split}).",
        "Train with --split components, the default, and compare only such runs.",
        questions=share,
        rows=record.data["test"],
        split=record.data["split"],
    )


def constant_answers(record: RunRecord) -> Finding | None:
    """One answer makes up a large share of the training rows."""
    share = record.common_share
    if share < _CONSTANT or record.data["train"] < _FEW_FOR_LABEL:
        return None
    return finding(
        "serious" if share >= _VERY_CONSTANT else "warning",
        "One answer is very frequent: the model learns to give it to any question.",
        "'{answer}' answers {share:.0%} of the training rows.",
        "Write specific answers for these questions, or keep only a few of the rows.",
        answer=record.common_answer,
        share=share,
    )


def mixed_speech(record: RunRecord) -> Finding | None:
    """The training answers mix polite and casual speech."""
    polite, (low, high) = record.doctor["answers"]["polite"], _MIXED
    if not low < polite < high:
        return None
    return finding(
        "warning",
        "The training answers mix polite and casual speech; the bot will too.",
        "{polite:.0%} of the answers end politely, the others do not.",
        "Bring the answers to one speech level.",
        polite=polite,
    )


def few_rows(record: RunRecord) -> Finding | None:
    """Too few training rows to generalize."""
    rows = record.data["train"]
    if rows >= _FEW:
        return None
    return finding(
        "warning" if rows < _VERY_FEW else "hint",
        "There are few training rows.",
        "{rows:,} training rows. On ChatbotData, {few:,} rows instead of 9,000 cost 0.8 nats per token.",
        "Add rows, best of all several wordings of a question; retrieval needs no more than one.",
        rows=rows,
        few=_FEW,
    )


def few_for_label(record: RunRecord) -> Finding | None:
    """Some labels have fewer than 10 training rows."""
    few = [f"{label} ({count})" for label, count in record.labels.items() if count < _FEW_FOR_LABEL]
    if not few or len(record.labels) < 2:
        return None
    return finding(
        "hint",
        "Some labels have too few rows to be learned or scored.",
        "{few} of {all} labels have fewer than {enough} training rows: {labels}.",
        "Add rows for them, or give them the label of a larger group.",
        few=len(few),
        all=len(record.labels),
        enough=_FEW_FOR_LABEL,
        labels=", ".join([*few[-_MAX_LABELS:], *(["…"] if len(few) > _MAX_LABELS else [])]),
    )


# Rules on the training

_JUMP = 2.0
"""A loss that rises to this many times its minimum has jumped …"""
_JUMP_NATS = 1.0
"""… if the rise is at least this large: near 0, small batches alone double a loss."""
_MIN_DECREASE = 0.05
"""Relative decrease below which a training loss has not fallen."""
_LOW_LOSS = 0.5
"""Nats per token below which there is little left to learn."""
_STEEP = 0.03
"""Relative decrease of the dev loss in the last epoch from which another epoch is worth its time …"""
_STEEP_NATS = 0.02
"""… if the decrease is at least this large: near 0, a large relative decrease means nothing."""
_OVERFIT = 0.05
"""Relative rise of the dev loss that is more than the noise of a few hundred rows."""


def rate_too_high(record: RunRecord) -> Finding | None:
    """The training loss jumps or diverges.

    Constant gradient clipping alone is no evidence: AdamW normalizes by the gradient's scale, and healthy runs of small
    models are clipped at every step. The share of clipped steps is only reported with the jump.
    """
    if not record.train:
        return None
    lowest, peak = _jump(record.train)
    if peak.loss < _JUMP * lowest.loss or peak.loss - lowest.loss < _JUMP_NATS:
        return None
    limit, norms = record.train_options["max_grad_norm"], [window.grad_norm for window in record.train]
    rate = record.manifest["learning_rate"]
    return Finding(
        "serious",
        translate("The learning rate is too high: the loss jumps."),
        translate(
            "Loss {low:.2f} at step {start:,}, {high:.2f} at step {end:,}; gradient norms up to {norm:.1f}, "
            "{cut:.0%} of them clipped to {limit}; learning rate {rate:g}.",
            low=lowest.loss,
            start=lowest.step,
            high=peak.loss,
            end=peak.step,
            norm=max(norms),
            cut=fmean(norm > limit for norm in norms),
            limit=limit,
            rate=rate,
        ),
        translate("Try --learning-rate {rate:.1g}, or leave it to the default.", rate=rate / 10),
    )


def _jump(windows: Sequence[LogWindow]) -> tuple[LogWindow, LogWindow]:
    """The largest ratio of a loss to the running minimum before it: the window of the minimum, and of the peak."""
    lowest = best = peak = windows[0]
    for window in windows:
        lowest = min(lowest, window, key=lambda one: one.loss)
        if window.loss * best.loss > peak.loss * lowest.loss:
            best, peak = lowest, window
    return best, peak


def rate_too_low(record: RunRecord) -> Finding | None:
    """The training loss hardly falls although it is high."""
    if len(record.train) < 2:
        return None
    tenth = max(1, len(record.train) // 10)
    first, last = _mean_loss(record.train[:tenth]), _mean_loss(record.train[-tenth:])
    if last < _LOW_LOSS or first - last > _MIN_DECREASE * first or rate_too_high(record):
        return None
    rate = record.manifest["learning_rate"]
    return Finding(
        "serious",
        translate("The model has hardly learned: the loss does not fall."),
        translate(
            "Training loss {first:.2f} at first, {last:.2f} in the end, after {steps:,} steps; learning rate {rate:g}.",
            first=first,
            last=last,
            steps=record.training["steps"],
            rate=rate,
        ),
        translate("Try --learning-rate {rate:.1g}, or leave it to the default.", rate=rate * 10),
    )


def too_few_epochs(record: RunRecord) -> Finding | None:
    """The loss still falls steeply at the end of the training."""
    before, after = _last_losses(record)
    if before - after <= max(_STEEP_NATS, _STEEP * before) or rate_too_high(record):
        return None
    return Finding(
        "warning",
        translate("The training ended too early: the loss was still falling."),
        translate(
            "Loss {before:.3f}, then {after:.3f}: {share:.0%} less, in the last of {epochs} epoch(s).",
            before=before,
            after=after,
            share=1 - after / before,
            epochs=record.training["epochs"],
        ),
        translate("Give a longer --budget.")
        if record.plan["budget"]
        else translate(
            "Try --num-train-epochs {epochs}; it stops by itself when it gets no better.",
            epochs=max(5, 2 * int(record.training["epochs"])),
        ),
    )


def _last_losses(record: RunRecord) -> tuple[float, float]:
    """The last two dev losses, or training losses of the last two quarters of a single epoch; zeros: unknown."""
    if len(record.dev) > 1:
        best = min(dev.loss for dev in record.dev)
        return (record.dev[-2].loss, best) if best == record.dev[-1].loss else (0.0, 0.0)
    quarter = len(record.train) // 4
    if record.training["epochs"] > 1 or not quarter:  # later epochs: a falling training loss may be memorization
        return 0.0, 0.0
    return _mean_loss(record.train[-2 * quarter : -quarter]), _mean_loss(record.train[-quarter:])


def overfitting(record: RunRecord) -> Finding | None:
    """The dev loss rises while the training loss falls."""
    if len(record.dev) < 2 or not record.train:
        return None
    best, last = min(record.dev, key=lambda dev: dev.loss), record.dev[-1]
    before, after = (_training_loss(record, dev) for dev in (best, last))
    if last.loss < (1 + _OVERFIT) * best.loss or after >= before:
        return None
    best_kept = record.train_options["load_best_model_at_end"]
    return Finding(
        "hint" if best_kept else "serious",
        translate("Overfitting from epoch {epoch} on: training rows are memorized.", epoch=best.epoch + 1),
        translate(
            "From epoch {best} to {last} the dev loss rose from {low:.3f} to {high:.3f} while the training loss fell "
            "from {before:.3f} to {after:.3f}.",
            best=best.epoch,
            last=last.epoch,
            low=best.loss,
            high=last.loss,
            before=before,
            after=after,
        ),
        _best_weights_kept(record, best)
        if best_kept
        else translate(
            "Leave --load-best-model-at-end on, try --num-train-epochs {epoch}, or add rows.", epoch=best.epoch
        ),
    )


def _best_weights_kept(record: RunRecord, best: DevEval) -> str:
    if record.averaged:
        template = "The average of the epochs up to {epoch} was kept, so nothing is lost. More rows would help."
        return translate(template, epoch=record.training["best_epoch"])
    template = "The weights of epoch {epoch} were kept, so nothing is lost. More rows, or --dropout 0.1, would help."
    return translate(template, epoch=best.epoch)


def _training_loss(record: RunRecord, dev: DevEval) -> float:
    """Mean of the log windows of the epoch, or of the last window before its end if the epoch is shorter than one."""
    inside = [window for window in record.train if window.epoch == dev.epoch]
    before = [window for window in record.train if window.step <= dev.step][-1:]
    return _mean_loss(inside or before or record.train[:1])


def _mean_loss(windows: Sequence[LogWindow]) -> float:
    return fmean(window.loss for window in windows)


def out_of_time(record: RunRecord) -> Finding | None:
    """The time budget cut rows, layers, epochs or steps."""
    plan, training = record.plan, record.training
    if plan["budget"] is None:
        return None
    needed = plan["requested"] + plan["scoring"]
    planned_steps = plan["epochs"] * record.manifest["rows"]["train"] // record.batch_size
    cut = not record.stopped_early and training["steps"] < planned_steps
    if needed <= plan["budget"] and not cut:
        return None
    return finding(
        "warning",
        "The budget was too short for everything.",
        "{needed} were needed, {budget} given: {share:.0%} of the rows, "
        "{epochs} of {planned} planned epoch(s), {layers} of {blocks} layers.",
        "Give --budget {minutes}m, or a smaller base.",
        needed=format_duration(needed),
        budget=format_duration(plan["budget"]),
        share=plan["fraction"],
        epochs=training["epochs"],
        planned=plan["epochs"],
        layers=plan["layers"],
        blocks=plan["blocks"],
        minutes=max(1, round(1.5 * needed / 60)),
    )


def unwatched(record: RunRecord) -> Finding | None:
    """Without dev rows there is no early stopping and no choice of the best epoch."""
    if record.dev:
        return None
    return finding(
        "hint",
        "There are no dev rows, so overfitting goes unnoticed.",
        "0 of {rows:,} usable rows decided when to stop.",
        "Try --dev-size 0.05: overfitting is detected then, and the best epoch kept.",
        rows=record.data["usable"],
    )


# Rules on the replies

_NO_GAIN = 0.05
"""Question gain in bits per character below which the question has no effect."""
_LONG = 40
"""Characters of a median answer that does not fit into 32 tokens."""
_ENDS, _RARELY_ENDS = 0.8, 0.5
_DIVERSE, _HARDLY_DIVERSE = 0.5, 0.25
"""Unique replies of the model ÷ unique written answers."""


def ignores_question(record: RunRecord) -> Finding | None:
    """The question gain is not significantly above 0."""
    gain, right = record.score("model", "question_gain"), record.score("model", "hits_at_1")
    if not gain or not right or gain.lower > 0:
        return None
    no_gain = gain.value < _NO_GAIN
    return finding(
        "serious" if no_gain else "warning",
        "The model ignores the question." if no_gain else "It is unclear whether the model uses the question.",
        "Question gain {gain} bits per character (n={rows:,}): its interval reaches 0. "
        "The right answer of {count} comes first in {right:.0%}; guessing: {chance:.0%}.",
        "Try more epochs, more rows, or a larger --base. Until then, retrieval answers better.",
        gain=format_score(MetricFormat("", "", digits=3), gain),
        rows=gain.n,
        count=record.candidates,
        right=right.value,
        chance=record.chance["hits_at_1"],
    )


def does_not_end(record: RunRecord) -> Finding | None:
    """Too few replies end with EOS within 32 tokens."""
    ended, median_length = record.score("model", "ended"), record.doctor["answers"]["p50"]
    if not ended or ended.value >= _ENDS or median_length > _LONG:
        return None
    return finding(
        "serious" if ended.value < _RARELY_ENDS else "warning",
        "Answers do not end: the end token was not learned.",
        "{ended:.0%} of {rows:,} replies ended by themselves within {tokens} tokens; "
        "the median training answer has {length} characters.",
        "Train for more epochs: the end token is learned with the answers.",
        ended=ended.value,
        rows=ended.n,
        tokens=SHORT,
        length=median_length,
    )


def bland(record: RunRecord) -> Finding | None:
    """Replies are much less diverse than the written answers, or more often a frequent training answer."""
    unique, human_unique = (record.score(system, "unique") for system in ("model", "human"))
    frequent, human_frequent = (record.score(system, "bland") for system in ("model", "human"))
    if not unique or not human_unique or not frequent or not human_frequent:
        return None
    share = unique.value / human_unique.value
    if share >= _DIVERSE and frequent.lower <= human_frequent.upper:
        return None
    return finding(
        "serious" if share < _HARDLY_DIVERSE else "warning",
        "Answers are bland: the model says the same things over and over.",
        "{unique:.0%} of {rows:,} replies are unique, of the written answers {human_unique:.0%}; {frequent:.0%} "
        "are among the most frequent training answers, of the written answers {human_frequent:.0%}.",
        "Try more epochs or a larger base; give often repeated answers in more than one wording.",
        unique=unique.value,
        rows=unique.n,
        human_unique=human_unique.value,
        frequent=frequent.value,
        human_frequent=human_frequent.value,
    )


def retrieval_better(record: RunRecord) -> Finding | None:
    """Hits@1 of retrieval is significantly above that of the model."""
    model, retrieval = (record.score(system, "hits_at_1") for system in ("model", "retrieval"))
    if not model or not retrieval or model.upper >= retrieval.lower:
        return None
    return finding(
        "warning",
        "Retrieval is better than the model.",
        "The right answer of {count} comes first in {retrieval:.0%} by retrieval, in {model:.0%} by the model "
        "(n={rows:,}).",
        "The bot uses retrieval first anyway. For unknown questions, try a larger base or more epochs.",
        count=record.candidates,
        retrieval=retrieval.value,
        model=model.value,
        rows=model.n,
    )


def unscored(record: RunRecord) -> Finding | None:
    """The run was not evaluated."""
    if record.scores:
        return None
    return finding(
        "hint",
        "The quality of the replies is not known: the run was not scored.",
        "{rows:,} test rows.",
        "Train with --test-size 0.1 and without --no-evaluate.",
        rows=record.data["test"],
    )


RULES: tuple[Callable[[RunRecord], Finding | None], ...] = (
    leak,
    rate_too_high,
    rate_too_low,
    overfitting,
    constant_answers,
    ignores_question,
    does_not_end,
    bland,
    out_of_time,
    too_few_epochs,
    retrieval_better,
    mixed_speech,
    few_rows,
    few_for_label,
    unwatched,
    unscored,
)
"""Causes before their effects: the order of findings of equal severity."""


def diagnose(record: RunRecord) -> list[Finding]:
    """The findings of all rules, the most serious first."""
    findings = [*apply_rules(RULES, record), *diagnose_rows(record.pairs, record.faq)]
    return sorted(findings, key=lambda found: SEVERITIES.index(found.severity))


def healthy() -> str:
    """The message if no rule applies."""
    return translate("No problem found by any of the {rules} rules.", rules=len(RULES) + len(ROW_RULES))
