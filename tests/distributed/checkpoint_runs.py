"""Legs of a run: resume from a checkpoint under one engine, train some steps, save; in processes, or alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from distributed.engines import assemble, train, weights_of
from ldadam import LDAdamW

Save = Callable[[nn.Module, LDAdamW, Path], None]


def state_of(model: nn.Module, optimizer: LDAdamW, options: StateDictOptions) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model, options=options),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }


def save_sharded(model: nn.Module, optimizer: LDAdamW, folder: Path, *, flatten: bool = False) -> None:
    """Each rank its shards."""
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    dcp.save(state_of(model, optimizer, options), checkpoint_id=folder)


def load_sharded(model: nn.Module, optimizer: LDAdamW, folder: Path, *, flatten: bool = False) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    loaded = state_of(model, optimizer, options)
    dcp.load(loaded, checkpoint_id=folder)
    set_model_state_dict(model, loaded["model"])
    set_optimizer_state_dict(model, optimizer, loaded["optimizer"], options=options)


def save_flattened(model: nn.Module, optimizer: LDAdamW, folder: Path) -> None:
    save_sharded(model, optimizer, folder, flatten=True)


def load_flattened(model: nn.Module, optimizer: LDAdamW, folder: Path) -> None:
    load_sharded(model, optimizer, folder, flatten=True)


def save_full(model: nn.Module, optimizer: LDAdamW, folder: Path) -> None:
    """One file of whole tensors, written by rank 0."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    saved = state_of(model, optimizer, options)
    if _is_first_rank():
        folder.mkdir()
        torch.save(saved, folder / "full.pt")
    _wait()


def load_full(model: nn.Module, optimizer: LDAdamW, folder: Path) -> None:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=dist.is_initialized())
    loaded: dict[str, Any] = {"model": {}, "optimizer": {}}
    if _is_first_rank():
        loaded = torch.load(folder / "full.pt", weights_only=True)
    set_model_state_dict(model, loaded["model"], options=options)
    set_optimizer_state_dict(model, optimizer, loaded["optimizer"], options=options)


def load_plain(model: nn.Module, optimizer: LDAdamW, folder: Path) -> None:
    """Whole tensors handed to the optimizer itself, on every rank, which keeps its shards."""
    loaded = torch.load(folder / "full.pt", weights_only=True)
    set_model_state_dict(model, loaded["model"], options=StateDictOptions(full_state_dict=True))
    names = [name for group in loaded["optimizer"]["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [
        {**group, "params": [numbers[name] for name in group["params"]]}
        for group in loaded["optimizer"]["param_groups"]
    ]
    state = {numbers[name]: values for name, values in loaded["optimizer"]["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


WAYS = {
    "sharded": (save_sharded, load_sharded),
    "flattened": (save_flattened, load_flattened),
    "full": (save_full, load_full),
    "plain": (save_full, load_plain),
}


def leg(
    engine: str | None, way: str, options: dict[str, Any], first: int, last: int, folder: Path
) -> list[dict[str, Tensor]]:
    """Steps `first` to `last`, from the checkpoint of `first` to that of `last`; the weights after each."""
    save, load = WAYS[way]
    model, optimizer, samples = assemble(engine, "net", torch.float64, **options)
    if first:
        with torch.no_grad():
            for param in model.parameters():
                param.fill_(0.5)
        load(model, optimizer, folder / str(first))
    weights: list[dict[str, Tensor]] = []
    train(model, optimizer, range(first, last), samples=samples, after_step=lambda: weights.append(weights_of(model)))
    save(model, optimizer, folder / str(last))
    return weights


def _is_first_rank() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()
