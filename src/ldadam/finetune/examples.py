"""What a model is fine-tuned on: labelled texts, or problems with worked answers; and how they are split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ldadam.training.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A text, or two, and what it is; a number where there are no classes to choose from.

    Attributes:
        group: the question that this is one of several choices for.
    """

    text: str
    pair: str | None
    label: int | float
    group: int = 0


@dataclass(frozen=True)
class Problem:
    """A prompt and the answer to learn."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Labelled:
    """Examples to train on and to evaluate on.

    Attributes:
        labels: names of the classes, empty where labels are numbers.
        metrics: names in `metrics.METRICS`.
    """

    name: str
    train: Sequence[Example]
    validation: Sequence[Example]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Problems:
    """Problems to train on and to evaluate on."""

    name: str
    train: Sequence[Problem]
    validation: Sequence[Problem]


def is_held_out(text: str) -> bool:
    """Whether a text is among the one in ten for validation: a property of the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10 == 0


def split_by_hash(examples: Sequence[T], text_of: Callable[[T], str]) -> tuple[list[T], list[T]]:
    """Training and validation. Of examples with equal texts the first one counts."""
    distinct: dict[str, T] = {}
    for example in examples:
        distinct.setdefault(text_of(example), example)
    train = [example for text, example in distinct.items() if not is_held_out(text)]
    validation = [example for text, example in distinct.items() if is_held_out(text)]
    return train, validation


def fingerprint(*parts: Any) -> str:
    """A hash of all examples: tells a resumed run whether the data is still the same."""
    digest = hashlib.sha256()
    for part in parts:
        for example in part:
            digest.update(repr(example).encode())
    return digest.hexdigest()


def first_examples(data: Labelled, count: int | None, *, whole_groups: bool) -> list[Example]:
    """The first `count` of validation; with `whole_groups`, without those of a question that this would cut.

    Raises:
        UsageError: the first question has more choices than `count`.
    """
    chosen = data.validation[:count]
    cut = {example.group for example in data.validation[len(chosen) :]} if whole_groups else set()
    kept = [example for example in chosen if example.group not in cut]
    if chosen and not kept:
        raise UsageError(f"eval_examples={count} holds no whole question of {data.name}, scored by questions: raise it")
    return kept


def refuse_empty(name: str, **sides: Sequence[Any]) -> None:
    """Training and validation each need an example."""
    for side, examples in sides.items():
        if not examples:
            raise UsageError(f"{name} has no examples for {side}: give a larger file, or a --validation file")
