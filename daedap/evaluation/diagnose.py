"""Rules on what was there to learn, each with its evidence in the rows.

Rules on how the learning went, each with its evidence in the log.

Rules on how the model answers, each with its evidence in the scores.

A run's facts → what went wrong in it, the most serious first, each with its evidence and what to try next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from daedap.evaluation.metrics import SHORT, Score
from daedap.evaluation.run_record import SEVERITIES, Facts, Finding, Watch, Window
from daedap.evaluation.tables import duration
from daedap.i18n import say

_LEAKS = 0.02
_REPEATED, _HARDLY_ELSE = 0.2, 0.5
"""Share of the rows with one and the same answer."""
_MIXED = (0.1, 0.9)
_FEW, _VERY_FEW = 1000, 200
"""A tenth of ChatbotData's 9,000 training rows costs 0.8 nats per token against all of them (`lm/plan.py`)."""
_FEW_FOR_LABEL = 10
_NAMED = 5


def leak(facts: Facts) -> Finding | None:
    """Test questions have twins in training, so that the scores are too good."""
    data = facts.manifest["data"]
    if data["leak"]["questions"] < _LEAKS:
        return None
    return Finding(
        "leak",
        "serious",
        say("Test rows leak: the scores are better than the bot."),
        say(
            "{questions:.0%} of the {rows:,} test questions have a near-twin in training (--split {split}).",
            questions=data["leak"]["questions"],
            rows=data["test"],
            split=data["split"],
        ),
        say("Train with --split components, the default, and compare only such runs."),
    )


def constant_answers(facts: Facts) -> Finding | None:
    """One answer stands everywhere."""
    if facts.common_share < _REPEATED or facts.manifest["data"]["train"] < _FEW_FOR_LABEL:
        return None
    return Finding(
        "constant_answers",
        "serious" if facts.common_share >= _HARDLY_ELSE else "warning",
        say("One answer stands everywhere: the model learns to say it always."),
        say(
            "'{answer}' answers {share:.0%} of the training rows.",
            answer=facts.common_answer,
            share=facts.common_share,
        ),
        say("Give these questions answers of their own, or keep a few of the rows."),
    )


def mixed_speech(facts: Facts) -> Finding | None:
    """Polite and casual endings stand side by side in the answers."""
    polite, (low, high) = facts.doctor["answers"]["polite"], _MIXED
    if not low < polite < high:
        return None
    return Finding(
        "mixed_speech",
        "warning",
        say("The training answers mix polite and casual speech; the bot will too."),
        say("{polite:.0%} of the answers end politely, the others do not.", polite=polite),
        say("Bring the answers to one speech level."),
    )


def few_rows(facts: Facts) -> Finding | None:
    """Too few rows to carry over to other questions."""
    rows = facts.manifest["data"]["train"]
    if rows >= _FEW:
        return None
    return Finding(
        "few_rows",
        "warning" if rows < _VERY_FEW else "hint",
        say("There are few rows to learn from."),
        say(
            "{rows:,} training rows. On ChatbotData, {few:,} rows instead of 9,000 cost 0.8 nats per token.",
            rows=rows,
            few=_FEW,
        ),
        say("Add rows, best of all several wordings of a question; look-up needs no more than one."),
    )


