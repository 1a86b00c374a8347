"""What would a CPU step cost if nothing but its passes over m x n matrices took time?

    python benchmarks/cpu_bound.py --out benchmarks/results/cpu_bound.json

Times torch's kernels for A = G + E, U'A (twice), A Y, E and W on the matrices of Llama-60M, in float32 and with two
threads: all matrices pass by pass, and each matrix through all passes while it is in cache; beside whole steps of
LDAdamW, by the default backend and by the page, and torch's fused AdamW. In turn, medians of nine rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ldadam import LDAdamW
from ldadam.provenance import hardware, versions

SHAPES = [(512, 512)] * 32 + [(1376, 512)] * 16 + [(512, 1376)] * 8


def passes(rank: int, *, each_matrix_at_once: bool) -> Callable[[], None]:
    """A function that makes the six passes over all matrices, and nothing else."""
    matrices = [[torch.randn(shape) for _ in range(3)] for shape in SHAPES]
    wide = [[tensor if tensor.shape[0] <= tensor.shape[1] else tensor.mT for tensor in trio] for trio in matrices]
    factors = [(torch.randn(one.shape[0], rank), torch.randn(rank, one.shape[1])) for one, _, _ in wide]

    def all_of(index: int) -> list[Callable[[], Tensor]]:
        (error, grad, weight), (columns, rows) = wide[index], factors[index]
        return [
            lambda: error.add_(grad),
            lambda: (error.mT @ columns) if error.stride(0) == 1 else columns.mT @ error,
            lambda: error @ rows.mT,
            lambda: (error.mT @ columns) if error.stride(0) == 1 else columns.mT @ error,
            lambda: error.addmm_(columns, rows, alpha=-1e-3).addmm_(columns, rows, alpha=1e-3),
            lambda: weight.addmm_(columns, rows, alpha=-1e-3),
        ]

    work = [all_of(index) for index in range(len(SHAPES))]
    order = [each for some in (work if each_matrix_at_once else zip(*work, strict=True)) for each in some]

    def run() -> None:
        for each in order:
            each()

    return run


def step_of(make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]) -> Callable[[], None]:
    """A function that takes one step of an optimizer of those matrices."""
    params = [torch.nn.Parameter(torch.randn(shape) * 0.02) for shape in SHAPES]
    for param in params:
        param.grad = torch.randn_like(param)
    return make(params).step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    results = []
    for rank in (16, 128):
        subjects = {
            "AdamW, fused": step_of(lambda params: torch.optim.AdamW(params, fused=True)),
            "LDAdamW": step_of(lambda params, rank=rank: LDAdamW(params, rank=rank)),
            "LDAdamW, eager": step_of(lambda params, rank=rank: LDAdamW(params, rank=rank, backend="eager")),
            "passes, all matrices each": passes(rank, each_matrix_at_once=False),
            "passes, each matrix in cache": passes(rank, each_matrix_at_once=True),
        }
        times: dict[str, list[float]] = {name: [] for name in subjects}
        for number in range(11):
            for name, subject in subjects.items():
                start = time.perf_counter()
                subject()
                if number > 1:
                    times[name].append(1e3 * (time.perf_counter() - start))
        for name, measured in times.items():
            low, middle, high = min(measured), statistics.median(measured), max(measured)
            print(f"rank {rank:3}  {name:30} {middle:6.1f} ms  ({low:.1f} to {high:.1f})", flush=True)
            results.append({"rank": rank, "subject": name, "median_ms": middle, "min_ms": low, "max_ms": high})
    if args.out:
        record = {"versions": versions(["torch"]), "hardware": hardware(), "results": results}
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
