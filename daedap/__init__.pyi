"""Made by `python -m daedap.api`; do not edit."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal

from daedap.commands.check import CheckReport
from daedap.commands.compare import Comparison
from daedap.commands.pretrain import MadeBase
from daedap.commands.report import Reported
from daedap.config import DeviceName
from daedap.config import Method
from daedap.config import Perturbation
from daedap.config import Precision
from daedap.config import SplitMethod
from daedap.config import Tracker
from daedap.errors import DaedapError as DaedapError
from daedap.evaluation.evaluate import Evaluation as Evaluation
from daedap.retrieval.bot import Bot as Bot
from daedap.runs import Run as Run
from daedap.tuning.result import TuneResult
from daedap.types import Message as Message
from daedap.types import Pair as Pair
from daedap.types import Reply as Reply

__version__: str

def check(
    file: str | Path,
    *,
    question_column: str | int | None = None,
    answer_column: str | int | None = None,
    label_column: str | int | None = None,
    speaker: str | None = None,
    sheet: str | int | None = None,
    mask_personal: bool = False,
    base: str | int | Path = 'daedap-mini',
    max_length: int = 256,
) -> CheckReport:
    """Examine a file of questions and answers; the file itself is never changed.

    Raises DataError, and BaseError for a base that can't be loaded.

    Args:
        file: CSV, TSV, JSONL, .xlsx or a KakaoTalk export.
        base: The base that is to learn the rows: it decides how long they may be.
        max_length: Longest conversation in tokens, end token included; longer rows are only looked up.
        question_column: Name of the questions' column or key, or its number counted from 1; None: told by its name or
            position.
        answer_column: The same for the answers.
        label_column: The same for the labels, which are optional.
        speaker: In a KakaoTalk chat: whose messages are the answers.
        sheet: In a workbook: the sheet to read, by its name or its number counted from 1; None: all that hold pairs.
        mask_personal: Replace mobile, card, account and resident numbers and e-mail addresses by asterisks.
    """

def compare(
    run: str | int | Path | Sequence[str | int | Path],
    *,
    samples: int = 10,
    blind: bool = False,
    runs: str | Path = ...,
) -> Comparison:
    """Compare runs with the first of them: scores with paired intervals, settings, answers side by side.

    Raises RunError and SettingsError.

    Args:
        run: Two or more runs: number, folder, latest or best. The first is what the others are compared with.
        samples: Show this many questions that the runs answer differently.
        blind: Choose the better of two answers without knowing which run gave it; every choice is saved at once.
        runs: Folder of the runs.
    """

def evaluate(
    *,
    run: str | int | Path = 'latest',
    data: str | Path | None = None,
    question_column: str | int | None = None,
    answer_column: str | int | None = None,
    label_column: str | int | None = None,
    speaker: str | None = None,
    sheet: str | int | None = None,
    mask_personal: bool = False,
    paraphrases: str | Path | None = None,
    out_of_scope: str | Path | None = None,
    disturbed: bool = False,
    rows: int = 500,
    runs: str | Path = ...,
) -> Evaluation:
    """Score a run on its own test rows, or on a file.

    Scores on more of the run's own test rows than it keeps replace those that it keeps, and so do scores on paraphrases
    and on questions out of scope. Raises RunError, DataError and SettingsError.

    Args:
        run: Number, folder, latest or best.
        data: Questions and answers to score on, instead of the run's test rows.
        rows: Rank and answer at most this many rows; bits per character use all.
        runs: Folder of the runs.
        question_column: Name of the questions' column or key, or its number counted from 1; None: told by its name or
            position.
        answer_column: The same for the answers.
        label_column: The same for the labels, which are optional.
        speaker: In a KakaoTalk chat: whose messages are the answers.
        sheet: In a workbook: the sheet to read, by its name or its number counted from 1; None: all that hold pairs.
        mask_personal: Replace mobile, card, account and resident numbers and e-mail addresses by asterisks.
        paraphrases: A table of known questions in other words: columns question and answers (| between several), and
            kind if any.
        out_of_scope: A table of questions that nothing known answers: a column question, and kind if there is one.
        disturbed: Ask the test questions as other people type them, too: typos, spaces, particles, speech level,
            laughter.
    """

def pretrain(
    files: str | Path | Sequence[str | Path] = (),
    *,
    question_column: str | int | None = None,
    answer_column: str | int | None = None,
    label_column: str | int | None = None,
    speaker: str | None = None,
    sheet: str | int | None = None,
    mask_personal: bool = False,
    vocab_size: int = 8192,
    hidden_size: int = 384,
    intermediate_size: int = 1024,
    num_hidden_layers: int = 6,
    num_attention_heads: int = 6,
    budget: str | timedelta | None = None,
    num_train_epochs: int = 10,
    max_steps: int | None = None,
    block_size: int = 256,
    per_device_train_batch_size: int = 16,
    optim: Literal['muon', 'adamw_torch'] = 'muon',
    learning_rate: float = 0.008,
    weight_decay: float = 0.1,
    warmup_steps: int = 100,
    decay_ratio: float = 0.6,
    max_grad_norm: float = 1.0,
    save_steps: int = 200,
    eval_steps: int = 500,
    save_total_limit: int = 2,
    logging_steps: int = 20,
    precision: Precision = 'auto',
    device: DeviceName = 'auto',
    torch_compile: bool = False,
    seed: int = 42,
    base: str | int | Path = 'fresh',
    runs: str | Path = ...,
    resume: str | int | Path | None = None,
    dev_size: float = 0.01,
) -> MadeBase:
    """Make a base from texts, for `daedap train --base`.

    Raises DataError, SettingsError, RunError and StorageError.

    Args:
        files: Plain texts (.txt: one text a line, blank lines between documents; .jsonl with a text in each line) and
            dialogues (any file that train reads). A file named twice is learned twice as often.
        question_column: Name of the questions' column or key, or its number counted from 1; None: told by its name or
            position.
        answer_column: The same for the answers.
        label_column: The same for the labels, which are optional.
        speaker: In a KakaoTalk chat: whose messages are the answers.
        sheet: In a workbook: the sheet to read, by its name or its number counted from 1; None: all that hold pairs.
        mask_personal: Replace mobile, card, account and resident numbers and e-mail addresses by asterisks.
        vocab_size: The most tokens the tokenizer may learn.
        hidden_size: Width of the model.
        intermediate_size: Width inside its feed-forward layers.
        num_hidden_layers: Its depth.
        num_attention_heads: Attention heads; they share the width evenly.
        budget: Time to train, for instance 90m or 2h; the learning rate falls to nothing as it ends. [default: 2h]
        num_train_epochs: End after this many passes over the texts, should that come first: more would overfit.
        max_steps: Train for so many steps instead: as the clock decides nothing then, the same seed gives the same
            bytes.
        block_size: Tokens read at a time; also the longest conversation the base is used to.
        per_device_train_batch_size: Blocks per step.
        optim: Optimizer of the matrices between embedding and head; AdamW does the rest.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay, on those matrices only.
        warmup_steps: Steps in which the learning rate rises.
        decay_ratio: Share of the budget in which it falls, at the end.
        max_grad_norm: Gradients longer than this are shortened to it.
        save_steps: Steps between checkpoints.
        eval_steps: Steps between evaluations on the held-out texts.
        save_total_limit: Checkpoints to keep.
        logging_steps: Steps between lines of the log.
        precision: Number format of the matrix products; auto tries both and takes the faster.
        device: Where to compute; auto takes the best there is.
        torch_compile: Compile the model first: half a minute, then about 1.4 times as fast; needs a C++ compiler.
        seed: Decides the first weights, the held-out texts and the order of the others.
        base: Go on from this base's weights, with its tokenizer and shape: daedap-mini, a folder, or a name on the hub.
        runs: Folder of the runs; bases stand in its folder bases.
        resume: Go on with an interrupted base: its number or folder; without a value, the latest one.
        dev_size: Share of each file that is held out, in whole documents, to measure on; 0: none.
    """

def report(
    run: str | int | Path = 'latest',
    *,
    out: str | Path | None = None,
    runs: str | Path = ...,
) -> Reported:
    """Write a run's report: curves, scores, samples, settings, and what went wrong.

    Raises RunError, SettingsError and StorageError.

    Args:
        run: Number, folder, latest or best.
        out: The HTML file to write. [default: report.html in the run's folder]
        runs: Folder of the runs.
    """

def train(
    file: str | Path | None = None,
    *,
    question_column: str | int | None = None,
    answer_column: str | int | None = None,
    label_column: str | int | None = None,
    speaker: str | None = None,
    sheet: str | int | None = None,
    mask_personal: bool = False,
    split: SplitMethod = 'components',
    dev_size: float = 0.05,
    test_size: float = 0.1,
    fraction: float = 1.0,
    base: str | int | Path = 'daedap-mini',
    encoder: str | int | Path | None = None,
    method: Method | None = None,
    layers: int | None = None,
    shortlist: bool | None = None,
    cache_gb: float = 4.0,
    lora_r: int = 16,
    lora_alpha: int = 32,
    dropout: float = 0.0,
    max_length: int = 256,
    precision: Precision = 'auto',
    device: DeviceName = 'auto',
    augment: Perturbation | Sequence[Perturbation] = (),
    augment_share: float = 0.5,
    null_question_share: float = 0.0,
    num_train_epochs: int | None = None,
    budget: str | timedelta | None = None,
    per_device_train_batch_size: int = 32,
    learning_rate: float | None = None,
    weight_decay: float = 0.01,
    warmup_ratio: float = 0.05,
    lr_scheduler_type: Literal['linear', 'cosine', 'constant_with_warmup'] = 'linear',
    max_grad_norm: float = 1.0,
    early_stopping_patience: int = 2,
    load_best_model_at_end: bool = True,
    swa_epoch_start: int = 0,
    save_steps: int = 200,
    save_total_limit: int = 2,
    logging_steps: int = 10,
    torch_compile: bool | None = None,
    replay: float | None = None,
    seed: int = 42,
    report_to: Tracker = 'none',
    runs: str | Path = ...,
    from_: str | int | Path | None = None,
    resume: str | int | Path | None = None,
    evaluate: bool = True,
    lessons: bool = False,
) -> Run:
    """Make the next run from a file of questions and answers.

    Raises DataError, BaseError, SettingsError, RunError and StorageError.

    Args:
        file: CSV, TSV, JSON, JSONL, YAML, Parquet, .xlsx, text with "Q." and "A.", or a KakaoTalk export. Without it,
            the built-in starter pairs; with --from, its file.
        question_column: Name of the questions' column or key, or its number counted from 1; None: told by its name or
            position.
        answer_column: The same for the answers.
        label_column: The same for the labels, which are optional.
        speaker: In a KakaoTalk chat: whose messages are the answers.
        sheet: In a workbook: the sheet to read, by its name or its number counted from 1; None: all that hold pairs.
        mask_personal: Replace mobile, card, account and resident numbers and e-mail addresses by asterisks.
        split: components keeps near-duplicates together; random is the usual practice, and the run says how much leaks.
        dev_size: Rows that decide when to stop: a share, or an approximate number of rows.
        test_size: Rows for the scores, never trained on: a share, or an approximate number of rows.
        fraction: Train on only this share of the training rows; a smaller share is part of a larger one.
        base: Base model: daedap-mini is built in, fresh knows nothing; or a folder, a GGUF file, or a hub name.
        encoder: Sentence encoder that finds known questions: a folder or a hub name. [default: the built-in one]
        method: Train small LoRA matrices or all weights. [default: full below 50 million weights, else lora]
        layers: Number of layers to train, from the top; those below are run only once. [default: all; with LoRA, a
            third]
        shortlist: Compare only tokens that answers have, and single characters, while training. [default: with LoRA]
        cache_gb: Gigabytes that the outputs of frozen layers may take on disk, of all runs; 0: compute them at every
            step.
        lora_r: Rank of the LoRA matrices.
        lora_alpha: Scale of the LoRA matrices, in relation to the rank.
        dropout: Share of activations dropped in training: in LoRA's branch, or wherever a fully trained model has
            dropout.
        max_length: Longest conversation in tokens, end token included; longer pairs are used for retrieval, not for
            training.
        precision: Number format of the matrix products; auto tries both and takes the faster.
        device: Where to compute; auto takes the best there is.
        augment: Train also on questions as other people would type them; several kinds are joined by commas.
        augment_share: Augmented rows of each of these kinds, as a share of the training rows.
        null_question_share: Share of the training rows to train on once more without their question: how likely an
            answer is by itself.
        num_train_epochs: Passes over the training rows. [default: 5; 1 for the built-in pairs and up to 500 rows]
        budget: Time for everything, scores included, for instance 30m: rows, epochs and layers are chosen to fit into
            it. [default: no limit; 75 s for the built-in pairs unless --num-train-epochs is given]
        per_device_train_batch_size: Rows per step.
        learning_rate: Peak learning rate. [default: 1e-3 below 50 million weights, else 5e-4 for LoRA, 5e-5 in full]
        weight_decay: AdamW's weight decay, on matrices only.
        warmup_ratio: Share of the steps in which the learning rate rises.
        lr_scheduler_type: What the learning rate does after the warmup.
        max_grad_norm: Gradients longer than this are shortened to it.
        early_stopping_patience: Stop after this many epochs without a better dev loss; 0 never stops.
        load_best_model_at_end: Keep the weights of the epoch with the best dev loss, not the last.
        swa_epoch_start: Weight averaging: try the mean of the weights at the ends of this epoch and all later ones,
            too; 0: don't.
        save_steps: Steps between checkpoints, besides one after each epoch.
        save_total_limit: Checkpoints to keep.
        logging_steps: Steps between lines of the log.
        torch_compile: Compile the steps first. [default: when this training is long enough to repay it]
        replay: With --from: share of the known rows to replay. [default: ten per new row but at least 32, at most a
            tenth of them, and never fewer than are new]
        seed: Decides the order of rows, dropout, and the weights of a fresh model.
        report_to: Send the curves to a tracker too.
        runs: Folder of the runs.
        from_: Continue a finished run with the rows that it has not learned: its number, folder, latest or best.
        resume: Resume an interrupted run: its number or folder; without a value, the latest one.
        evaluate: Score the finished run on its test rows.
        lessons: Learn what was taught, too (daedap teach, the admin page); afterwards each lesson is checked.
    """

def tune(
    file: str | Path | None = None,
    *,
    question_column: str | int | None = None,
    answer_column: str | int | None = None,
    label_column: str | int | None = None,
    speaker: str | None = None,
    sheet: str | int | None = None,
    mask_personal: bool = False,
    split: SplitMethod = 'components',
    dev_size: float = 0.05,
    test_size: float = 0.1,
    fraction: float = 1.0,
    base: str | int | Path = 'daedap-mini',
    encoder: str | int | Path | None = None,
    method: Method | None = None,
    layers: int | None = None,
    shortlist: bool | None = None,
    cache_gb: float = 4.0,
    lora_r: int = 16,
    lora_alpha: int = 32,
    dropout: float = 0.0,
    max_length: int = 256,
    precision: Precision = 'auto',
    device: DeviceName = 'auto',
    augment: Perturbation | Sequence[Perturbation] = (),
    augment_share: float = 0.5,
    null_question_share: float = 0.0,
    num_train_epochs: int | None = None,
    budget: str | timedelta | None = None,
    per_device_train_batch_size: int = 32,
    learning_rate: float | None = None,
    weight_decay: float = 0.01,
    warmup_ratio: float = 0.05,
    lr_scheduler_type: Literal['linear', 'cosine', 'constant_with_warmup'] = 'linear',
    max_grad_norm: float = 1.0,
    early_stopping_patience: int = 2,
    load_best_model_at_end: bool = True,
    swa_epoch_start: int = 0,
    save_steps: int = 200,
    save_total_limit: int = 2,
    logging_steps: int = 10,
    torch_compile: bool | None = None,
    replay: float | None = None,
    seed: int = 42,
    report_to: Tracker = 'none',
    trials: int | None = None,
    study: str | None = None,
    storage: str | None = None,
    finish: bool = True,
    runs: str | Path = ...,
) -> TuneResult:
    """Search for better settings within a budget (default: an hour), then train a run with the best ones.

    Options that are set to another value than their default are not searched. The same command continues the same
    study. Raises DataError, BaseError, SettingsError, RunError and StorageError.

    Args:
        file: CSV, TSV, JSONL, .xlsx or a KakaoTalk export. Without it, the built-in starter pairs.
        question_column: Name of the questions' column or key, or its number counted from 1; None: told by its name or
            position.
        answer_column: The same for the answers.
        label_column: The same for the labels, which are optional.
        speaker: In a KakaoTalk chat: whose messages are the answers.
        sheet: In a workbook: the sheet to read, by its name or its number counted from 1; None: all that hold pairs.
        mask_personal: Replace mobile, card, account and resident numbers and e-mail addresses by asterisks.
        split: components keeps near-duplicates together; random is the usual practice, and the run says how much leaks.
        dev_size: Rows that decide when to stop: a share, or an approximate number of rows.
        test_size: Rows for the scores, never trained on: a share, or an approximate number of rows.
        fraction: Train on only this share of the training rows; a smaller share is part of a larger one.
        base: Base model: daedap-mini is built in, fresh knows nothing; or a folder, a GGUF file, or a hub name.
        encoder: Sentence encoder that finds known questions: a folder or a hub name. [default: the built-in one]
        method: Train small LoRA matrices or all weights. [default: full below 50 million weights, else lora]
        layers: Number of layers to train, from the top; those below are run only once. [default: all; with LoRA, a
            third]
        shortlist: Compare only tokens that answers have, and single characters, while training. [default: with LoRA]
        cache_gb: Gigabytes that the outputs of frozen layers may take on disk, of all runs; 0: compute them at every
            step.
        lora_r: Rank of the LoRA matrices.
        lora_alpha: Scale of the LoRA matrices, in relation to the rank.
        dropout: Share of activations dropped in training: in LoRA's branch, or wherever a fully trained model has
            dropout.
        max_length: Longest conversation in tokens, end token included; longer pairs are used for retrieval, not for
            training.
        precision: Number format of the matrix products; auto tries both and takes the faster.
        device: Where to compute; auto takes the best there is.
        augment: Train also on questions as other people would type them; several kinds are joined by commas.
        augment_share: Augmented rows of each of these kinds, as a share of the training rows.
        null_question_share: Share of the training rows to train on once more without their question: how likely an
            answer is by itself.
        num_train_epochs: Passes over the training rows. [default: 5; 1 for the built-in pairs and up to 500 rows]
        budget: Time for everything, scores included, for instance 30m: rows, epochs and layers are chosen to fit into
            it. [default: no limit; 75 s for the built-in pairs unless --num-train-epochs is given]
        per_device_train_batch_size: Rows per step.
        learning_rate: Peak learning rate. [default: 1e-3 below 50 million weights, else 5e-4 for LoRA, 5e-5 in full]
        weight_decay: AdamW's weight decay, on matrices only.
        warmup_ratio: Share of the steps in which the learning rate rises.
        lr_scheduler_type: What the learning rate does after the warmup.
        max_grad_norm: Gradients longer than this are shortened to it.
        early_stopping_patience: Stop after this many epochs without a better dev loss; 0 never stops.
        load_best_model_at_end: Keep the weights of the epoch with the best dev loss, not the last.
        swa_epoch_start: Weight averaging: try the mean of the weights at the ends of this epoch and all later ones,
            too; 0: don't.
        save_steps: Steps between checkpoints, besides one after each epoch.
        save_total_limit: Checkpoints to keep.
        logging_steps: Steps between lines of the log.
        torch_compile: Compile the steps first. [default: when this training is long enough to repay it]
        replay: With --from: share of the known rows to replay. [default: ten per new row but at least 32, at most a
            tenth of them, and never fewer than are new]
        seed: Decides the order of rows, dropout, and the weights of a fresh model.
        report_to: Send the curves to a tracker too.
        trials: End after this many trials of the study. [default: as many as there is time for]
        study: Name of the study; an existing one is continued. [default: from the file, the base and the options]
        storage: Database of studies that many machines share, like postgresql://user@host/name. [default: a file in
            runs]
        finish: Train a run with the best settings in the end; for machines that only help: --no-finish.
        runs: Folder of the runs; studies are kept in its subfolder studies.
    """
