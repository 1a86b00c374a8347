"""What a training step sends between two processes, counted where torch hands it to the process group.

    python benchmarks/traffic.py            count what benchmarks/results/traffic.json lacks
    python benchmarks/traffic.py --table    print the table of docs/distributed.md from it

Forward, backward and optimizer, of Llamas with the shapes of `ldadam pretrain`'s presets in float32, by gloo on the
CPU: AdamW and LDAdamW under DDP and FSDP2, laid out as `ldadam pretrain --parallel` does, and LDAdamW compressed. All
layers of the 60m preset; one and two of the 1b preset, between which what a layer adds is seen. Stops where a count is
not what `ldadam plan` says.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ldadam import provenance
from ldadam.bench.traffic import Row, Subject, counted, planned
from ldadam.planner.models import LLAMAS

RESULTS = Path(__file__).parent / "results/traffic.json"
PROCESSES = 2
MIB = 2**20

# The preset, how many of its layers, and ranks of LDAdamW.
MODELS = [("60m", 8, (128,)), ("1b", 1, (32, 512)), ("1b", 2, (32,))]
PHASES = ("forward", "backward", "step")


def subjects() -> Iterator[tuple[str, Subject]]:
    """The preset, and what is trained of it."""
    for model, layers, ranks in MODELS:
        shape = replace(LLAMAS[model], layers=layers)
        for parallel in ("ddp", "compressed", "fsdp"):
            # DDP sends the same at every rank.
            for rank in {"ddp": (None, ranks[0]), "compressed": ranks, "fsdp": (None, *ranks)}[parallel]:
                yield model, Subject(shape, parallel, rank)


def count(process: int, subject: Subject, folder: str) -> None:
    """One of the processes: the first writes what it has counted."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=process, world_size=PROCESSES)
    found = counted(subject)
    if process == 0:
        Path(folder, "counted.json").write_text(json.dumps([asdict(row) for row in found]))
    dist.barrier()
    dist.destroy_process_group()


def run(model: str, subject: Subject) -> dict[str, Any]:
    """The counts of one subject, which have to be the planned ones."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(count, (subject, folder), nprocs=PROCESSES)
        found = [Row(**row) for row in json.loads(Path(folder, "counted.json").read_text())]
    if found != (expected := planned(subject, devices=PROCESSES)):
        raise SystemExit(f"{model}, {subject}: counted {found}, but planned {expected}")
    facts = {"model": model, "layers": subject.shape.layers, "parallel": subject.parallel, "rank": subject.rank}
    return {**facts, "dtype": subject.dtype, "collectives": [asdict(row) for row in found]}


def complete() -> None:
    """Count what the file of results lacks, and write it after each count; other versions count anew."""
    versions = provenance.versions(("torch", "transformers"))
    facts = {"command": "python benchmarks/traffic.py", "versions": versions, "hardware": provenance.hardware()}
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    runs = found["runs"] if found.get("versions") == versions else []
    for model, subject in list(subjects())[len(runs) :]:
        runs = [*runs, run(model, subject)]
        found = {**facts, "runs": runs}
        print(row_of(runs[-1]), flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def sent(run: dict[str, Any], phase: str) -> tuple[int, int]:
    """Bytes and number of collectives in a phase of a step."""
    rows = [row for row in run["collectives"] if row["phase"] == phase]
    return sum(row["num_bytes"] for row in rows), sum(row["count"] for row in rows)


def row_of(run: dict[str, Any]) -> str:
    name = "AdamW" if run["rank"] is None else f"LDAdamW, r = {run['rank']}"
    layers = f"{run['layers']} layer{'s' if run['layers'] > 1 else ''}"
    engine = {"ddp": "DDP", "compressed": "compressed", "fsdp": "FSDP2"}[run["parallel"]]
    cells = [f"{num_bytes / MIB:.1f} ({calls})" if calls else "" for num_bytes, calls in (sent(run, p) for p in PHASES)]
    return f"| {run['model']}, {layers} | {engine} | {name} | {' | '.join(cells)} |"


def table(found: dict[str, Any]) -> str:
    """Markdown: MiB of the tensors in each phase, and in how many collectives."""
    heading = "| model | engine | optimizer | forward | backward | optimizer's step |\n|---|---|---|---:|---:|---:|\n"
    return heading + "".join(f"{row_of(run)}\n" for run in found["runs"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        complete()
    print(table(json.loads(RESULTS.read_text())), end="")


if __name__ == "__main__":
    main()
