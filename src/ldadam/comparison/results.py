"""What the runs of a study gave: the record as JSON, means and spreads over seeds, and a table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldadam import provenance
from ldadam.comparison.study import Contestant, Study, Trial, command_line
from ldadam.report import RunData
from ldadam.training import run_folder

PEER_PACKAGES = ("galore-torch", "apollo-torch", "pytorch_optimizer", "torchao")


@dataclass
class Results:
    """The runs that have ended so far.

    Attributes:
        study: what they are part of.
        outcomes: of each run, what the record keeps of it.
        failures: of each run that ended with an error, the error.
    """

    study: Study
    outcomes: dict[Trial, dict[str, Any]] = field(default_factory=dict)
    failures: dict[Trial, str] = field(default_factory=dict)

    def add(self, trial: Trial, run: RunData) -> None:
        """A run has come to its end."""
        self.outcomes[trial] = outcome_of(run)

    def best_lr(self, contestant: Contestant) -> float | None:
        """The learning rate with the best outcome of the sweep; None if all failed or diverged."""
        seed = self.study.seeds[0]
        tried = [Trial(contestant, lr, seed) for lr in contestant.lrs]
        ended = [trial for trial in tried if trial in self.outcomes and _diverged(self.outcomes[trial]) is False]
        return max(ended, key=lambda trial: goodness(self.outcomes[trial])).lr if ended else None

    def of_best(self, contestant: Contestant) -> list[dict[str, Any]]:
        """The outcomes of all seeds at the best learning rate."""
        lr = self.best_lr(contestant)
        trials = [Trial(contestant, lr, seed) for seed in self.study.seeds] if lr is not None else []
        return [self.outcomes[trial] for trial in trials if trial in self.outcomes]

    def record(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        study = self.study
        return {
            "study": study.name,
            "about": study.about,
            "command": provenance.command(),
            **run_folder.versions(),
            **provenance.versions(PEER_PACKAGES),
            "hardware": provenance.hardware(),
            "subcommand": study.subcommand,
            "settings": dict(study.settings),
            "seeds": list(study.seeds),
            "contestants": [self._summary(contestant) for contestant in study.contestants],
            "trials": [{**_about(study, trial), **self.outcomes[trial]} for trial in self.outcomes],
            "failed": [{**_about(study, trial), "reason": reason} for trial, reason in self.failures.items()],
        }

    def _summary(self, contestant: Contestant) -> dict[str, Any]:
        """Its best learning rate, and the mean and the standard deviation of each number over the seeds."""
        found = self.of_best(contestant)
        best = {"lr": self.best_lr(contestant), "num_runs": len(found)}
        return {
            "name": contestant.title,
            "optimizer": contestant.optimizer,
            "settings": dict(contestant.settings),
            "lrs": list(contestant.lrs),
            **(best if found else {"failed": self._why(contestant)}),
            **{name: _mean_and_deviation(found, name) for name in _NUMBERS if found},
            "scores": {
                name: _mean_and_deviation(found, name, of="scores") for name in (found[0]["scores"] if found else ())
            },
        }

    def _why(self, contestant: Contestant) -> str:
        reasons = [reason for trial, reason in self.failures.items() if trial.contestant == contestant]
        return reasons[0] if reasons else "every run diverged"


_NUMBERS = ("validation_loss", "seconds", "optimizer_seconds_per_step", "optimizer_bytes")


def outcome_of(run: RunData) -> dict[str, Any]:
    """What the record keeps of a run: its last numbers, and the validation losses on the way."""
    summary = run.summary()
    evaluations = [record for record in run.metrics if "val_loss" in record]
    return {
        "rank": summary["rank"],
        "steps": summary["steps"],
        "validation_loss": summary["final_validation_loss"],
        "scores": summary["final_scores"],
        "seconds": summary["seconds"],
        "optimizer_seconds_per_step": summary["optimizer_seconds"] / summary["steps"],
        "optimizer_bytes": summary["optimizer_bytes"],
        "commit": run.facts["commit"],
        "threads": run.facts["hardware"]["threads"],
        "fingerprint": run.facts["fingerprint"],
        "validation": [[record["step"], record["seconds"], record["val_loss"]] for record in evaluations],
    }


def goodness(outcome: dict[str, Any]) -> tuple[float, float]:
    """Larger is better: the first score of the task if it has any, then the validation loss."""
    score = next(iter(outcome["scores"].values()), 0.0)
    return (-math.inf if math.isnan(score) else score, -outcome["validation_loss"])


def _diverged(outcome: dict[str, Any]) -> bool:
    return outcome["validation_loss"] is None or not math.isfinite(outcome["validation_loss"])


def _about(study: Study, trial: Trial) -> dict[str, Any]:
    command = command_line(study, trial, out=trial.name)
    return {"contestant": trial.contestant.title, "lr": trial.lr, "seed": trial.seed, "command": command}


def _mean_and_deviation(found: Sequence[dict[str, Any]], name: str, *, of: str | None = None) -> list[float | None]:
    values = [(one[of] if of else one)[name] for one in found]
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
    """
    scores = list(dict.fromkeys(name for row in record["contestants"] for name in row["scores"]))
    headings = ["optimizer", "best lr", "of", "runs", "validation loss", *(name.replace("_", " ") for name in scores)]
    headings += ["optimizer state (MiB)", *(("optimizer (ms/step)", "training (s)") if times else ())]
    return headings, [_cells(row, scores)[: len(headings)] for row in record["contestants"]]


def _cells(row: dict[str, Any], scores: Sequence[str]) -> list[str]:
    tried = " ".join(f"{lr:g}" for lr in row["lrs"])
    if "failed" in row:
        return [row["name"], "failed", tried, "0", *[""] * (len(scores) + 4)]
    return [
        row["name"],
        f"{row['lr']:g}",
        tried,
        str(row["num_runs"]),
        _with_spread(row["validation_loss"], digits=4),
        *(_with_spread(row["scores"][name], digits=4) if name in row["scores"] else "" for name in scores),
        f"{row['optimizer_bytes'][0] / 2**20:.1f}",
        f"{1e3 * row['optimizer_seconds_per_step'][0]:.1f}",
        f"{row['seconds'][0]:.0f}",
    ]


def _with_spread(mean_and_deviation: Sequence[float | None], *, digits: int) -> str:
    mean, deviation = mean_and_deviation
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "")
