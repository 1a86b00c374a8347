"""The command line: `ldadam pretrain`, `finetune`, `report`, `demo`, `plan` and `bench`.

The options of `pretrain` and `finetune` are made from the fields of their configurations. Heavy packages are imported
inside the commands.
"""

from __future__ import annotations

import inspect
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ldadam.finetune.config import FinetuneConfig
from ldadam.training.config import PretrainConfig
from ldadam.training.config_file import parse_value, read_config_file
from ldadam.training.errors import CommandError, FailedTogether, Interrupted, UsageError
from ldadam.training.launch import is_first_process
from ldadam.training.run_config import Config, RunConfig, fields_of, merge, plain_types

app = typer.Typer(
    name="ldadam",
    help="Train language models with LDAdam.",
    epilog="Exit codes: 0 success, 1 failure, 2 a request that cannot be met, 130 stopped by Ctrl-C or SIGTERM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Run")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of torch.", min=1)]

# What all processes raise together.
_OF_ALL = (UsageError, Interrupted, FailedTogether)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code; errors become one sentence on stderr."""
    debug = "--debug" in arguments
    try:
        return app(arguments, prog_name="ldadam", standalone_mode=True) or 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except CommandError as error:
        return _fail(str(error), error.exit_code, debug, of_all=isinstance(error, _OF_ALL))
    except Exception as error:
        return _fail(_unexpected(error), 1, debug)


def _fail(sentence: str, exit_code: int, debug: bool, *, of_all: bool = False) -> int:
    """Print the sentence; where all processes fail with the same one, the first alone does."""
    if debug:
        traceback.print_exc()
    if not of_all or is_first_process():
        print(f"ldadam: {sentence}", file=sys.stderr)
    return exit_code


def _unexpected(error: Exception) -> str:
    from ldadam.training.checkpoints import disk_reason

    if reason := disk_reason(error):
        return f"could not write or read a file: {reason}"
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first_line} (--debug shows where)"


def _show_warnings_as_sentences() -> None:
    """Warnings of the optimizer are for the user; those of other packages are not."""
    from ldadam import LDAdamWarning

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if is_first_process():
            print(f"ldadam: {message}", file=sys.stderr)

    warnings.simplefilter("ignore")
    warnings.simplefilter("always", LDAdamWarning)
    warnings.showwarning = show


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

    _show_warnings_as_sentences()
    given = {name: parse_value(kind, name, value, where="the command line") for name, value in settings.items()}
    from_file = read_config_file(config, kind) if config else {}
    asked = merge(from_file, given)
    resolved = run_folder.reopen(asked, kind, resolve) if resume else resolve(asked)
    try:
        run = train(resolved, resume=resume)
    except KeyboardInterrupt as stop:
        raise Interrupted(f"stopped at once: {run_folder.what_can_be_resumed(Path(resolved.out))}") from stop
    if not is_first_process():
        return
    if resolved.report:
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
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Search the learning rate of both optimizers instead.")
    ] = False,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Train LDAdamW and AdamW on the same batches of real text, then compare them."""
    from ldadam.training.demo import run_demo, run_sweep

    _show_warnings_as_sentences()
    try:
        (run_sweep if sweep else run_demo)(out, threads=threads)
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped at once") from stop


@app.command()
def plan(
    model: Annotated[
        str,
        typer.Option(
            help="60m, 130m, 350m, 1b, 7b, 8b, 13b, 70b, 405b, ROWSxCOLUMNS:COUNT,..., a hub id, or a folder with a "
            "config.json."
        ),
    ] = "7b",
    rank: Annotated[str, typer.Option(help="Rank, or a fraction of the shorter side.")] = "16",
    error_dtype: Annotated[
        str | None, typer.Option(help="Of the error buffer. Default: that of the weights.", show_default=False)
    ] = None,
    error_feedback: Annotated[bool, typer.Option(" /--no-error-feedback", help="Without the error buffer.")] = True,
    dtype: Annotated[str, typer.Option(help="Of weights and gradients.")] = "bfloat16",
    optimizer: Annotated[
        str,
        typer.Option(help="ldadamw, adamw, adamw8bit, adamw4bit, galore or apollo; the others are shown beside it."),
    ] = "ldadamw",
    batch: Annotated[int | None, typer.Option(help="Sequences at a time on each device.", min=1, metavar="N")] = None,
    seq: Annotated[int | None, typer.Option(help="Tokens of a sequence.", min=1, metavar="N")] = None,
    step_in_backward: Annotated[
        bool, typer.Option("--step-in-backward", help="Step each parameter as its gradient arrives, and free that.")
    ] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Layers keep their input only, and are computed anew.")
    ] = False,
    devices: Annotated[int, typer.Option(help="How many share the work.", min=1, metavar="N")] = 1,
    sharding: Annotated[str, typer.Option(help="How they do: fsdp, ddp or compressed.")] = "fsdp",
    device: Annotated[str, typer.Option(help="cuda or cpu; it need not be here.")] = "cuda",
    json: Annotated[Path | None, typer.Option(help="File for the numbers.")] = None,
    picture: Annotated[Path | None, typer.Option(help="File for a picture, such as plan.png.")] = None,
    debug: Debug = False,
) -> None:
    """Say what a training run will take of memory and network, before anything is allocated."""
    from ldadam.planner.command import run_plan

    _show_warnings_as_sentences()
    run_plan(
        model=model,
        rank=rank,
        error_dtype=error_dtype,
        error_feedback=error_feedback,
        dtype=dtype,
        optimizer=optimizer,
        batch=batch,
        seq=seq,
        step_in_backward=step_in_backward,
        checkpointing=checkpointing,
        devices=devices,
        sharding=sharding,
        device=device,
        json_file=json,
        picture=picture,
    )


