"""Examples from .csv, .tsv and .jsonl files of the user."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldadam.finetune.config import FinetuneConfig
from ldadam.finetune.examples import Example, Labelled, Problem, Problems, split_by_hash
from ldadam.training.errors import UsageError

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def open_labelled(config: FinetuneConfig) -> Labelled:
    """The examples of `config.train`: classes are the distinct labels there, in their order.

    Raises:
        UsageError: a file or a column is missing, a row cannot be read, or there is one class only.
    """
    assert config.train is not None
    columns = {config.text_column: "--text-column", config.label_column: "--label-column"}
    if config.pair_column:
        columns[config.pair_column] = "--pair-column"
    rows = read_rows(Path(config.train), columns, may_be_blank=config.pair_column)
    labels = tuple(sorted({str(row[config.label_column]) for row in rows}))
    _refuse_odd_labels(labels, config)
    examples = [_example(row, config, labels) for row in rows]
    if config.validation is None:
        train, validation = split_by_hash(examples, lambda example: f"{example.text}\t{example.pair or ''}")
    else:
        held_out = read_rows(Path(config.validation), columns, may_be_blank=config.pair_column)
        train, validation = examples, [_example(row, config, labels) for row in held_out]
    metrics = ("accuracy", "f1", "matthews") if len(labels) == 2 else ("accuracy", "f1_macro", "matthews")
    return Labelled(Path(config.train).name, train, validation, labels, metrics)


def _refuse_odd_labels(labels: tuple[str, ...], config: FinetuneConfig) -> None:
    """One class leaves nothing to tell apart, and numbers with fractions are no classes."""
    where = f"column {config.label_column!r} of {config.train}"
    if len(labels) < 2:
        raise UsageError(f"{where} holds {', '.join(labels)!r} alone: expected two classes or more")
    if fractions := [label for label in labels if _is_fraction(label)]:
        raise UsageError(f"{where} holds numbers such as {fractions[0]!r}: expected classes, by name or whole number")


def _is_fraction(text: str) -> bool:
    try:
        return not float(text).is_integer()
    except (ValueError, OverflowError):
        return False


def _example(row: dict[str, Any], config: FinetuneConfig, labels: tuple[str, ...]) -> Example:
    label = str(row[config.label_column])
    if label not in labels:
        raise UsageError(f"{config.validation} has label {label!r}, which {config.train} has not: {', '.join(labels)}")
    pair = str(row[config.pair_column]) if config.pair_column else None
    return Example(str(row[config.text_column]), pair, labels.index(label))


def open_problems(config: FinetuneConfig) -> Problems:
    """The prompts and answers of `config.train`.

    Raises:
        UsageError: a file or a column is missing, or a row cannot be read.
    """
    assert config.train is not None and config.prompt_column is not None
    columns = {config.prompt_column: "--prompt-column", config.answer_column: "--answer-column"}
    sides = [
        [Problem(*(str(row[column]) for column in columns)) for row in read_rows(Path(path), columns)]
        for path in (config.train, config.validation)
        if path is not None
    ]
    train, validation = sides if len(sides) == 2 else split_by_hash(sides[0], lambda problem: problem.prompt)
    return Problems(Path(config.train).name, train, validation)


def read_rows(path: Path, columns: Mapping[str, str], *, may_be_blank: str | None = None) -> list[dict[str, Any]]:
    """The rows of a file, all of which have something in `columns`, which map names to the options that choose them."""
    if path.suffix not in (*DELIMITERS, ".jsonl"):
        raise UsageError(f"{path} must end in .csv, .tsv or .jsonl")
    try:
        rows = [*(_jsonl_rows(path) if path.suffix == ".jsonl" else _table_rows(path))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise UsageError(f"{path} has no rows")
    for place, row in rows:
        for column, option in columns.items():
            if column not in row:
                found = ", ".join(str(name) for name in row if name is not None)
                raise UsageError(f"{place} has no column {column!r}: found {found}; {option} names another one")
            if row[column] is None or (column != may_be_blank and not str(row[column]).strip()):
                raise UsageError(f"{place} has nothing in column {column!r}: fill it, or leave the row out")
    return [row for _, row in rows]


def _table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=DELIMITERS[path.suffix], strict=True)
        for row in reader:
            yield f"{path}, line {reader.line_num}", row


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as stream:
        lines = [(f"{path}, line {number}", line) for number, line in enumerate(stream, start=1) if line.strip()]
    for place, line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{place} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"{place} must hold names and values, got {type(row).__name__}")
        yield place, row
