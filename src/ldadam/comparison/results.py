"""What the runs of a study gave: the record as JSON, means and spreads over seeds, and a table."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldadam import provenance
from ldadam.comparison.study import Contestant, Study, Trial, command_line, other_package, what_is_run
from ldadam.report import RunData
from ldadam.training.errors import UsageError

_NUMBERS = ("validation_loss", "seconds", "seconds_per_step", "optimizer_seconds_per_step", "optimizer_bytes")
_MADE_BY = ("python", "torch", "transformers", "commit")


@dataclass
class Results:
    """The runs that have ended so far.

    Attributes:
        study: what they are part of.
        processes: of each run.
        outcomes: of each run, what the record keeps of it.
        failures: of each run that ended with an error, the error.
    """

    study: Study
    processes: int = 1
    outcomes: dict[Trial, dict[str, Any]] = field(default_factory=dict)
    failures: dict[Trial, str] = field(default_factory=dict)

    def add(self, trial: Trial, outcome: dict[str, Any]) -> None:
        """A run has come to its end.

        Raises:
            UsageError: it saw other data than those before it.
        """
        for other, known in self.outcomes.items():
            if other.seed == trial.seed and not _same_data(known, outcome):
                raise UsageError(
                    f"{other.name} and {trial.name} saw different data, which has changed between them: delete the "
                    "older folder, choose another --out, or leave out --known"
                )
        self.outcomes[trial] = outcome

    def swept(self, contestant: Contestant) -> dict[float, Trial]:
        """The runs that choose the learning rate, by it."""
        return {lr: Trial(contestant, lr, self.study.seeds[0]) for lr in contestant.lrs}

    def best_lr(self, contestant: Contestant) -> float | None:
        """The learning rate with the best outcome of the sweep; None if all failed or diverged."""
        ended = {lr: self.outcomes[trial] for lr, trial in self.swept(contestant).items() if trial in self.outcomes}
        good = {lr: goodness(outcome) for lr, outcome in ended.items() if not _diverged(outcome)}
        return max(good, key=lambda lr: good[lr]) if good else None

    def of_best(self, contestant: Contestant) -> list[dict[str, Any]]:
        """The outcomes of all seeds at the best learning rate."""
        lr = self.best_lr(contestant)
        trials = [Trial(contestant, lr, seed) for seed in self.study.seeds] if lr is not None else []
        return [self.outcomes[trial] for trial in trials if trial in self.outcomes]

    def differences(self, contestant: Contestant) -> list[float]:
        """Its validation loss less that of the study's first contestant, seed by seed, each at its best learning rate.

        Seeds change the data too, so that losses of different seeds differ by more than optimizers do.
        """
        first = self.study.contestants[0]
        lr, lr_of_first = self.best_lr(contestant), self.best_lr(first)
        if contestant == first or lr is None or lr_of_first is None:
            return []
        pairs = [(Trial(contestant, lr, seed), Trial(first, lr_of_first, seed)) for seed in self.study.seeds]
        losses = [
            [self.outcomes[trial]["validation_loss"] for trial in pair if trial in self.outcomes] for pair in pairs
        ]
        return [pair[0] - pair[1] for pair in losses if len(pair) == 2]

    def record(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        study = self.study
        return {
            "study": study.name,
            "about": study.about,
            "command": provenance.command(),
            "subcommand": study.subcommand,
            "settings": dict(study.settings),
            "seeds": list(study.seeds),
            "dense_lr": study.dense_lr,
            "contestants": [self._summary(contestant) for contestant in study.contestants],
            "trials": [{**self._about(trial), **outcome} for trial, outcome in self.outcomes.items()],
            "failed": [{**self._about(trial), "reason": reason} for trial, reason in self.failures.items()],
        }

    def _summary(self, contestant: Contestant) -> dict[str, Any]:
        """Its best learning rate, and the mean and the standard deviation of each number over the seeds."""
        found = self.of_best(contestant)
        best = {"lr": self.best_lr(contestant), "num_runs": len(found)}
        scores = list(found[0]["scores"]) if found else []
        return {
            "name": contestant.title,
            "optimizer": contestant.optimizer,
            "settings": dict(contestant.settings),
            "lrs": {str(lr): self._how_it_ended(trial) for lr, trial in self.swept(contestant).items()},
            **(best if found else {"failed": self._why(contestant)}),
            **{name: _mean_and_deviation([one[name] for one in found]) for name in _NUMBERS if found},
            "scores": {name: _mean_and_deviation([one["scores"][name] for one in found]) for name in scores},
            "difference": _mean_and_deviation(apart) if (apart := self.differences(contestant)) else None,
        }

    def _how_it_ended(self, trial: Trial) -> str:
        if trial in self.outcomes:
            return "diverged" if _diverged(self.outcomes[trial]) else "ended"
        return "failed" if trial in self.failures else "not run"

    def _why(self, contestant: Contestant) -> str:
        trials = self.swept(contestant).values()
        reasons = [self.failures[trial] for trial in trials if trial in self.failures]
        reasons += ["every run diverged" for trial in trials if trial in self.outcomes]
        return reasons[0] if reasons else "not run yet"

    def _about(self, trial: Trial) -> dict[str, Any]:
        return _about(self.study, trial, self.processes)


def _about(study: Study, trial: Trial, processes: int) -> dict[str, Any]:
    """With all its settings, since those that are left out may be others one day."""
    settings = dataclasses.asdict(study.config_of(trial))
    command = command_line(study, settings, out=trial.name, processes=processes)
    return {"contestant": trial.contestant.title, "lr": trial.lr, "seed": trial.seed, "command": command}


def known_outcomes(study: Study, record: dict[str, Any], *, processes: int) -> dict[Trial, dict[str, Any]]:
    """What an earlier record of a study keeps of its runs, whose every setting must be the same.

    Runs with another version of an optimizer's package than is installed are not among them.

    Raises:
        UsageError: all its runs have other settings, or are of other versions of packages.
    """
    recorded = {(run["contestant"], what_is_run(run["command"])): run for run in record["trials"]}
    known = {}
    for trial in study.possible():
        about = _about(study, trial, processes)
        run = recorded.get((about["contestant"], what_is_run(about["command"])))
        if run is not None and not other_package(trial, run.get("optimizer_package")):
            known[trial] = {name: value for name, value in run.items() if name not in about}
    if not known:
        raise UsageError(
            f"the record of --known holds no run of {study.name} with the settings of now, of which it may be too old "
            "to have them all, or with the packages that are installed: leave it out"
        )
    return known


def outcome_of(run: RunData) -> dict[str, Any]:
    """What the record keeps of a run: its last numbers, the validation losses on the way, and what made it."""
    summary = run.summary()
    evaluations = [record for record in run.metrics if "val_loss" in record]
    return {
        "rank": summary["rank"],
        "steps": summary["steps"],
        "validation_loss": summary["final_validation_loss"],
        "scores": summary["final_scores"],
        "seconds": summary["seconds"],
        "seconds_per_step": _mean_per_step(run, "step_seconds"),
        "optimizer_seconds_per_step": _mean_per_step(run, "optimizer_seconds"),
        "optimizer_bytes": summary["optimizer_bytes"],
        "validation": [[record["step"], record["seconds"], record["val_loss"]] for record in evaluations],
        "fingerprint": run.facts["fingerprint"],
        "validation_fingerprint": run.facts.get("validation_fingerprint"),
        **{name: run.facts[name] for name in _MADE_BY},
        "optimizer_package": run.facts.get("optimizer_package"),
        "hardware": run.facts["hardware"],
    }


def _same_data(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Of a text as much is read as a run's steps take: where they differ, what is held out has to be the same."""
    if one["fingerprint"] == other["fingerprint"]:
        return True
    held_out = one.get("validation_fingerprint")
    return one["steps"] != other["steps"] and held_out is not None and held_out == other.get("validation_fingerprint")


