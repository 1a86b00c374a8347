"""From the command line to a study."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ldadam.comparison.study import KINDS, RESOLVE, Contestant, Study
from ldadam.spelling import did_you_mean
from ldadam.training.config_file import parse_value
from ldadam.training.errors import UsageError
from ldadam.training.optimizers import ALL_OPTIONS, find_optimizer
from ldadam.training.run_config import RunConfig, fields_of

# Five trials each: around an optimizer's own learning rate, a factor of two apart.
AROUND = (0.25, 0.5, 1.0, 2.0, 4.0)

# Settings that the study decides, or that have an option of their own.
_NOT_SHARED = ("optimizer", "lr", "seed", "out", "report", "threads", "preset", "task", "model")


def study_from(
    task: str,
    optimizers: str,
    *,
    lrs: str | None,
    num_seeds: int,
    settings: Sequence[str],
    threads: int | None,
    dense_lr: float | None = None,
) -> Study:
    """The study that `ldadam compare` describes.

    Raises:
        UsageError: a name is unknown, or a number is none.
    """
    subcommand, work = _work(task)
    given = _settings(KINDS[subcommand], settings)
    if dense_lr is not None and "dense_lr_scale" in given:
        raise UsageError("--dense-lr and --set dense-lr-scale both set the rate of embeddings: give one of them")
    if dense_lr is not None and not 0 <= dense_lr < float("inf"):
        raise UsageError(f"--dense-lr must be a finite number >= 0, got {dense_lr:g}")
    shared = {**work, **{name: value for name, value in given.items() if name not in ALL_OPTIONS}, "threads": threads}
    names = [name for name in optimizers.replace(" ", "").split(",") if name]
    if not names:
        raise UsageError("--optimizers is empty: name one, such as ldadamw")
    rates = _rates(lrs, names)
    contestants = []
    for name in names:
        foreign = find_optimizer(name).foreign_options()
        own = {key: value for key, value in given.items() if key in ALL_OPTIONS and key not in foreign}
        contestants.append(Contestant(name, rates.get(name) or _around(subcommand, {**shared, **own}, name), own))
    study = Study(task_name(task), task, subcommand, shared, tuple(contestants), tuple(range(num_seeds)), dense_lr)
    for trial in study.sweep():
        study.config_of(trial)
    return study


def task_name(task: str) -> str:
    """A task as part of a folder's name."""
    return re.sub(r"[^\w.-]+", "-", task)


def _work(task: str) -> tuple[str, dict[str, Any]]:
    """The subcommand and its settings of a task such as pretrain:demo or finetune:trec:minilm."""
    subcommand, *rest = task.split(":", 2)
    if subcommand == "pretrain" and len(rest) == 1 and rest[0]:
        return subcommand, {"preset": rest[0]}
    if subcommand == "finetune" and len(rest) == 2 and all(rest):
        return subcommand, {"task": rest[0], "model": rest[1]}
    raise UsageError(f"--task must be pretrain:PRESET or finetune:TASK:MODEL, got {task}")


def _settings(kind: type[RunConfig], given: Sequence[str]) -> dict[str, Any]:
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        name = name.strip().replace("-", "_")
        known = [field for field in fields_of(kind) if field not in _NOT_SHARED]
        if not equals or name not in known:
            listed = f"`ldadam {kind.subcommand} --help` lists them"
            hint = listed if name in fields_of(kind) else did_you_mean(name, known, otherwise=listed)
            raise UsageError(f"--set takes NAME=VALUE with a setting that all runs share, got {each}: {hint}")
        text = value.strip()
        switches = {"true": True, "false": False}
        found[name] = parse_value(kind, name, switches.get(text.lower(), text), where="--set")
    return found


def _rates(text: str | None, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Learning rates by optimizer; without a name they are for all."""
    if text is None:
        return {}
    found = {}
    for part in text.split(","):
        name, equals, numbers = part.rpartition("=")
        name = name.strip()
        if equals and name not in names:
            raise UsageError(f"--lrs names {name}, which is not among the optimizers {', '.join(names)}")
        for each in [name] if equals else names:
            if each in found:
                raise UsageError(f"--lrs has rates for {each} twice, in {text}: slashes go between rates")
            found[each] = _numbers(numbers)
    return found


def _numbers(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(number) for number in text.split("/"))
    except ValueError:
        raise UsageError(f"--lrs takes numbers with slashes between, such as 1e-3/2e-3, got {text}") from None
    if not all(0 < rate < float("inf") for rate in rates) or len(set(rates)) < len(rates):
        raise UsageError(f"--lrs takes different numbers above 0, got {text}")
    return rates


def _around(subcommand: str, settings: dict[str, Any], name: str) -> tuple[float, ...]:
    """Around the learning rate that a run would take by itself."""
    own = RESOLVE[subcommand](
        {**{key: value for key, value in settings.items() if value is not None}, "optimizer": name}
    )
    assert own.lr is not None
    return tuple(float(f"{factor * own.lr:.4g}") for factor in AROUND)
