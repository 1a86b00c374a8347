"""`ldadam bench step`: the time of an optimizer's step, on the shapes of real models, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ldadam import provenance
from ldadam.bench.arguments import find_device, find_dtype, find_ranks, listed, refuse_rank_above_every_matrix
from ldadam.bench.clock import Ceilings, measure_ceilings
from ldadam.bench.equality import Equality, check_equality
from ldadam.bench.models import Model, find_models
from ldadam.bench.progress import Progress
from ldadam.bench.subjects import Entry, find_entry
from ldadam.bench.timing import Bench, Timing
from ldadam.bench.weights import make_weights
from ldadam.peers import UPDATE_PROJ_GAP
from ldadam.training.errors import RunError, UsageError
from ldadam.training.files import make_folder_of

# What ratios refer to.
REFERENCE = "adamw"

PACKAGES = ("torch", "triton", "torchao", "galore-torch", "apollo-torch", "pytorch_optimizer", "ista-daslab-optimizers")


@dataclass(frozen=True)
class Plan:
    """What is asked for, checked."""

    models: list[Model]
    ranks: list[int]
    entries: list[Entry]
    device: torch.device
    dtype: torch.dtype
    repeats: int
    threads: int | None


def make_plan(
    *,
    model: str,
    rank: str,
    optimizers: str,
    device: str,
    dtype: str | None,
    repeats: int,
    threads: int | None,
    all_parameters: bool,
    graph: bool,
) -> Plan:
    """Check what the command line says.

    Raises:
        UsageError: a name is unknown, a rank fits no matrix, or there is no such device.
    """
    names = listed(optimizers)
    if graph and "ldadamw:graph" not in names:
        names.append("ldadamw:graph")
    plan = Plan(
        models=find_models(model, all_parameters=all_parameters),
        ranks=find_ranks(rank),
        entries=[find_entry(name) for name in names],
        device=find_device(device),
        dtype=find_dtype(dtype or ("bfloat16" if device == "cuda" else "float32")),
        repeats=repeats,
        threads=threads,
    )
    if not plan.entries:
        raise UsageError("--optimizers is empty: name one, such as ldadamw")
    if len(set(names)) < len(names):
        raise UsageError(f"--optimizers names one twice: {optimizers}")
    if device == "cpu" and any(entry.backend == "graph" for entry in plan.entries):
        raise UsageError("a CUDA graph needs --device cuda")
    for each in plan.models:
        longest = max(min(shape.shape) for shape in each.shapes if shape.low_rank)
        for one in plan.ranks:
            refuse_rank_above_every_matrix(one, model=each.name, longest=longest)
    return plan


def run_bench(plan: Plan, *, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Time every model at every rank; what is finished is written to `out` at once.

    Raises:
        RunError: a backend of LDAdamW does not equal the page; then nothing of that model and rank is timed.
    """
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    if out is not None:  # so that a path that cannot be written fails before anything is measured
        make_folder_of(out, option="--json")
    progress.now("ceilings: memory and products")
    ceilings = measure_ceilings(plan.device, plan.dtype)
    record = {
        "command": provenance.command(),
        **provenance.versions(PACKAGES),
        "hardware": provenance.hardware(),
        "device": plan.device.type,
        "dtype": _dtype_name(plan.dtype),
        "repeats": plan.repeats,
        "ceilings": ceilings._asdict(),
        "results": [],
    }
    for model in plan.models:
        for rank in plan.ranks:
            result = _run_one(plan, model, rank, ceilings, progress)
            record["results"].append(result)
            if out is not None:
                out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            progress.finished(record, result)
    return record


def _run_one(plan: Plan, model: Model, rank: int, ceilings: Ceilings, progress: Progress) -> dict[str, Any]:
    timings = [Timing(entry) for entry in plan.entries]
    equalities = _check(plan, model, rank, timings, progress)
    progress.now(f"{model.name}, rank {rank}: weights and gradients")
    weights = make_weights(model, device=plan.device, dtype=plan.dtype)
    progress.begin(f"{model.name}, rank {rank}", num_visits=plan.repeats * len(timings))
    bench = Bench(weights, rank, plan.device, plan.repeats)
    together = bench.run(timings, on_visit=lambda timing: progress.visited(timing.entry.name))
    return {
        "model": model.name,
        "rank": rank,
        "shapes": [asdict(each) for each in model.shapes],
        "num_weights": model.num_weights,
        "together": together,
        "equality": [asdict(equality) for equality in equalities],
        "optimizers": [_summary(timing, timings, ceilings) for timing in timings],
    }


def _check(plan: Plan, model: Model, rank: int, timings: list[Timing], progress: Progress) -> list[Equality]:
    """Compare each backend of LDAdamW with the page; one that cannot run at all is marked, and not timed."""
    found = []
    for timing in timings:
        backend = timing.entry.backend
        if backend in (None, "eager"):
            continue
        progress.now(f"{model.name}, rank {rank}: {timing.entry.name} against the page")
        try:
            equality = check_equality(backend, model, rank, device=plan.device, dtype=plan.dtype)
        except Exception as error:
            timing.fail(error)
            continue
        if not equality.holds:
            raise RunError(_inequality(timing.entry.name, model, rank, equality))
        found.append(equality)
    return found


def _inequality(name: str, model: Model, rank: int, equality: Equality) -> str:
    return (
        f"{name} does not equal the page on shapes like those of {model.name} at rank {rank}: {equality.worst} is "
        f"{equality.distance:.1e} of its norm away after three steps, at most {equality.tolerance:.0e} is rounding; "
        "it has no speed until it is right"
    )


def _summary(timing: Timing, timings: Sequence[Timing], ceilings: Ceilings) -> dict[str, Any]:
    """One optimizer's row."""
    if timing.problem:
        return {"name": timing.entry.name, "status": timing.problem}
    reference = next((other for other in timings if other.entry.name == REFERENCE), None)
    row: dict[str, Any] = {
        "name": timing.entry.name,
        "status": "ok",
        "median_seconds": timing.median,
        "min_seconds": min(timing.samples),
        "max_seconds": max(timing.samples),
        "host_median_seconds": timing.host_median,
        "first_step_seconds": timing.first_seconds,
        "ratio_to_adamw": timing.ratio_to(reference) if reference else None,
        "state_bytes": timing.state_bytes,
        "extra_bytes": timing.extra_bytes,
        "samples": [[duration.seconds for duration in visit] for visit in timing.visits],
    }
    if timing.cost is not None:
        row |= _rates(timing.cost.num_bytes, timing.cost.num_operations, timing.median, ceilings)
    if timing.projection_seconds is not None and timing.first_seconds is not None:
        row["first_step_seconds"] = timing.first_seconds + timing.projection_seconds
        row["projection_step_seconds"] = timing.median + timing.projection_seconds
        row["amortised_seconds"] = timing.median + timing.projection_seconds / UPDATE_PROJ_GAP
        ratio = row["ratio_to_adamw"]
        row["amortised_ratio_to_adamw"] = None if ratio is None else ratio * row["amortised_seconds"] / timing.median
    return row


def _rates(num_bytes: int, num_operations: int, seconds: float, ceilings: Ceilings) -> dict[str, float]:
    bytes_per_second, operations_per_second = num_bytes / seconds, num_operations / seconds
    return {
        "bytes": num_bytes,
        "operations": num_operations,
        "bytes_per_second": bytes_per_second,
        "operations_per_second": operations_per_second,
        "share_of_bandwidth": bytes_per_second / ceilings.bytes_per_second,
        "share_of_product": operations_per_second / ceilings.operations_per_second,
    }


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
