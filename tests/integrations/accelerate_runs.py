"""What two processes do for test_accelerate.py: a training that Accelerate has sharded with FSDP2."""

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from by_hand import BATCH_SIZE, LR, batches
from tiny_llama import model as tiny_model
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from ldadam import LDAdamW, lowrank_param_groups


@contextmanager
def sharding_accelerator():
    """An Accelerator with FSDP2 in this group of processes.

    Accelerate chooses FSDP for accelerators only, so that its state is told after it has found two CPUs. What shards
    the model and swaps the parameters of the optimizer is its own.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    try:
        accelerator = Accelerator(cpu=True)
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )
        yield accelerator
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in ranks:
            del os.environ[name]


def train_sharded(num_steps: int, folder: Path | None, **options: Any) -> dict[str, Tensor]:
    """The whole weights after some steps; with a folder, half of them are taken by a training that resumes the other's.

    Each process sees its half of each batch.
    """
    with sharding_accelerator() as accelerator:
        if folder is None:
            return _whole_weights(_steps(*_prepared(accelerator, options), 0, num_steps))
        _steps(*_prepared(accelerator, options), 0, num_steps // 2)
        accelerator.save_state(str(folder))
    with sharding_accelerator() as accelerator:
        prepared = _prepared(accelerator, options)
        accelerator.load_state(str(folder))
        return _whole_weights(_steps(*prepared, num_steps // 2, num_steps))


def _prepared(accelerator: Accelerator, options: dict[str, Any]) -> tuple[Accelerator, Any, Any]:
    model = tiny_model()
    optimizer = LDAdamW(lowrank_param_groups(model, rank=8), lr=LR, **options)
    before = {id(param) for group in optimizer.param_groups for param in group["params"]}
    model, optimizer = accelerator.prepare(model, optimizer)
    after = [param for group in optimizer.param_groups for param in group["params"]]
    assert all(isinstance(param, DTensor) and id(param) not in before for param in after)
    return accelerator, model, optimizer


def _steps(accelerator: Accelerator, model: Any, optimizer: Any, first: int, last: int) -> Any:
    share = BATCH_SIZE // dist.get_world_size()
    mine = slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)
    for step, batch in enumerate(batches()):
        if step == last:
            return model
        if step >= first:
            accelerator.backward(model(**{key: value[mine] for key, value in batch.items()}).loss)
            optimizer.step()
            optimizer.zero_grad()


def _whole_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
