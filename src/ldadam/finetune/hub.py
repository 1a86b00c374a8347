"""GLUE, SuperGLUE and GSM8K, from the Hugging Face Hub through `datasets`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ldadam.finetune.examples import Example, Labelled, Problem, Problems
from ldadam.finetune.task_names import OFFLINE
from ldadam.training.errors import UsageError

GLUE, SUPERGLUE, GSM8K = "nyu-mll/glue", "aps/super_glue", "openai/gsm8k"


@dataclass(frozen=True)
class HubTask:
    """Where a classification task is, what of a row the model reads, and how it is scored.

    Attributes:
        text, pair: templates over the columns of a row.
        group: the same for what tells which rows are choices for one question.
    """

    repository: str
    config: str
    metrics: tuple[str, ...]
    text: str
    pair: str | None = None
    validation: str = "validation"
    group: str = ""


def _nli(repository: str, config: str, **changes: Any) -> HubTask:
    metrics = changes.pop("metrics", ("accuracy",))
    return HubTask(repository, config, metrics, "{premise}", "{hypothesis}", **changes)


_BOTH = ("accuracy", "f1")
_SENTENCES = ("{sentence1}", "{sentence2}")
HUB_TASKS = {
    "cola": HubTask(GLUE, "cola", ("matthews",), "{sentence}"),
    "sst2": HubTask(GLUE, "sst2", ("accuracy",), "{sentence}"),
    "mrpc": HubTask(GLUE, "mrpc", _BOTH, *_SENTENCES),
    "stsb": HubTask(GLUE, "stsb", ("pearson", "spearman"), *_SENTENCES),
    "qqp": HubTask(GLUE, "qqp", _BOTH, "{question1}", "{question2}"),
    "mnli": _nli(GLUE, "mnli", validation="validation_matched"),
    "mnli-mismatched": _nli(GLUE, "mnli", validation="validation_mismatched"),
    "qnli": HubTask(GLUE, "qnli", ("accuracy",), "{question}", "{sentence}"),
    "rte": HubTask(GLUE, "rte", ("accuracy",), *_SENTENCES),
    "wnli": HubTask(GLUE, "wnli", ("accuracy",), *_SENTENCES),
    "superglue-boolq": HubTask(SUPERGLUE, "boolq", ("accuracy",), "{question}", "{passage}"),
    "superglue-cb": _nli(SUPERGLUE, "cb", metrics=("accuracy", "f1_macro")),
    "superglue-copa": HubTask(
        SUPERGLUE, "copa", ("choice_accuracy",), "{premise} What was the {question}?", "{choice}", group="{idx}"
    ),
    "superglue-multirc": HubTask(
        SUPERGLUE,
        "multirc",
        ("f1", "question_accuracy"),
        "{paragraph}",  # the longer text is the one that is cut
        "{question} {answer}",
        group="{idx[paragraph]} {idx[question]}",
    ),
    "superglue-rte": _nli(SUPERGLUE, "rte"),
    "superglue-wic": HubTask(SUPERGLUE, "wic", ("accuracy",), "{word}: {sentence1}", "{sentence2}"),
    "superglue-wsc": HubTask(SUPERGLUE, "wsc.fixed", ("accuracy",), "{text}", "{span2_text} means {span1_text}"),
}


def open_hub_task(name: str) -> Labelled:
    """The training and validation examples of a GLUE or SuperGLUE task; test labels are not public.

    Raises:
        UsageError: the hub cannot be reached, with what works without it.
    """
    task = HUB_TASKS[name]
    splits = load(name, task.repository, task.config)
    feature = splits["train"].features["label"]
    labels = tuple(feature.names) if hasattr(feature, "names") else ()
    train, validation = ([*_examples(task, splits[side])] for side in ("train", task.validation))
    return Labelled(name, train, validation, labels, task.metrics)


def _examples(task: HubTask, rows: Iterable[dict[str, Any]]) -> Iterable[Example]:
    """Every row as an example; a row that holds two choices as one example for each."""
    groups: dict[str, int] = {}
    for row in rows:
        group = groups.setdefault(task.group.format_map(row), len(groups))
        if "choice1" not in row:
            yield _example(task, row, row["label"], group)
            continue
        for index, choice in enumerate((row["choice1"], row["choice2"])):
            yield _example(task, {**row, "choice": choice}, int(index == row["label"]), group)


def _example(task: HubTask, row: dict[str, Any], label: int | float, group: int) -> Example:
    pair = None if task.pair is None else task.pair.format_map(row)
    return Example(task.text.format_map(row), pair, label, group)


def open_gsm8k() -> Problems:
    """Grade-school mathematics: 7,473 problems to train on and the 1,319 of the test split to evaluate on."""
    splits = load("gsm8k", GSM8K, "main")
    train, validation = (
        [Problem(row["question"], row["answer"]) for row in splits[side]] for side in ("train", "test")
    )
    return Problems("gsm8k", train, validation)


def load(name: str, repository: str, config: str) -> Any:
    """All splits of a data set of the hub, or of its copy in the cache."""
    from datasets import load_dataset

    try:
        return load_dataset(repository, config)
    except Exception as error:  # the hub client raises many kinds, network failures included
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"task {name} is {repository} ({config}) on the Hugging Face Hub, which could not be opened: {reason}; "
            f"without a network there are {', '.join(OFFLINE)}, gsm-symbolic and --train FILE"
        ) from error
