"""How a model is laid out over ranks: whole on each with averaged gradients, or sharded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ldadam import LDAdamW
from ldadam.distributed import compress_gradients
from ldadam.training.config import PretrainConfig
from ldadam.training.launch import Launch, shard_size

SHARDED = ("fsdp", "hsdp")


def place_model(model: Any, config: PretrainConfig, launch: Launch, device: torch.device) -> Any:
    """The model on its device; sharded by layers where the layout shards it, which happens in place.

    Weights are the same on every rank before: they depend on the seed alone.
    """
    if config.parallel not in SHARDED:
        return model.to(device)
    size = shard_size(config, launch) if config.parallel == "hsdp" else launch.world_size
    if size == launch.world_size:
        mesh = init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    else:
        shape = (launch.world_size // size, size)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def wrap_model(model: nn.Module, config: PretrainConfig, optimizer: torch.optim.Optimizer) -> nn.Module:
    """The module whose forward is followed by a backward that averages gradients over ranks."""
    if config.parallel in ("none", *SHARDED):
        return model
    if config.parallel == "compressed":
        assert isinstance(optimizer, LDAdamW)
        compress_gradients(model, optimizer)
    return DistributedDataParallel(model, broadcast_buffers=False)