def few_for_label(facts: Facts) -> Finding | None:
    """A label with hardly any rows."""
    few = {label: count for label, count in facts.labels.items() if count < _FEW_FOR_LABEL}
    if not few or len(facts.labels) < 2:
        return None
    shown = ", ".join(f"{label} ({count})" for label, count in list(few.items())[-_NAMED:])
    return Finding(
        "few_for_label",
        "hint",
        say("Some labels have too few rows to be learned or scored."),
        say(
            "{few} of {all} labels have less than {enough} training rows: {labels}.",
            few=len(few),
            all=len(facts.labels),
            enough=_FEW_FOR_LABEL,
            labels=shown + (", …" if len(few) > _NAMED else ""),
        ),
        say("Add rows for them, or give them the label of a larger group."),
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


def rate_too_high(facts: Facts) -> Finding | None:
    """The training loss jumps up, or diverges.

    Gradients that are always cut say nothing by themselves: AdamW divides by their size, and healthy runs of small
    models are cut at every step. They are named beside the jump.
    """
    if not facts.train:
        return None
    lowest, peak = _jump(facts.train)
    if peak.loss < _JUMP * lowest.loss or peak.loss - lowest.loss < _NATS:
        return None
    limit, norms = facts.recipe["max_grad_norm"], [window.grad_norm for window in facts.train]
    rate = facts.manifest["learning_rate"]
    return Finding(
        "rate_too_high",
        "serious",
        say("The learning rate is too high: the loss jumps."),
        say(
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
        say("Try --learning-rate {rate:.1g}, or leave it to the default.", rate=rate / 10),
    )


def _jump(windows: Sequence[Window]) -> tuple[Window, Window]:
    """The steepest rise from a lowest point so far, as a ratio."""
    lowest = best = peak = windows[0]
    for window in windows:
        lowest = min(lowest, window, key=lambda one: one.loss)
        if window.loss * best.loss > peak.loss * lowest.loss:
            best, peak = lowest, window
    return best, peak


def rate_too_low(facts: Facts) -> Finding | None:
    """The training loss hardly falls, although there is much to learn."""
    if len(facts.train) < 2:
        return None
    tenth = max(1, len(facts.train) // 10)
    first, last = _mean(facts.train[:tenth]), _mean(facts.train[-tenth:])
    if last < _LEARNT or first - last > _HARDLY * first or rate_too_high(facts):
        return None
    rate = facts.manifest["learning_rate"]
    return Finding(
        "rate_too_low",
        "serious",
        say("The model has hardly learned: the loss does not fall."),
        say(
            "Training loss {first:.2f} at first, {last:.2f} in the end, after {steps:,} steps; learning rate {rate:g}.",
            first=first,
            last=last,
            steps=facts.training["steps"],
            rate=rate,
        ),
        say("Try --learning-rate {rate:.1g}, or leave it to the default.", rate=rate * 10),
    )


def too_few_epochs(facts: Facts) -> Finding | None:
    """The loss still falls steeply at the end."""
    before, after = _last_two(facts)
    if before - after <= max(_FELT, _STEEP * before) or rate_too_high(facts):
        return None
    return Finding(
        "too_few_epochs",
        "warning",
        say("The training ended too early: the loss was still falling."),
        say(
            "Loss {before:.3f}, then {after:.3f}: {share:.0%} less, in the last of {epochs} epoch(s).",
            before=before,
            after=after,
            share=1 - after / before,
            epochs=facts.training["epochs"],
        ),
        say("Give a longer --budget.")
        if facts.plan["budget"]
        else say("Try --num-train-epochs {epochs}; it stops by itself when it gets no better.", epochs=_more(facts)),
    )


def _last_two(facts: Facts) -> tuple[float, float]:
    """The last two dev losses; after a single epoch, the training losses of its two last quarters; zeros: unknown."""
    if len(facts.dev) > 1:
        best = min(watch.loss for watch in facts.dev)
        return (facts.dev[-2].loss, best) if best == facts.dev[-1].loss else (0.0, 0.0)
    quarter = len(facts.train) // 4
    if facts.training["epochs"] > 1 or not quarter:  # a training loss that falls on and on may be rows learned by heart
        return 0.0, 0.0
    return _mean(facts.train[-2 * quarter : -quarter]), _mean(facts.train[-quarter:])


def _more(facts: Facts) -> int:
    return max(5, 2 * int(facts.training["epochs"]))


def overfitting(facts: Facts) -> Finding | None:
    """The dev loss rises while the training loss falls."""
    if len(facts.dev) < 2 or not facts.train:
        return None
    best, last = min(facts.dev, key=lambda watch: watch.loss), facts.dev[-1]
    learned = [_training_loss(facts, watch) for watch in (best, last)]
    if last.loss < (1 + _WORSE) * best.loss or learned[1] >= learned[0]:
        return None
    kept = facts.recipe["load_best_model_at_end"]
    return Finding(
        "overfitting",
        "hint" if kept else "serious",
        say("Overfitting since epoch {epoch}: rows are learned by heart.", epoch=best.epoch + 1),
        say(
            "From epoch {best} to {last} the dev loss rose from {low:.3f} to {high:.3f} while the training loss fell "
            "from {before:.3f} to {after:.3f}.",
            best=best.epoch,
            last=last.epoch,
            low=best.loss,
            high=last.loss,
            before=learned[0],
            after=learned[1],
        ),
        _kept(facts, best)
        if kept
        else say("Leave --load-best-model-at-end on, try --num-train-epochs {epoch}, or add rows.", epoch=best.epoch),
    )


def _kept(facts: Facts, best: Watch) -> str:
    if facts.averaged:
        told = "The average of the epochs up to {epoch} was kept, so nothing is lost. More rows carry further."
        return say(told, epoch=facts.training["best_epoch"])
    told = "The weights of epoch {epoch} were kept, so nothing is lost. More rows, or --dropout 0.1, carry further."
    return say(told, epoch=best.epoch)


def _training_loss(facts: Facts, watch: Watch) -> float:
    """Of the windows of an epoch, or the last one before its end when it was shorter than a window."""
    inside = [window for window in facts.train if window.epoch == watch.epoch]
    return _mean(inside or [window for window in facts.train if window.step <= watch.step][-1:] or facts.train[:1])


def _mean(windows: Sequence[Window]) -> float:
    return fmean(window.loss for window in windows)


def out_of_time(facts: Facts) -> Finding | None:
    """The budget took away rows, layers, epochs or steps."""
    plan, training = facts.plan, facts.training
    if plan["budget"] is None:
        return None
    needed = plan["wished"] + plan["scoring"]
    batch = facts.recipe["per_device_train_batch_size"] * facts.manifest["machine"]["processes"]
    cut = not facts.stopped_early and training["steps"] < plan["epochs"] * facts.manifest["rows"]["train"] // batch
    if needed <= plan["budget"] and not cut:
        return None
    return Finding(
        "out_of_time",
        "warning",
        say("The budget was too short for everything."),
        say(
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
        say("Give --budget {minutes}m, or a smaller base.", minutes=max(1, round(1.5 * needed / 60))),
    )


def unwatched(facts: Facts) -> Finding | None:
    """No dev rows: nobody saw when to stop."""
    if facts.dev:
        return None
    return Finding(
        "unwatched",
        "hint",
        say("Nobody watched the training: there are no dev rows."),
        say("0 of {rows:,} usable rows decided when to stop.", rows=facts.manifest["data"]["usable"]),
        say("Give --dev-size 0.05: overfitting is seen then, and the best epoch kept."),
    )


_DEAF = 0.05
"""Bits per character below which a question gain is as good as none."""
_LONG = 40
"""Characters of a middling answer that doesn't end within 32 tokens in any model."""
_ENDS, _HARDLY_ENDS = 0.8, 0.5
_VARIED, _HARDLY_VARIED = 0.5, 0.25
"""Different replies, as a share of how different people's own answers are."""


def ignores_question(facts: Facts) -> Finding | None:
    """The question changes nothing, or nothing that can be told from chance."""
    gain, right = facts.score("model", "question_gain"), facts.score("model", "hits_at_1")
    if not gain or not right or _low(gain) > 0:
        return None
    deaf = gain.value < _DEAF
    return Finding(
        "ignores_question",
        "serious" if deaf else "warning",
        say("The model ignores the question.")
        if deaf
        else say("Whether the model listens to the question can't be told."),
        say(
            "Question gain {gain} bits per character (n={rows:,}): its interval reaches 0. "
            "The right answer of {count} comes first in {right:.0%}; guessing: {chance:.0%}.",
            gain=_told(gain),
            rows=gain.n,
            count=facts.candidates,
            right=right.value,
            chance=facts.chance["hits_at_1"],
        ),
        say("Try more epochs, more rows, or a larger --base. Until then, look-up answers better."),
    )


def does_not_end(facts: Facts) -> Finding | None:
    """Replies run on: the end token was not learned."""
    ended, middling = facts.score("model", "ended"), facts.doctor["answers"]["p50"]
    if not ended or ended.value >= _ENDS or middling > _LONG:
        return None
    return Finding(
        "does_not_end",
        "serious" if ended.value < _HARDLY_ENDS else "warning",
        say("Answers do not end: the end token was not learned."),
        say(
            "{ended:.0%} of {rows:,} replies ended by themselves within {tokens} tokens; "
            "a middling answer to learn has {length} characters.",
            ended=ended.value,
            rows=ended.n,
            tokens=SHORT,
            length=middling,
        ),
        say("Train for more epochs: the end is a token like any other, and learned with the answers."),
    )


def bland(facts: Facts) -> Finding | None:
    """The model says the same things over and over, where people do not."""
    mine, people = (facts.score(who, "unique") for who in ("model", "human"))
    common, peoples = (facts.score(who, "bland") for who in ("model", "human"))
    if not mine or not people or not common or not peoples:
        return None
    share = mine.value / people.value
    if share >= _VARIED and _low(common) <= _high(peoples):
        return None
    return Finding(
        "bland",
        "serious" if share < _HARDLY_VARIED else "warning",
        say("Answers are bland: the model says the same things over and over."),
        say(
            "{mine:.0%} of {rows:,} replies are different from each other, people's own {people:.0%}; "
            "{common:.0%} are among the most frequent training answers, people's own {peoples:.0%}.",
            mine=mine.value,
            rows=mine.n,
            people=people.value,
            common=common.value,
            peoples=peoples.value,
        ),
        say("Try more epochs or a larger base; give often repeated answers in more than one wording."),
    )


def retrieval_better(facts: Facts) -> Finding | None:
    """Plain look-up finds the right answer more often than the model."""
    mine, looked_up = (facts.score(who, "hits_at_1") for who in ("model", "retrieval"))
    if not mine or not looked_up or _high(mine) >= _low(looked_up):
        return None
    return Finding(
        "retrieval_better",
        "warning",
        say("Plain look-up is better than the model."),
        say(
            "The right answer of {count} comes first in {looked:.0%} by look-up, in {right:.0%} by the model "
            "(n={rows:,}).",
            count=facts.candidates,
            looked=looked_up.value,
            right=mine.value,
            rows=mine.n,
        ),
        say("The bot looks up first anyway. For questions nobody asked before, a larger base or more epochs."),
    )


def unscored(facts: Facts) -> Finding | None:
    """Nothing is known of the answers."""
    if facts.scores:
        return None
    return Finding(
        "unscored",
        "hint",
        say("How it answers is not known: the run was not scored."),
        say("{rows:,} test rows.", rows=facts.manifest["data"]["test"]),
        say("Train with --test-size 0.1 and without --no-evaluate."),
    )


def _low(score: Score) -> float:
    return score.value if score.low is None else score.low


def _high(score: Score) -> float:
    return score.value if score.high is None else score.high


def _told(score: Score) -> str:
    return f"{score.value:.3f}" + ("" if score.low is None else f" [{score.low:.3f}, {score.high:.3f}]")


RULES: tuple[Callable[[Facts], Finding | None], ...] = (
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


def diagnose(facts: Facts) -> list[Finding]:
    """Ask every rule."""
    found = [finding for rule in RULES if (finding := rule(facts))]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def healthy() -> str:
    """What is said when no rule found anything."""
    return say("Nothing to complain about: none of the {rules} rules found anything.", rules=len(RULES))
