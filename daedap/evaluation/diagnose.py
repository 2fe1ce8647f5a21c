"""Rules on what was there to learn, each with its evidence in the rows.

Rules on how the learning went, each with its evidence in the log.

Rules on how the model answers, each with its evidence in the scores.

A run's facts → what went wrong in it, the most serious first, each with its evidence and what to try next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from daedap.evaluation.metrics import SHORT, Score
from daedap.evaluation.run_record import SEVERITIES, DevEval, Finding, LogWindow, RunRecord
from daedap.evaluation.tables import duration
from daedap.i18n import translate

_LEAKS = 0.02
_REPEATED, _HARDLY_ELSE = 0.2, 0.5
"""Share of the rows with one and the same answer."""
_MIXED = (0.1, 0.9)
_FEW, _VERY_FEW = 1000, 200
"""A tenth of ChatbotData's 9,000 training rows costs 0.8 nats per token against all of them (`lm/plan.py`)."""
_FEW_FOR_LABEL = 10
_NAMED = 5


def leak(record: RunRecord) -> Finding | None:
    """Test questions have twins in training, so that the scores are too good."""
    data = record.manifest["data"]
    if data["leak"]["questions"] < _LEAKS:
        return None
    return Finding(
        "leak",
        "serious",
        translate("Test rows leak: the scores are better than the bot."),
        translate(
            "{questions:.0%} of the {rows:,} test questions have a near-twin in training (--split {split}).",
            questions=data["leak"]["questions"],
            rows=data["test"],
            split=data["split"],
        ),
        translate("Train with --split components, the default, and compare only such runs."),
    )


def constant_answers(record: RunRecord) -> Finding | None:
    """One answer stands everywhere."""
    if record.common_share < _REPEATED or record.manifest["data"]["train"] < _FEW_FOR_LABEL:
        return None
    return Finding(
        "constant_answers",
        "serious" if record.common_share >= _HARDLY_ELSE else "warning",
        translate("One answer stands everywhere: the model learns to say it always."),
        translate(
            "'{answer}' answers {share:.0%} of the training rows.",
            answer=record.common_answer,
            share=record.common_share,
        ),
        translate("Give these questions answers of their own, or keep a few of the rows."),
    )


def mixed_speech(record: RunRecord) -> Finding | None:
    """Polite and casual endings stand side by side in the answers."""
    polite, (low, high) = record.doctor["answers"]["polite"], _MIXED
    if not low < polite < high:
        return None
    return Finding(
        "mixed_speech",
        "warning",
        translate("The training answers mix polite and casual speech; the bot will too."),
        translate("{polite:.0%} of the answers end politely, the others do not.", polite=polite),
        translate("Bring the answers to one speech level."),
    )


def few_rows(record: RunRecord) -> Finding | None:
    """Too few rows to carry over to other questions."""
    rows = record.manifest["data"]["train"]
    if rows >= _FEW:
        return None
    return Finding(
        "few_rows",
        "warning" if rows < _VERY_FEW else "hint",
        translate("There are few rows to learn from."),
        translate(
            "{rows:,} training rows. On ChatbotData, {few:,} rows instead of 9,000 cost 0.8 nats per token.",
            rows=rows,
            few=_FEW,
        ),
        translate("Add rows, best of all several wordings of a question; look-up needs no more than one."),
    )


def few_for_label(record: RunRecord) -> Finding | None:
    """A label with hardly any rows."""
    few = {label: count for label, count in record.labels.items() if count < _FEW_FOR_LABEL}
    if not few or len(record.labels) < 2:
        return None
    shown = ", ".join(f"{label} ({count})" for label, count in list(few.items())[-_NAMED:])
    return Finding(
        "few_for_label",
        "hint",
        translate("Some labels have too few rows to be learned or scored."),
        translate(
            "{few} of {all} labels have less than {enough} training rows: {labels}.",
            few=len(few),
            all=len(record.labels),
            enough=_FEW_FOR_LABEL,
            labels=shown + (", …" if len(few) > _NAMED else ""),
        ),
        translate("Add rows for them, or give them the label of a larger group."),
    )


