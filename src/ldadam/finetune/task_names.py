"""Which tasks there are, and what the model learns in each. Nothing here imports more than Python."""

from __future__ import annotations

from ldadam.spelling import did_you_mean
from ldadam.training.errors import UsageError

CLASSIFICATION = "classification"
ANSWERING = "answering"

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "mnli-mismatched", "qnli", "rte", "wnli")
SUPERGLUE = tuple(f"superglue-{name}" for name in ("boolq", "cb", "copa", "multirc", "rte", "wic", "wsc"))
OFFLINE = ("movie-sentiment", "boolq", "trec", "spam")
PROBLEMS = ("gsm8k", "gsm-symbolic")


def goal_of_task(task: str) -> str:
    """What the model learns in `task`.

    Raises:
        UsageError: there is no such task, with the ones that there are.
    """
    if task in (*GLUE, *SUPERGLUE, *OFFLINE):
        return CLASSIFICATION
    if task in PROBLEMS:
        return ANSWERING
    known = (*OFFLINE, *GLUE, *SUPERGLUE, *PROBLEMS)
    hint = did_you_mean(task, known, otherwise=f"expected one of {', '.join(known)}", similarity=0.7)
    raise UsageError(f"unknown task {task!r}: {hint}")
