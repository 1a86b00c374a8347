"""`ldadam compare`, `run` and `recipes`: studies of several runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldadam.cli.app import Debug, Threads, app, show_warnings_as_sentences
from ldadam.training.errors import RunError

if TYPE_CHECKING:
    from ldadam.comparison.study import Study, Trial

Processes = Annotated[int, typer.Option(help="Of each run; more than one are started by torchrun.", min=1, metavar="N")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the commands of the runs, and make none.")]

Known = Annotated[
    Path | None,
    typer.Option(
        help="The study.json of an earlier study, such as one of benchmarks/results: its runs are taken from there "
        "where every setting is the same, and the others are made.",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]


@app.command()
def compare(
    task: Annotated[str, typer.Option(help="pretrain:PRESET, or finetune:TASK:MODEL.")] = "pretrain:demo",
    optimizers: Annotated[
        str,
        typer.Option(
            help="ldadamw, adamw, lora, adafactor, muon, adamw8bit, adamw4bit, galore, apollo, fira, dct, "
            "module:Class; with commas between."
        ),
    ] = "ldadamw,adamw",
    lrs: Annotated[
        str | None,
        typer.Option(
            help="Learning rates for all, 1e-3/2e-3/4e-3, or for some, adamw=1e-3/2e-3,galore=1e-2. Default: five "
            "around the optimizer's own, a factor of two apart.",
            show_default=False,
        ),
    ] = None,
    dense_lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of embeddings, heads and vectors, whatever --lrs tries for matrices. Default: that of "
            "the preset, if it has one, else the same as for matrices.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many; the first chooses the learning rate.", min=1, metavar="N")] = 3,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting of all runs, such as steps=1000; may be given often.", metavar="NAME=VALUE"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the runs and of the results. Default: runs/compare-TASK.", show_default=False),
    ] = None,
    threads: Threads = None,
    known: Known = None,
    processes: Processes = 1,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Train optimizers on the same work, each at its best learning rate: quality against steps, seconds and bytes.

    Stopped, the same command goes on. A run that fails is shown as failed, and the exit code is then 1.
    """
    from ldadam.comparison.arguments import study_from, task_name

    given = {"settings": settings or [], "threads": threads, "dense_lr": dense_lr}
    study = study_from(task, optimizers, lrs=lrs, num_seeds=seeds, **given)
    out = out or Path("runs") / f"compare-{task_name(task)}"
    _make([study], out, known=known, processes=processes, dry_run=dry_run)


@app.command()
def recipes() -> None:
    """List the recipes: experiments of the papers, and small ones that need no network."""
    from rich.console import Console
    from rich.table import Table

    from ldadam.recipes import RECIPES, about

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, recipe in RECIPES.items():
        table.add_row(name, about(recipe))
    Console(soft_wrap=False).print(table)


@app.command("run")
def run_recipe(
    name: Annotated[str, typer.Argument(help="A recipe, of those that `ldadam recipes` lists.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs and of the results. Default: runs/NAME.", show_default=False)
    ] = None,
    known: Known = None,
    processes: Processes = 1,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Make every run of a recipe, then its table and picture. Stopped, the same command goes on."""
    from ldadam.recipes import find_recipe

    studies = find_recipe(name)()
    _make(studies, out or Path("runs") / name, known=known, processes=processes, dry_run=dry_run)


def _make(studies: list[Study], out: Path, *, known: Path | None, processes: int, dry_run: bool) -> None:
    """Make the studies, in folders of their own where they are several."""
    from ldadam.comparison.results import known_outcomes
    from ldadam.comparison.run_study import check_study, missing_packages, run_study
    from ldadam.comparison.shown import show_record

    show_warnings_as_sentences()
    earlier = _record_of(known, studies) if known else None
    num_failed = 0
    for study in studies:
        folder = out if len(studies) == 1 else out / study.name
        runs = {}
        if earlier and earlier["study"] == study.name:
            runs = known_outcomes(study, earlier, processes=processes)
        for title, package in missing_packages(study, runs).items():
            print(f"ldadam: {title} will fail: it needs {package}, which is not installed", file=sys.stderr)
        if dry_run:
            check_study(study, processes=processes)
            _print_commands(study, folder, runs, processes=processes)
            continue
        record = run_study(study, folder, processes=processes, known=runs)
        num_failed += len(record["failed"])
        show_record(record)
        print(f"Results: {folder / 'study.json'}\nTable:   {folder / 'study.md'}\nPicture: {folder / 'study.png'}")
    if num_failed:
        raise RunError(f"{num_failed} runs failed, as shown above: the same command tries them again")


def _record_of(file: Path, studies: list[Study]) -> dict[str, Any]:
    """The record in a `study.json`, which must be of one of the studies."""
    from ldadam.training.errors import UsageError

    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or not {"study", "trials"} <= set(record):
        raise UsageError(f"--known must be the study.json of a study, and {file} is not")
    if record["study"] not in (names := [study.name for study in studies]):
        raise UsageError(f"{file} of --known holds the study {record['study']}, and this is {', '.join(names)}")
    return record


def _print_commands(study: Study, folder: Path, known: Container[Trial], *, processes: int) -> None:
    from ldadam.comparison.study import command_line

    for trial in study.sweep():
        if trial not in known:
            print(command_line(study, study.settings_of(trial), out=str(folder / trial.name), processes=processes))
    if len(study.seeds) > 1:
        seeds = ", ".join(map(str, study.seeds[1:]))
        print(f"# then, of each optimizer, the best of these with the seeds {seeds}")
