"""`ldadam demo`: LDAdamW and AdamW on the same batches from the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from ldadam.training.config import PretrainConfig, resolve
from ldadam.training.errors import UsageError
from ldadam.training.model import build_model, choose_device
from ldadam.training.optimizers import build_optimizer
from ldadam.training.pretrain import Text, prepare_text, pretrain

OPTIMIZERS = ("ldadamw", "adamw")
TITLES = {"ldadamw": "LDAdamW", "adamw": "AdamW"}
RESULT_FILE = "demo.json"


def run_demo(out: Path, *, threads: int | None = None) -> None:
    """Train both optimizers at the rates of the `demo` preset, then write and show the comparison."""
    console = Console(soft_wrap=True)
    _make_room(out, console)
    configs = [_config(optimizer, out / optimizer, threads=threads) for optimizer in OPTIMIZERS]
    text = _announce(configs[0], console)
    _warm_up(configs, text)
    for config in configs:
        console.print(f"[bold]{TITLES[config.optimizer]}[/bold], peak learning rate {config.lr:g}")
        pretrain(config, text=text, title=TITLES[config.optimizer])
    _compare(out, console)


def _config(optimizer: str, out: Path, *, threads: int | None) -> PretrainConfig:
    return resolve({"preset": "demo", "optimizer": optimizer, "out": str(out), "threads": threads})


def _make_room(out: Path, console: Console) -> None:
    """Replace what an earlier demo left in this folder, and nothing else."""
    if (out / RESULT_FILE).exists():
        console.print(f"Replacing the earlier demo in {out}")
        for optimizer in OPTIMIZERS:
            shutil.rmtree(out / optimizer, ignore_errors=True)
        for name in ("demo.md", "report.html", "report.png"):
            (out / name).unlink(missing_ok=True)
    for optimizer in OPTIMIZERS:
        if (out / optimizer).exists():
            raise UsageError(f"{out / optimizer} exists and is no demo's: delete it, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    # From here on the folder is known as a demo's, even if this one is stopped.
    (out / RESULT_FILE).write_text('{"runs": []}', encoding="utf-8")


def _announce(config: PretrainConfig, console: Console) -> Text:
    """Prepare the text and say what is about to happen."""
    if config.threads:
        torch.set_num_threads(config.threads)
    console.print("Reading Python's own sources and training a tokenizer on them ...")
    text = prepare_text(config)
    console.print(
        f"A Llama of width {config.hidden_size} and {config.num_layers} layers, {config.steps} steps on "
        f"{text.packed.num_train_tokens:,} tokens, for each of two optimizers."
    )
    return text


def _warm_up(configs: Sequence[PretrainConfig], text: Text) -> None:
    """Three steps of each on a throwaway model: loading libraries must not count against whoever comes first."""
    for config in configs:
        model = build_model(config, text.tokenizer).to(choose_device(config.device))  # pyright: ignore
        optimizer = build_optimizer(model, config)
        for _ in range(3):
            batch = text.packed.validation[: config.batch_size].long().to(model.device)
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            model.zero_grad()


def _compare(out: Path, console: Console) -> None:
    """Write demo.json, demo.md and the report; print the table."""
    from ldadam.report import load_run, write_report
    from ldadam.report.page import markdown_table, summary_rows

    folders, names = [out / optimizer for optimizer in OPTIMIZERS], [TITLES[name] for name in OPTIMIZERS]
    runs = [load_run(folder, name=name) for folder, name in zip(folders, names, strict=True)]
    headings, rows = summary_rows(runs)
    page = write_report(folders, out, names=names)
    result = {"runs": [run.summary() for run in runs], "facts": runs[0].facts, "steps": runs[0].config["steps"]}
    (out / "demo.md").write_text(markdown_table(headings, rows), encoding="utf-8")
    (out / RESULT_FILE).write_text(json.dumps(result, indent=1), encoding="utf-8")
    table = Table(title="Same batches, same initial weights", box=box.SIMPLE, padding=(0, 0))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"Picture: {out / 'report.png'}\nPage:    {page}\nTable:   {out / 'demo.md'}")
