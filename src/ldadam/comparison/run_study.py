"""A study from its first run to its table. Read this first."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ldadam.comparison.pictures import draw_study
from ldadam.comparison.results import Results, outcome_of, table_of, write_record
from ldadam.comparison.shown import Shown
from ldadam.comparison.study import Study, Trial
from ldadam.comparison.trials import Terminated, TrialFailed, finished_run, run_trial
from ldadam.report.page import markdown_table
from ldadam.training.errors import Interrupted, UsageError
from ldadam.training.optimizers import find_optimizer
from ldadam.training.sigterm import sigterm_handled_by

RECORD = "study.json"


def run_study(
    study: Study, out: Path, *, processes: int = 1, known: Mapping[Trial, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Make every run of a study that is not there yet, and write `study.json`, `study.md` and `study.png`.

    What has ended stays: run again in the same folder, it goes on where it was stopped. A run that fails is recorded
    as failed, and the others go on.

    Args:
        study: what to compare.
        out: folder of the runs and of the results.
        processes: of each run.
        known: what a record keeps of runs that are not to be made again (`known_outcomes`).

    Returns:
        The record that `study.json` holds.

    Raises:
        UsageError: a run cannot begin as it is described, or `out` holds other runs, or is in use.
        Interrupted: by Ctrl-C or SIGTERM, after the present run has saved, and what has ended is written.
    """
    check_study(study, processes=processes)
    _refuse_other_study(study, out)
    out.mkdir(parents=True, exist_ok=True)
    results = Results(study, processes)
    with _locked(out) as lock, sigterm_handled_by(_terminate), Shown(study) as shown:
        _take_in(results, out, known or {}, shown)
        try:
            _run_all(study.sweep(), results, out, lock, shown)
            for contestant in study.contestants:
                if (lr := results.best_lr(contestant)) is not None:
                    _run_all(study.repeats(contestant, lr), results, out, lock, shown)
        except (Interrupted, KeyboardInterrupt) as stop:
            if results.outcomes:
                _write(results, out)
            raise Interrupted(f"stopped: the same command goes on with the runs in {out}") from stop
    return _write(results, out)


def check_study(study: Study, *, processes: int) -> None:
    """Refuse a study of which a run could not begin.

    Raises:
        UsageError: with what to change.
    """
    for trial in study.sweep():
        study.config_of(trial)
    parallel = study.settings.get("parallel") or "none"
    if parallel == "none" and processes > 1:
        raise UsageError(f"{study.name} runs in one process, and --processes is {processes}: leave it out")
    if parallel != "none" and processes == 1:
        raise UsageError(f"{study.name} has parallel={parallel}: say --processes N, the number of devices")


def missing_packages(study: Study, known: Container[Trial] = ()) -> dict[str, str]:
    """Of each optimizer that cannot be built here and has runs of the sweep to make, what it comes from."""
    to_make = {trial.contestant.title: trial.contestant for trial in study.sweep() if trial not in known}
    choices = {title: find_optimizer(contestant.optimizer) for title, contestant in to_make.items()}
    return {title: choice.package for title, choice in choices.items() if not choice.is_installed}


def _refuse_other_study(study: Study, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out must be a folder, and {out} is a file")
    if (out / RECORD).exists():
        recorded = json.loads((out / RECORD).read_text(encoding="utf-8"))
        ours = {contestant.title for contestant in study.contestants}
        others = [row["name"] for row in recorded["contestants"] if row["name"] not in ours]
        if recorded["study"] != study.name or others:
            what = f"{recorded['study']} with {', '.join(others)}" if others else recorded["study"]
            raise UsageError(f"{out} holds the study {what}: name its optimizers too, or choose another --out")


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[int]:
    """A file that is locked as long as this process, or a run that it has started, is alive."""
    with (out / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{out} is in use: another study, or a run that one has left behind, works there"
            ) from error
        yield stream.fileno()


def _terminate(number: int, frame: FrameType | None) -> None:
    """So that the present run is stopped, too."""
    raise Terminated


def _take_in(results: Results, out: Path, known: Mapping[Trial, dict[str, Any]], shown: Shown) -> None:
    """The runs that have ended, those of other seeds too, so that no record is written without them."""
    for trial in results.study.possible():
        if (run := finished_run(results.study, trial, out / trial.name)) is not None:
            results.add(trial, outcome_of(run))
        elif trial in known:
            results.add(trial, known[trial])
        else:
            continue
        shown.ended(trial, results.outcomes[trial])


def _run_all(trials: Sequence[Trial], results: Results, out: Path, lock: int, shown: Shown) -> None:
    """Make the runs that are not there yet."""
    study, processes = results.study, results.processes
    for trial in trials:
        if trial in results.outcomes:
            continue
        shown.begin(trial)
        try:
            run = run_trial(study, trial, out / trial.name, processes=processes, lock=lock, on_step=shown.step)
        except TrialFailed as failure:
            results.failures[trial] = str(failure)
            shown.failed(trial, str(failure))
        else:
            results.add(trial, outcome_of(run))
            shown.ended(trial, results.outcomes[trial])
        _write(results, out)


def _write(results: Results, out: Path) -> dict[str, Any]:
    """The record, its table and its picture."""
    record = results.record()
    write_record(record, out / RECORD)
    (out / "study.md").write_text(markdown_table(*table_of(record)), encoding="utf-8")
    draw_study(record, out / "study.png")
    return record
