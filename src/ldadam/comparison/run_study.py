"""A study from its first run to its table. Read this first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ldadam.comparison.pictures import draw_study
from ldadam.comparison.results import Results, goodness, table_of, write_record
from ldadam.comparison.study import Study, Trial
from ldadam.comparison.trials import TrialFailed, run_trial
from ldadam.report.page import markdown_table
from ldadam.training.errors import Interrupted, RunError, UsageError


def run_study(study: Study, out: Path, *, processes: int = 1) -> dict[str, Any]:
    """Make every run of a study that is not there yet, and write `study.json`, `study.md` and `study.png`.

    What has ended stays: run again in the same folder, it goes on where it was stopped. A run that fails is recorded
    as failed, and the others go on.

    Args:
        study: what to compare.
        out: folder of the runs and of the results.
        processes: of each run.

    Returns:
        The record that `study.json` holds.

    Raises:
        UsageError: `out` holds runs with other settings.
        RunError: every run failed.
        Interrupted: by Ctrl-C, after the present run has saved.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out must be a folder, and {out} is a file")
    out.mkdir(parents=True, exist_ok=True)
    results = Results(study)
    with _Shown(study) as shown:
        try:
            _run_all(study.sweep(), results, out, processes, shown)
            for contestant in study.contestants:
                if (lr := results.best_lr(contestant)) is not None:
                    _run_all(study.repeats(contestant, lr), results, out, processes, shown)
        except Interrupted as stop:
            raise Interrupted(f"stopped: the same command goes on with the runs in {out}") from stop
    record = results.record()
    if not results.outcomes:
        raise RunError(f"every run of {study.name} failed; the first: {next(iter(results.failures.values()))}")
    draw_study(record, out / "study.png")
    return record


def _run_all(trials: Sequence[Trial], results: Results, out: Path, processes: int, shown: _Shown) -> None:
    for trial in trials:
        shown.begin(trial)
        try:
            run = run_trial(results.study, trial, out / trial.name, processes=processes, on_step=shown.step)
        except TrialFailed as failure:
            results.failures[trial] = str(failure)
            shown.failed(trial, str(failure))
        else:
            results.add(trial, run)
            shown.ended(trial, results.outcomes[trial])
        record = results.record()
        write_record(record, out / "study.json")
        (out / "study.md").write_text(markdown_table(*table_of(record)), encoding="utf-8")


class _Shown:
    """A bar of runs on a terminal, and a line for each run that has ended."""

    def __init__(self, study: Study) -> None:
        self._console = Console(stderr=True, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=study.num_runs)
        self._name = ""

    def __enter__(self) -> _Shown:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, trial: Trial) -> None:
        self._name = trial.name
        self._bar.update(self._task, description=trial.name)

    def step(self, step: int) -> None:
        self._bar.update(self._task, description=f"{self._name}, step {step}")

    def ended(self, trial: Trial, outcome: dict[str, Any]) -> None:
        scores = "".join(f", {name.replace('_', ' ')} {value:.4f}" for name, value in outcome["scores"].items())
        self._line(f"{trial.name}: validation loss {-goodness(outcome)[1]:.4f}{scores}, {outcome['seconds']:.0f} s")

    def failed(self, trial: Trial, reason: str) -> None:
        self._line(f"{trial.name} failed: {reason}")

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)
        self._bar.advance(self._task)


def show(record: dict[str, Any]) -> None:
    """Print the table of a record, and why runs failed."""
    console = Console(soft_wrap=True)
    headings, rows = table_of(record)
    table = Table(title=record["about"], box=box.SIMPLE, padding=(0, 1))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for row in record["contestants"]:
        if "failed" in row:
            console.print(f"{row['name']}: {row['failed']}", highlight=False, markup=False)