bench = typer.Typer(help="Measure the optimizer.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("step")
def bench_step(
    model: Annotated[str, typer.Option(help="60m, 130m, 350m, 1b, 7b, several, or ROWSxCOLUMNS:COUNT,...")] = "60m",
    rank: Annotated[str, typer.Option(help="Rank, or several with commas between.")] = "16",
    optimizers: Annotated[
        str,
        typer.Option(
            help="ldadamw[:BACKEND], adamw, adamw:foreach, adafactor, muon, adamw8bit, adamw4bit, galore, apollo, "
            "fira, dct, module:Class; with commas between."
        ),
    ] = "ldadamw,ldadamw:eager,adamw,adamw:foreach",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(help="float32 or bfloat16. Default: float32 on the CPU, bfloat16 on CUDA.", show_default=False),
    ] = None,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(help="Timed steps of each optimizer.", min=1)] = 20,
    all_parameters: Annotated[
        bool, typer.Option("--all-parameters/--lowrank-only", help="Embedding, head and norms too.")
    ] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Also ldadamw:graph, captured in a CUDA graph.")] = False,
    json: Annotated[Path | None, typer.Option(help="File for the results.")] = None,
    debug: Debug = False,
) -> None:
    """Time one step of optimizers on the weights of a model, in turn."""
    from ldadam.bench.progress import Progress
    from ldadam.bench.step import make_plan, run_bench

    _show_warnings_as_sentences()
    plan = make_plan(
        model=model,
        rank=rank,
        optimizers=optimizers,
        device=device,
        dtype=dtype,
        repeats=repeats,
        threads=threads,
        all_parameters=all_parameters,
        graph=graph,
    )
    try:
        with Progress() as progress:
            run_bench(plan, out=json, progress=progress)
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped at once") from stop
    if json is not None:
        print(f"Results: {json}")


@bench.command("memory")
def bench_memory(
    model: Annotated[str, typer.Option(help="Llamas such as demo, 350m, 1b, 7b; with commas between.")] = "350m,1b",
    rank: Annotated[str, typer.Option(help="Rank, or several with commas between.")] = "256",
    error_dtype: Annotated[str, typer.Option(help="Of the error buffer, or several with commas between.")] = "int4",
    optimizers: Annotated[
        str,
        typer.Option(
            help="ldadamw:in-backward, ldadamw, adamw, adamw8bit, adamw4bit, galore, apollo; with commas between."
        ),
    ] = "ldadamw:in-backward,ldadamw,adamw,adamw8bit,adamw4bit,galore",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    batch: Annotated[int, typer.Option(help="Sequences at a time.", min=1, metavar="N")] = 1,
    seq: Annotated[int, typer.Option(help="Tokens of a sequence.", min=2, metavar="N")] = 1024,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Layers keep their input only, and are computed anew.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Steps of each case.", min=1, metavar="N")] = 3,
    json: Annotated[Path | None, typer.Option(help="File for the results.")] = None,
    debug: Debug = False,
) -> None:
    """Train random Llamas for a few steps, each optimizer in a process of its own: the peak beside the plan."""
    from ldadam.bench.random_training import Setting
    from ldadam.bench.training_memory import find_cases, run_memory

    _show_warnings_as_sentences()
    cases = find_cases(model=model, rank=rank, error_dtype=error_dtype, optimizers=optimizers)
    setting = Setting(device, dtype, batch, seq, checkpointing, steps)
    try:
        run_memory(cases, setting, out=json)
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped at once") from stop
    if json is not None:
        print(f"Results: {json}")
