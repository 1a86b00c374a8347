"""A few real training steps of a Llama with random weights on random tokens, and the memory that they take."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldadam import LDAdamW, lowrank_param_groups, step_in_backward
from ldadam.bench.cost import state_bytes
from ldadam.bench.subjects import LR, Stepper, find_entry
from ldadam.live_bytes import LiveBytes
from ldadam.peers import split
from ldadam.planner.models import LLAMAS, LlamaShape


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    Attributes:
        model: the name of a Llama.
        optimizer: as `ldadam plan` names it.
        rank: of low-rank optimizers, else None.
        error_dtype: of LDAdamW, else None.
        step_in_backward: of LDAdamW.
    """

    model: str
    optimizer: str
    rank: int | None
    error_dtype: str | None
    step_in_backward: bool


@dataclass(frozen=True)
class Setting:
    """What is the same for all cases; `device` and `dtype` by name."""

    device: str
    dtype: str
    batch: int
    seq: int
    checkpointing: bool
    steps: int


def train(case: Case, setting: Setting) -> dict[str, Any]:
    """Loss of each step, bytes at the peak of all steps, and bytes of the optimizer's state.

    Gradients stay from step to step where they can, as accumulation keeps them: that is what is planned. The peak is
    that of CUDA's allocator; on the CPU, of live tensors. `reserved_bytes`, on CUDA alone, has the allocator's gaps.
    """
    with _peak(setting.device) as (begin, peaks):
        model = _random_llama(LLAMAS[case.model], setting)
        stepper = _build(case, model)
        tokens = torch.randint(LLAMAS[case.model].vocab, (setting.batch, setting.seq), device=setting.device)
        begin()
        losses = [_step(model, stepper, tokens) for _ in range(setting.steps)]
        return {"losses": losses, **peaks(), "state_bytes": state_bytes(stepper)}


@contextlib.contextmanager
def _peak(device: str) -> Iterator[tuple[Callable[[], None], Callable[[], dict[str, int]]]]:
    """Inside: what to call where the peak begins to count, and what then says how high it was."""
    if device == "cuda":
        yield (
            torch.cuda.reset_peak_memory_stats,
            lambda: {
                "peak_bytes": torch.cuda.max_memory_allocated(),
                "reserved_bytes": torch.cuda.max_memory_reserved(),
            },
        )
        return
    with LiveBytes() as live:
        yield live.reset_peak, lambda: {"peak_bytes": live.peak}


def _random_llama(llama: LlamaShape, setting: Setting) -> Any:
    """Made on its device and in its dtype, so that there is never a larger copy."""
    from transformers import LlamaForCausalLM

    config = llama.config(max_position_embeddings=setting.seq)
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, setting.dtype))
    with torch.device(setting.device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if setting.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def _build(case: Case, model: torch.nn.Module) -> Stepper:
    groups = lowrank_param_groups(model, rank=case.rank or 1)
    if case.optimizer == "ldadamw":
        optimizer = LDAdamW(groups, lr=LR, error_dtype=case.error_dtype)
        if case.step_in_backward:
            step_in_backward(optimizer)
        return optimizer
    entry = find_entry(case.optimizer)
    try:
        return entry.build(split(groups), case.rank or 1)
    except ImportError as error:
        raise ImportError(f"pip install {entry.install} ({error})") from error


def _step(model: Any, stepper: Stepper, tokens: Tensor) -> float:
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    stepper.step()
    model.zero_grad(set_to_none=False)
    return loss.item()
