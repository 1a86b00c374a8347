"""Under DistributedDataParallel, two processes with half of the batch each train as one process with all of it."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from ldadam import LDAdamW, lowrank_param_groups
from tolerances import TOLERANCES

NUM_STEPS = 8


def model_of(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Tanh(), torch.nn.Linear(40, 12)).double()


def train(model: torch.nn.Module, *, rank: int, world_size: int) -> list[torch.Tensor]:
    """Weights after some steps on this process's part of each batch."""
    optimizer = LDAdamW(lowrank_param_groups(model, rank=4), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(NUM_STEPS):
        inputs = torch.randn(16, 24, dtype=torch.float64, generator=generator)[rank::world_size]
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [param.detach().clone() for param in model.parameters()]


def train_in_process(rank: int, port_file: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    weights = train(DistributedDataParallel(model_of(0)), rank=rank, world_size=2)
    torch.save(weights, f"{results}.{rank}")
    dist.destroy_process_group()


def test_two_ddp_processes_equal_one(tmp_path):
    context = mp.get_context("spawn")
    rendezvous, results = str(tmp_path / "rendezvous"), str(tmp_path / "weights")
    processes = [context.Process(target=train_in_process, args=(rank, rendezvous, results)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    alone = train(model_of(0), rank=0, world_size=1)
    for rank in range(2):
        assert os.path.exists(f"{results}.{rank}")
        for together, expected in zip(torch.load(f"{results}.{rank}"), alone, strict=True):
            torch.testing.assert_close(together, expected, rtol=0, atol=TOLERANCES["float64 trajectory"])
