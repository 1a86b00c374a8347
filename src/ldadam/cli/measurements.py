"""`ldadam plan` and `ldadam bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ldadam.cli.app import Debug, Threads, app, show_warnings_as_sentences
from ldadam.training.errors import Interrupted


@app.command()
def plan(
    model: Annotated[
        str,
        typer.Option(
            help="demo, 20m, 60m, 130m, 350m, 1b, 7b, 8b, 13b, 70b, 405b, ROWSxCOLUMNS:COUNT,..., a hub id, or a "
            "folder with a config.json."
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

    show_warnings_as_sentences()
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
    model: Annotated[
        str, typer.Option(help="demo, 20m, 60m, 130m, 350m, 1b, 7b, several, or ROWSxCOLUMNS:COUNT,...")
    ] = "60m",
    rank: Annotated[str, typer.Option(help="Rank, or several with commas between.")] = "16",
    optimizers: Annotated[
        str,
        typer.Option(
            help="ldadamw[:BACKEND], ldadamw:residual, ldadamw:kept, adamw, adamw:foreach, adafactor, muon, adamw8bit, "
            "adamw4bit, galore, apollo, fira, dct, module:Class; with commas between."
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

    show_warnings_as_sentences()
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

    show_warnings_as_sentences()
    cases = find_cases(model=model, rank=rank, error_dtype=error_dtype, optimizers=optimizers)
    setting = Setting(device, dtype, batch, seq, checkpointing, steps)
    try:
        run_memory(cases, setting, out=json)
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped at once") from stop
    if json is not None:
        print(f"Results: {json}")
