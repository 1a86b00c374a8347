"""What a training step sends, counted where torch hands it to the process group, and as `ldadam plan` has it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ldadam import LDAdamW, lowrank_param_groups, plan
from ldadam.planner.models import LlamaShape
from ldadam.training.config import PretrainConfig
from ldadam.training.launch import Launch
from ldadam.training.layouts import place_model, wrap_model

# By torch's name of an operator: the kind of collective, and which argument is the whole tensor.
_OPERATORS = {
    "allreduce_": ("all_reduce", 0),
    "_allgather_base_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
}

# The first step compares what ranks are about to do, and DDP forms its buckets anew after the first backward pass.
NUM_WARMUP = 2
NUM_TOKENS = 8


class Sent(NamedTuple):
    """One collective: its kind, and how much the whole tensors are that it reduces or gathers."""

    kind: str
    numbers: int
    num_bytes: int


class Recorder(TorchDispatchMode):
    """Every collective that is called inside, in order: by hand, by DDP, by FSDP2 or for DTensors.

    Attributes:
        sent: what was sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Sent] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a collective, and call it; called by torch for each operator."""
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.__name__:
            name = func.overloadpacket.__name__
            kind, position = _OPERATORS.get(name, (name, 0))
            whole = args[position]
            tensors = whole if isinstance(whole, (list, tuple)) else [whole]
            numbers = sum(tensor.numel() for tensor in tensors)
            self.sent.append(Sent(kind, numbers, sum(tensor.nbytes for tensor in tensors)))
        return func(*args, **(kwargs or {}))


class Subject(NamedTuple):
    """What is trained, and how: `parallel` as of `ldadam pretrain`; the rank is that of LDAdamW, None for AdamW."""

    shape: LlamaShape
    parallel: str
    rank: int | None
    dtype: str = "float32"


@dataclass(frozen=True)
class Row:
    """The collectives of one kind in one phase of a step: "forward", "backward" or "step"."""

    phase: str
    kind: str
    num_bytes: int
    count: int


def planned(subject: Subject, *, devices: int) -> list[Row]:
    """What `ldadam plan` says that a step sends."""
    found = plan(
        subject.shape.weights(),
        dtype=subject.dtype,
        devices=devices,
        sharding=subject.parallel,
        device="cpu",
        optimizer="adamw" if subject.rank is None else "ldadamw",
        rank=subject.rank,
    )
    return _summed(Row(each.phase, each.kind, each.num_bytes, each.count) for each in found.traffic)


def counted(subject: Subject) -> list[Row]:
    """What the third step of a training run on random tokens sends, on this rank of the default process group."""
    config, launch = PretrainConfig(parallel=subject.parallel), Launch(world_size=dist.get_world_size())
    model = place_model(_build(subject), config, launch, torch.device("cpu"))
    optimizer = _optimizer(model, subject)
    wrapped = wrap_model(model, config, optimizer)
    tokens = torch.arange(NUM_TOKENS)[None]
    phases: dict[str, Recorder] = {}
    for _ in range(NUM_WARMUP + 1):
        phases = {name: Recorder() for name in ("forward", "backward", "step")}
        with phases["forward"]:
            loss = wrapped(input_ids=tokens, labels=tokens).loss
        with phases["backward"]:
            loss.backward()
        with phases["step"]:
            optimizer.step()
        optimizer.zero_grad()
    return _summed(Row(name, each.kind, each.num_bytes, 1) for name, phase in phases.items() for each in phase.sent)


def _build(subject: Subject) -> nn.Module:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(subject.shape.config()).to(getattr(torch, subject.dtype))


def _optimizer(model: nn.Module, subject: Subject) -> torch.optim.Optimizer:
    if subject.rank is None:
        return torch.optim.AdamW(model.parameters())
    return LDAdamW(lowrank_param_groups(model, rank=subject.rank))


def _summed(rows: Iterable[Row]) -> list[Row]:
    """One row for each phase and kind."""
    sums: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        sums[row.phase, row.kind].append((row.num_bytes, row.count))
    return [Row(*key, *(sum(part) for part in zip(*each, strict=True))) for key, each in sums.items()]
