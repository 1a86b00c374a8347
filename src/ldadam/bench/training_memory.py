"""`ldadam bench memory`: the peak of real training steps of a random Llama, beside what `ldadam plan` promises."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ldadam import provenance
from ldadam.bench.arguments import find_device, find_dtype, find_ranks, listed, refuse_rank_above_every_matrix
from ldadam.bench.own_process import in_own_process
from ldadam.bench.random_training import Case, Setting, train
from ldadam.error_buffer import ERROR_DTYPES
from ldadam.planner.models import LLAMAS
from ldadam.planner.parts import GIB, size
from ldadam.planner.planning import OPTIMIZERS, plan
from ldadam.training.errors import UsageError
from ldadam.training.files import make_folder_of

IN_BACKWARD = "ldadamw:in-backward"
NAMES = (IN_BACKWARD, *OPTIMIZERS)
WITH_RANK = ("galore", "apollo")
PACKAGES = ("torch", "transformers", "triton", "torchao", "galore-torch", "apollo-torch")


def find_cases(*, model: str, rank: str, error_dtype: str, optimizers: str) -> list[Case]:
    """Every model with every optimizer, at each rank and error dtype that it has.

    Raises:
        UsageError: a name is unknown, a rank fits no matrix, or a list is empty.
    """
    ranks, error_dtypes = find_ranks(rank), listed(error_dtype)
    models, names = listed(model), listed(optimizers)
    for option, given, known in (
        ("--model", models, LLAMAS),
        ("--error-dtype", error_dtypes, ERROR_DTYPES),
        ("--optimizers", names, NAMES),
    ):
        for each in given or ["nothing"]:
            if each not in known:
                raise UsageError(f"{option} must be of {', '.join(known)}, with commas between; got {each!r}")
    cases = [case for name, one in product(models, names) for case in _cases(name, one, ranks, error_dtypes)]
    for case in cases:
        if case.rank is not None:
            refuse_rank_above_every_matrix(case.rank, model=case.model, longest=LLAMAS[case.model].hidden)
    return cases


def _cases(model: str, name: str, ranks: Sequence[int], error_dtypes: Sequence[str]) -> list[Case]:
    optimizer, _, variant = name.partition(":")
    if optimizer == "ldadamw":
        return [Case(model, optimizer, *each, step_in_backward=bool(variant)) for each in product(ranks, error_dtypes)]
    return [Case(model, optimizer, rank, None, False) for rank in (ranks if optimizer in WITH_RANK else [None])]


def run_memory(cases: Sequence[Case], setting: Setting, *, out: Path | None) -> dict[str, Any]:
    """Train each case in a process of its own, print the table, and write what is finished to `out` at once.

    Raises:
        UsageError: there is no such device or dtype, or `out` cannot be written.
    """
    find_device(setting.device)
    find_dtype(setting.dtype)
    if out is not None:
        make_folder_of(out, option="--json")
    # This process leaves the device alone, of which its context would take a share.
    hardware = in_own_process(provenance.hardware)
    del hardware["status"]
    record = {"command": provenance.command(), **provenance.versions(PACKAGES), "hardware": hardware}
    record |= {**asdict(setting), "results": []}
    for case in cases:
        print(_title(asdict(case)), file=sys.stderr)
        record["results"].append(_run(case, setting))
        if out is not None:
            out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _print(record)
    return record


def _run(case: Case, setting: Setting) -> dict[str, Any]:
    planned = plan(
        case.model,
        rank=case.rank,
        error_dtype=case.error_dtype,
        dtype=setting.dtype,
        optimizer=case.optimizer,
        batch=setting.batch,
        seq=setting.seq,
        step_in_backward=case.step_in_backward,
        checkpointing=setting.checkpointing,
        device=setting.device,
    ).footprint
    row = {**asdict(case), "planned_bytes": planned.total, "planned_state_bytes": planned.state.total}
    row |= {"planned_step_peak": planned.step_peak, **in_own_process(train, case, setting)}
    if not all(map(math.isfinite, row.get("losses", []))):
        row["status"] = "failed: a loss is not finite"
    return row


def _words(row: dict[str, Any]) -> list[str]:
    """Model, optimizer, rank and error buffer of a case."""
    optimizer = f"{row['optimizer']}, in backward" if row["step_in_backward"] else row["optimizer"]
    return [row["model"], optimizer, str(row["rank"] or ""), row["error_dtype"] or ""]


def _print(record: dict[str, Any]) -> None:
    """The cases that ran as a table, and why the others did not."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    console.print(table_of(record))
    for row in record["results"]:
        if row["status"] != "ok":
            console.print(f"{_title(row)}: {row['status']}", highlight=False, soft_wrap=True, markup=False)


def _title(row: dict[str, Any]) -> str:
    return " ".join(word for word in _words(row) if word)


def table_of(record: dict[str, Any]) -> Table:
    """The cases that ran, one a row; what a step of theirs allocates is planned for some optimizers only."""
    rows = [row for row in record["results"] if row["status"] == "ok"]
    is_large = any(row["peak_bytes"] >= GIB for row in rows)
    name, unit = ("GiB", GIB) if is_large else ("MiB", 2**20)
    caption = "reserved: with the allocator's gaps; >: without the step's peak, which is not planned"
    title = f"{record['dtype']}, {record['batch']} x {record['seq']} tokens, {record['device']}, {name}"
    table = Table(title=title, caption=caption)
    for heading in ("model", "optimizer", "rank", "error buffer"):
        table.add_column(heading, no_wrap=True)
    for heading in ("planned", "peak", "reserved", "state", "last loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        planned = size(row["planned_bytes"], unit)
        measured = (size(row.get(key, 0), unit) for key in ("peak_bytes", "reserved_bytes", "state_bytes"))
        bound = "> " if row["planned_step_peak"] is None else ""
        table.add_row(*_words(row), bound + planned, *measured, f"{row['losses'][-1]:.3f}")
    return table
