"""Weights and optimizer state in the format of `torch.distributed.checkpoint`: every rank writes what it holds.

Names are those of the parameters, so any number of processes in any layout can go on from it, one process included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

FOLDER = "distributed"
WHOLE = StateDictOptions(full_state_dict=True)


def save(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Write weights and optimizer state into a folder of `checkpoint`; all ranks at the same time.

    Raises:
        RuntimeError: on all ranks, with the error of the first one that failed as its cause.
    """
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    with _ordinary_errors():
        state_dict_saver.save(state, checkpoint_id=checkpoint / FOLDER)


@contextlib.contextmanager
def _ordinary_errors() -> Iterator[None]:
    """What fails in `torch.distributed.checkpoint` is a BaseException, which nobody expects."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        raise RuntimeError(f"rank {rank}: {cause}") from cause


def is_distributed(checkpoint: Path) -> bool:
    """Whether `save` has written it, rather than a run of one process."""
    return (checkpoint / FOLDER).is_dir()


def load_model_(model: nn.Module, checkpoint: Path) -> None:
    """Load the weights of a checkpoint of any layout, into one of any layout."""
    if is_distributed(checkpoint):
        weights: dict[str, Any] = dict(get_model_state_dict(model))
        _read_({"model": weights}, checkpoint)
        set_model_state_dict(model, weights)
        return
    weights = {
        name: tensor for path in checkpoint.glob("model*.safetensors") for name, tensor in load_file(path).items()
    }
    set_model_state_dict(model, weights, options=WHOLE)


def load_optimizer_(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Load the optimizer state of a checkpoint of any layout, into one of any layout."""
    if is_distributed(checkpoint):
        state = get_optimizer_state_dict(model, optimizer)
        _read_({"optimizer": state}, checkpoint)
        set_optimizer_state_dict(model, optimizer, state)
        return
    saved = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
    set_optimizer_state_dict(model, optimizer, _by_name(saved, model, optimizer), options=WHOLE)


def _read_(state: dict[str, Any], checkpoint: Path) -> None:
    with _ordinary_errors():
        state_dict_loader.load(state, checkpoint_id=checkpoint / FOLDER, no_dist=not dist.is_initialized())


def _by_name(saved: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A saved state of numbered parameters, as one of named parameters."""
    names = {param: name for name, param in model.named_parameters()}
    groups = zip(saved["param_groups"], optimizer.param_groups, strict=True)
    of_number = {
        number: names[param]
        for group, own in groups
        for number, param in zip(group["params"], own["params"], strict=True)
    }
    return {
        "state": {of_number[number]: state for number, state in saved["state"].items()},
        "param_groups": [
            {**group, "params": [of_number[number] for number in group["params"]]} for group in saved["param_groups"]
        ],
    }
