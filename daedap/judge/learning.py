"""Rules on how the learning went, each with its evidence in the log."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from daedap.judge.facts import Facts, Watch, Window
from daedap.judge.finding import Finding
from daedap.judge.table import duration
from daedap.language import say

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