def _mean_per_step(run: RunData, value: str) -> float:
    """Without the first record, in which code is compiled, where there are others."""
    first, last = run.metrics[0], run.metrics[-1]
    if first is last:
        return first[value]
    return (run.weighted_total(value) - first[value] * first["step"]) / (last["step"] - first["step"])


def goodness(outcome: dict[str, Any]) -> tuple[float, float]:
    """Larger is better: the first score of the task if it has any, then the validation loss."""
    score = next(iter(outcome["scores"].values()), 0.0)
    return (-math.inf if math.isnan(score) else score, -outcome["validation_loss"])


def _diverged(outcome: dict[str, Any]) -> bool:
    return outcome["validation_loss"] is None or not math.isfinite(outcome["validation_loss"])


def _mean_and_deviation(values: Sequence[float]) -> list[float | None]:
    """The standard deviation of one run is None; where a run diverged, both are NaN."""
    if not all(math.isfinite(value) for value in values):
        return [math.nan, math.nan]
    return [statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None]


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write the record, whole or not at all."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def table_of(record: dict[str, Any], *, times: bool = True) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a record's table: the same for the terminal and for the documentation.

    Args:
        record: as `Results.record` makes it.
        times: whether to show seconds, which say little where the machine had other work.

    Returns:
        Steps are among them where not all optimizers take as many.
    """
    rows = record["contestants"]
    scores = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    steps = [str(steps_of(record, row)) for row in rows]
    headings = ["optimizer", "best lr", "tried", "runs", "validation loss"]
    headings += ["loss against the first, by seed", *(name.replace("_", " ") for name in scores)]
    headings += ["optimizer state (MiB)", *(("optimizer (ms/step)", "training (s)") if times else ())]
    cells = [_cells(row, scores)[: len(headings)] for row in rows]
    if len(set(steps)) > 1:
        headings.insert(1, "steps")
        cells = [[name, of_row, *others] for of_row, (name, *others) in zip(steps, cells, strict=True)]
    return headings, cells


def steps_of(record: dict[str, Any], row: dict[str, Any]) -> int | None:
    """How long an optimizer trains, its own number of steps or that of all; None where a task's own is taken."""
    return row["settings"].get("steps", record["settings"].get("steps"))


def _cells(row: dict[str, Any], scores: Sequence[str]) -> list[str]:
    tried = ", ".join(lr if how == "ended" else f"{lr} ({how})" for lr, how in row["lrs"].items())
    if "failed" in row:
        return [row["name"], "none", tried, "0", *[""] * (len(scores) + 5)]
    return [
        row["name"],
        str(row["lr"]),
        tried,
        str(row["num_runs"]),
        _with_spread(row["validation_loss"]),
        _with_spread(row["difference"], sign="+") if row["difference"] else "",
        *(_with_spread(row["scores"][name]) if name in row["scores"] else "" for name in scores),
        f"{row['optimizer_bytes'][0] / 2**20:.1f}",
        f"{1e3 * row['optimizer_seconds_per_step'][0]:.1f}",
        f"{row['seconds'][0]:.0f}",
    ]


def _with_spread(mean_and_deviation: Sequence[float | None], *, sign: str = "") -> str:
    mean, deviation = mean_and_deviation
    return f"{mean:{sign}.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")