_JUMP = 2.0
"""A loss that rises to so many times its lowest value has jumped …"""
_NATS = 1.0
"""… when that is at least so much: near 0, small batches alone double a loss."""
_HARDLY = 0.05
"""Share of its first value that a loss must fall by to have fallen at all."""
_LEARNT = 0.5
"""Nats per token from which there is little left to learn."""
_STEEP = 0.03
"""Share by which the dev loss still falls in the last epoch, when one more is worth its time …"""
_FELT = 0.02
"""… and nats: near 0, a large share is next to nothing."""
_WORSE = 0.05
"""Share by which a dev loss must rise to have risen: what the noise of a few hundred rows does not do."""


def rate_too_high(record: RunRecord) -> Finding | None:
    """The training loss jumps up, or diverges.

    Gradients that are always cut say nothing by themselves: AdamW divides by their size, and healthy runs of small
    models are cut at every step. They are named beside the jump.
    """
    if not record.train:
        return None
    lowest, peak = _jump(record.train)
    if peak.loss < _JUMP * lowest.loss or peak.loss - lowest.loss < _NATS:
        return None
    limit, norms = record.train_options["max_grad_norm"], [window.grad_norm for window in record.train]
    rate = record.manifest["learning_rate"]
    return Finding(
        "rate_too_high",
        "serious",
        translate("The learning rate is too high: the loss jumps."),
        translate(
            "Loss {low:.2f} at step {start:,}, {high:.2f} at step {end:,}; gradients up to {norm:.1f} long, "
            "{cut:.0%} of them cut to {limit}; learning rate {rate:g}.",
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
    """The steepest rise from a lowest point so far, as a ratio."""
    lowest = best = peak = windows[0]
    for window in windows:
        lowest = min(lowest, window, key=lambda one: one.loss)
        if window.loss * best.loss > peak.loss * lowest.loss:
            best, peak = lowest, window
    return best, peak


def rate_too_low(record: RunRecord) -> Finding | None:
    """The training loss hardly falls, although there is much to learn."""
    if len(record.train) < 2:
        return None
    tenth = max(1, len(record.train) // 10)
    first, last = _mean(record.train[:tenth]), _mean(record.train[-tenth:])
    if last < _LEARNT or first - last > _HARDLY * first or rate_too_high(record):
        return None
    rate = record.manifest["learning_rate"]
    return Finding(
        "rate_too_low",
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
    """The loss still falls steeply at the end."""
    before, after = _last_two(record)
    if before - after <= max(_FELT, _STEEP * before) or rate_too_high(record):
        return None
    return Finding(
        "too_few_epochs",
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
            "Try --num-train-epochs {epochs}; it stops by itself when it gets no better.", epochs=_more(record)
        ),
    )


def _last_two(record: RunRecord) -> tuple[float, float]:
    """The last two dev losses; after a single epoch, the training losses of its two last quarters; zeros: unknown."""
    if len(record.dev) > 1:
        best = min(watch.loss for watch in record.dev)
        return (record.dev[-2].loss, best) if best == record.dev[-1].loss else (0.0, 0.0)
    quarter = len(record.train) // 4
    if (
        record.training["epochs"] > 1 or not quarter
    ):  # a training loss that falls on and on may be rows learned by heart
        return 0.0, 0.0
    return _mean(record.train[-2 * quarter : -quarter]), _mean(record.train[-quarter:])


def _more(record: RunRecord) -> int:
    return max(5, 2 * int(record.training["epochs"]))


def overfitting(record: RunRecord) -> Finding | None:
    """The dev loss rises while the training loss falls."""
    if len(record.dev) < 2 or not record.train:
        return None
    best, last = min(record.dev, key=lambda watch: watch.loss), record.dev[-1]
    learned = [_training_loss(record, watch) for watch in (best, last)]
    if last.loss < (1 + _WORSE) * best.loss or learned[1] >= learned[0]:
        return None
    kept = record.train_options["load_best_model_at_end"]
    return Finding(
        "overfitting",
        "hint" if kept else "serious",
        translate("Overfitting since epoch {epoch}: rows are learned by heart.", epoch=best.epoch + 1),
        translate(
            "From epoch {best} to {last} the dev loss rose from {low:.3f} to {high:.3f} while the training loss fell "
            "from {before:.3f} to {after:.3f}.",
            best=best.epoch,
            last=last.epoch,
            low=best.loss,
            high=last.loss,
            before=learned[0],
            after=learned[1],
        ),
        _kept(record, best)
        if kept
        else translate(
            "Leave --load-best-model-at-end on, try --num-train-epochs {epoch}, or add rows.", epoch=best.epoch
        ),
    )


def _kept(record: RunRecord, best: DevEval) -> str:
    if record.averaged:
        told = "The average of the epochs up to {epoch} was kept, so nothing is lost. More rows carry further."
        return translate(told, epoch=record.training["best_epoch"])
    told = "The weights of epoch {epoch} were kept, so nothing is lost. More rows, or --dropout 0.1, carry further."
    return translate(told, epoch=best.epoch)


def _training_loss(record: RunRecord, watch: DevEval) -> float:
    """Of the windows of an epoch, or the last one before its end when it was shorter than a window."""
    inside = [window for window in record.train if window.epoch == watch.epoch]
    return _mean(inside or [window for window in record.train if window.step <= watch.step][-1:] or record.train[:1])


def _mean(windows: Sequence[LogWindow]) -> float:
    return fmean(window.loss for window in windows)


def out_of_time(record: RunRecord) -> Finding | None:
    """The budget took away rows, layers, epochs or steps."""
    plan, training = record.plan, record.training
    if plan["budget"] is None:
        return None
    needed = plan["wished"] + plan["scoring"]
    batch = record.train_options["per_device_train_batch_size"] * record.manifest["machine"]["processes"]
    cut = not record.stopped_early and training["steps"] < plan["epochs"] * record.manifest["rows"]["train"] // batch
    if needed <= plan["budget"] and not cut:
        return None
    return Finding(
        "out_of_time",
        "warning",
        translate("The budget was too short for everything."),
        translate(
            "{needed} were needed, {budget} given: {share:.0%} of the rows, "
            "{epochs} of {planned} planned epoch(s), {layers} of {blocks} layers.",
            needed=duration(needed),
            budget=duration(plan["budget"]),
            share=plan["fraction"],
            epochs=training["epochs"],
            planned=plan["epochs"],
            layers=plan["layers"],
            blocks=plan["blocks"],
        ),
        translate("Give --budget {minutes}m, or a smaller base.", minutes=max(1, round(1.5 * needed / 60))),
    )


def unwatched(record: RunRecord) -> Finding | None:
    """No dev rows: nobody saw when to stop."""
    if record.dev:
        return None
    return Finding(
        "unwatched",
        "hint",
        translate("Nobody watched the training: there are no dev rows."),
        translate("0 of {rows:,} usable rows decided when to stop.", rows=record.manifest["data"]["usable"]),
        translate("Give --dev-size 0.05: overfitting is seen then, and the best epoch kept."),
    )


_DEAF = 0.05
"""Bits per character below which a question gain is as good as none."""
_LONG = 40
"""Characters of a middling answer that doesn't end within 32 tokens in any model."""
_ENDS, _HARDLY_ENDS = 0.8, 0.5
_VARIED, _HARDLY_VARIED = 0.5, 0.25
"""Different replies, as a share of how different people's own answers are."""


def ignores_question(record: RunRecord) -> Finding | None:
    """The question changes nothing, or nothing that can be told from chance."""
    gain, right = record.score("model", "question_gain"), record.score("model", "hits_at_1")
    if not gain or not right or _low(gain) > 0:
        return None
    deaf = gain.value < _DEAF
    return Finding(
        "ignores_question",
        "serious" if deaf else "warning",
        translate("The model ignores the question.")
        if deaf
        else translate("Whether the model listens to the question can't be told."),
        translate(
            "Question gain {gain} bits per character (n={rows:,}): its interval reaches 0. "
            "The right answer of {count} comes first in {right:.0%}; guessing: {chance:.0%}.",
            gain=_told(gain),
            rows=gain.n,
            count=record.candidates,
            right=right.value,
            chance=record.chance["hits_at_1"],
        ),
        translate("Try more epochs, more rows, or a larger --base. Until then, look-up answers better."),
    )


def does_not_end(record: RunRecord) -> Finding | None:
    """Replies run on: the end token was not learned."""
    ended, middling = record.score("model", "ended"), record.doctor["answers"]["p50"]
    if not ended or ended.value >= _ENDS or middling > _LONG:
        return None
    return Finding(
        "does_not_end",
        "serious" if ended.value < _HARDLY_ENDS else "warning",
        translate("Answers do not end: the end token was not learned."),
        translate(
            "{ended:.0%} of {rows:,} replies ended by themselves within {tokens} tokens; "
            "a middling answer to learn has {length} characters.",
            ended=ended.value,
            rows=ended.n,
            tokens=SHORT,
            length=middling,
        ),
        translate("Train for more epochs: the end is a token like any other, and learned with the answers."),
    )


def bland(record: RunRecord) -> Finding | None:
    """The model says the same things over and over, where people do not."""
    mine, people = (record.score(who, "unique") for who in ("model", "human"))
    common, peoples = (record.score(who, "bland") for who in ("model", "human"))
    if not mine or not people or not common or not peoples:
        return None
    share = mine.value / people.value
    if share >= _VARIED and _low(common) <= _high(peoples):
        return None
    return Finding(
        "bland",
        "serious" if share < _HARDLY_VARIED else "warning",
        translate("Answers are bland: the model says the same things over and over."),
        translate(
            "{mine:.0%} of {rows:,} replies are different from each other, people's own {people:.0%}; "
            "{common:.0%} are among the most frequent training answers, people's own {peoples:.0%}.",
            mine=mine.value,
            rows=mine.n,
            people=people.value,
            common=common.value,
            peoples=peoples.value,
        ),
        translate("Try more epochs or a larger base; give often repeated answers in more than one wording."),
    )


def retrieval_better(record: RunRecord) -> Finding | None:
    """Plain look-up finds the right answer more often than the model."""
    mine, looked_up = (record.score(who, "hits_at_1") for who in ("model", "retrieval"))
    if not mine or not looked_up or _high(mine) >= _low(looked_up):
        return None
    return Finding(
        "retrieval_better",
        "warning",
        translate("Plain look-up is better than the model."),
        translate(
            "The right answer of {count} comes first in {looked:.0%} by look-up, in {right:.0%} by the model "
            "(n={rows:,}).",
            count=record.candidates,
            looked=looked_up.value,
            right=mine.value,
            rows=mine.n,
        ),
        translate("The bot looks up first anyway. For questions nobody asked before, a larger base or more epochs."),
    )


def unscored(record: RunRecord) -> Finding | None:
    """Nothing is known of the answers."""
    if record.scores:
        return None
    return Finding(
        "unscored",
        "hint",
        translate("How it answers is not known: the run was not scored."),
        translate("{rows:,} test rows.", rows=record.manifest["data"]["test"]),
        translate("Train with --test-size 0.1 and without --no-evaluate."),
    )


def _low(score: Score) -> float:
    return score.value if score.low is None else score.low


def _high(score: Score) -> float:
    return score.value if score.high is None else score.high


def _told(score: Score) -> str:
    return f"{score.value:.3f}" + ("" if score.low is None else f" [{score.low:.3f}, {score.high:.3f}]")


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
"""Causes before what comes of them: the order of findings that are equally serious."""


def diagnose(record: RunRecord) -> list[Finding]:
    """Ask every rule."""
    found = [finding for rule in RULES if (finding := rule(record))]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def healthy() -> str:
    """What is said when no rule found anything."""
    return translate("Nothing to complain about: none of the {rules} rules found anything.", rules=len(RULES))
