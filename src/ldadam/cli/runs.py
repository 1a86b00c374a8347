"""`ldadam pretrain`, `finetune`, `report` and `demo`.

The options of `pretrain` and `finetune` are made from the fields of their configurations.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ldadam.cli.app import Debug, Threads, app, show_warnings_as_sentences
from ldadam.finetune.config import FinetuneConfig
from ldadam.training.config import PretrainConfig
from ldadam.training.config_file import parse_value, read_config_file
from ldadam.training.errors import Interrupted
from ldadam.training.launch import is_first_process
from ldadam.training.run_config import Config, RunConfig, fields_of, merge, plain_types


def _option(kind: type[RunConfig], name: str) -> inspect.Parameter:
    """The command line option of one field of `kind`; None means that it was not given."""
    field, types = fields_of(kind)[name], plain_types(kind, name)
    choices = field.metadata["choices"]
    text = field.metadata["help"] + (f": {', '.join(choices)}" if choices else "")
    default = f" Default: {field.default}." if field.default is not None and types != (bool,) else ""
    number = float if float in types else types[0]
    metavar = {int: "N", float: "X", str: "TEXT", bool: None}[number]
    declaration = typer.Option(
        help=text[0].upper() + text[1:] + "." + default,
        rich_help_panel=field.metadata["panel"],
        show_default=False,
        metavar=metavar,
    )
    annotation = Annotated[number | None, declaration]  # pyright: ignore[reportInvalidTypeForm]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _with_options_of(kind: type[RunConfig]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's **settings by one option per field of `kind`."""

    def replace(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters = [*own, *(_option(kind, name) for name in fields_of(kind))]
        command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return replace


ConfigFile = Annotated[Path | None, typer.Option(help="YAML or TOML file with the same settings.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]


@app.command()
@_with_options_of(PretrainConfig)
def pretrain(*, config: ConfigFile = None, resume: Resume = False, debug: Debug = False, **settings: Any) -> None:
    """Train a Llama on real text.

    The command line wins over --config, --config over the preset. A run that was stopped continues with --resume.
    """
    from ldadam.training.config import resolve
    from ldadam.training.pretrain import pretrain as train

    _make_run(PretrainConfig, resolve, train, settings, config, resume=resume)


@app.command()
@_with_options_of(FinetuneConfig)
def finetune(*, config: ConfigFile = None, resume: Resume = False, debug: Debug = False, **settings: Any) -> None:
    """Train a ready model further: an encoder to classify texts, or a causal language model to answer prompts.

    The command line wins over --config. A run that was stopped continues with --resume.
    """
    from ldadam.finetune.config import resolve
    from ldadam.finetune.finetune import finetune as train

    _make_run(FinetuneConfig, resolve, train, settings, config, resume=resume)


def _make_run(
    kind: type[Config],
    resolve: Callable[[dict[str, Any]], Config],
    train: Callable[..., Path],
    settings: dict[str, Any],
    config: Path | None,
    *,
    resume: bool,
) -> None:
    """Settings from everywhere, a run, and its report."""
    from ldadam.training import run_folder

    show_warnings_as_sentences()
    given = {name: parse_value(kind, name, value, where="the command line") for name, value in settings.items()}
    from_file = read_config_file(config, kind) if config else {}
    asked = merge(from_file, given)
    resolved = run_folder.reopen(asked, kind, resolve) if resume else resolve(asked)
    try:
        run = train(resolved, resume=resume)
        if is_first_process():
            _show_result(run, with_report=resolved.report)
    except KeyboardInterrupt as stop:
        raise Interrupted(f"stopped at once: {run_folder.what_can_be_resumed(Path(resolved.out))}") from stop


def _show_result(run: Path, *, with_report: bool) -> None:
    if with_report:
        from ldadam.report import write_report

        print(f"Report: {write_report([run], run)}")
    print(f"Run folder: {run}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs: one for its report, several to compare them.")],
    out: Annotated[Path | None, typer.Option(help="Folder for report.html and report.png.")] = None,
    debug: Debug = False,
) -> None:
    """Write the report of a run, or the comparison of several."""
    from ldadam.report import write_report

    print(f"Report: {write_report(runs, out or (runs[0] if len(runs) == 1 else Path('.')))}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the two runs and their comparison.")] = Path("runs/demo"),
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Train LDAdamW and AdamW on the same batches of real text, then compare them."""
    from ldadam.training.demo import run_demo

    show_warnings_as_sentences()
    try:
        run_demo(out, threads=threads)
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped at once") from stop
