"""Where an error buffer in codes is worse than a float32 one: a strongly convex problem with little gradient noise.

    python benchmarks/buffer_border.py --out benchmarks/results/buffer_border.json

Least squares on one matrix of 32 x 128: gradient H (W - W*) + noise, the eigenvalues of H from 0.1 to 1, the noise a
share of the norm of the first gradient. The learning rate falls as a cosine to zero. Each number is the distance to W*
over the one at the start, after 300 steps: the geometric mean of the seeds. A float32 buffer is rounded to codes after
each step, which tests/test_error_buffer.py shows to be what `error_dtype` does; so other blocks can be tried as well.
"""

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch

from ldadam import LDAdamW, provenance, quantization

SHAPE = (32, 128)
NUM_STEPS = 300
LR = 0.07


class Storage(NamedTuple):
    """How E is kept: in codes of a kind, in blocks, rounded to nearest or by chance; or as it is; or not at all."""

    kind: str | None = None
    block: int = quantization.BLOCK
    by_chance: bool = False
    error_feedback: bool = True


STORAGES = {
    "float32": Storage(),
    "int8": Storage("int8"),
    "int4": Storage("int4"),
    "int4, blocks of 32": Storage("int4", block=32),
    "int4, blocks of 16": Storage("int4", block=16),
    "int8, by chance": Storage("int8", by_chance=True),
    "int4, by chance": Storage("int4", by_chance=True),
    "no feedback": Storage(error_feedback=False),
}


def round_(error: torch.Tensor, storage: Storage, generator: torch.Generator) -> None:
    if storage.kind is None:
        return
    blocks = error.reshape(-1, storage.block)
    noise = torch.rand(blocks.shape, generator=generator) if storage.by_chance else None
    codes = quantization.encode(blocks, storage.kind, noise=noise)
    error.copy_(quantization.decode(codes, cols=storage.block).reshape(error.shape))


def distance_left(storage: Storage, *, noise: float, rank: int, seed: int) -> float:
    """|W - W*| / |W_0 - W*| after the last step."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(SHAPE[0], SHAPE[0], generator=generator)).Q
    hessian = rotation @ torch.diag(torch.logspace(-1, 0, SHAPE[0])) @ rotation.mT
    optimum = torch.randn(SHAPE, generator=generator)
    scale = noise * (hessian @ optimum).norm() / math.sqrt(optimum.numel())
    weight = torch.nn.Parameter(torch.zeros(SHAPE))
    optimizer = LDAdamW([weight], lr=LR, rank=rank, error_feedback=storage.error_feedback)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=NUM_STEPS)
    chance = torch.Generator().manual_seed(seed)
    for _ in range(NUM_STEPS):
        weight.grad = hessian @ (weight.detach() - optimum) + scale * torch.randn(SHAPE, generator=generator)
        optimizer.step()
        schedule.step()
        if storage.error_feedback:
            round_(optimizer.state[weight]["error_buffer"], storage, chance)
    return ((weight.detach() - optimum).norm() / optimum.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 12, 16, 24])
    parser.add_argument("--noises", type=float, nargs="+", default=[0.0, 0.3, 3.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        "versions": provenance.versions(["torch"]),
        "hardware": provenance.hardware(),
        "setting": {"shape": SHAPE, "steps": NUM_STEPS, "lr": LR, "seeds": args.seeds},
        "runs": [],
    }
    print("rank  noise  " + "  ".join(STORAGES))
    for rank in args.ranks:
        for noise in args.noises:
            left = {
                name: [distance_left(storage, noise=noise, rank=rank, seed=seed) for seed in args.seeds]
                for name, storage in STORAGES.items()
            }
            results["runs"].append({"rank": rank, "noise": noise, "distance_left": left})
            means = {name: math.exp(sum(map(math.log, values)) / len(values)) for name, values in left.items()}
            cells = [f"{mean:.4f}".rjust(len(name)) for name, mean in means.items()]
            print(f"{rank:4d}  {noise:5.1f}  " + "  ".join(cells), flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
