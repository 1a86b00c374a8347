"""What a study shows while it runs, and at its end."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ldadam.comparison.results import table_of
from ldadam.comparison.study import Study, Trial


class Shown:
    """A bar of runs on a terminal, and a line for each run that has ended."""

    def __init__(self, study: Study) -> None:
        self._console = Console(stderr=True, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=study.num_runs)
        self._name = ""

    def __enter__(self) -> Shown:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, trial: Trial) -> None:
        """A run begins, or goes on."""
        self._name = trial.name
        self._bar.update(self._task, description=trial.name)

    def step(self, step: int) -> None:
        """It has come this far."""
        self._bar.update(self._task, description=f"{self._name}, step {step}")

    def ended(self, trial: Trial, outcome: dict[str, Any]) -> None:
        """It has come to its end."""
        scores = "".join(f", {name.replace('_', ' ')} {value:.4f}" for name, value in outcome["scores"].items())
        self._line(
            f"{trial.name}: validation loss {outcome['validation_loss']:.4f}{scores}, {outcome['seconds']:.0f} s"
        )

    def failed(self, trial: Trial, reason: str) -> None:
        """It has ended with an error."""
        self._line(f"{trial.name} failed: {reason}")

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)
        self._bar.advance(self._task)


def show_record(record: dict[str, Any]) -> None:
    """Print the table of a record, and which runs failed."""
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console = Console(width=180, soft_wrap=True)
    headings, rows = table_of(record)
    table = Table(title=record["about"], box=box.SIMPLE, padding=(0, 1))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for failed in record["failed"]:
        what = f"{failed['contestant']}, lr {failed['lr']}, seed {failed['seed']}"
        console.print(f"{what} failed: {failed['reason']}", highlight=False, markup=False)
