"""The loop that trainers are compared with, written out, and what came of two trainings."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from tiny_llama import model as tiny_model
from tiny_llama import rows
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from builders import distance
from ldadam import LDAdamW, lowrank_param_groups, step_in_backward

LR, BATCH_SIZE = 1e-2, 4


def batches(batch_size: int = BATCH_SIZE) -> Iterator[dict[str, Tensor]]:
    """The rows in order, again and again."""
    examples = rows()
    for start in itertools.cycle(range(0, len(examples), batch_size)):
        chosen = examples[start : start + batch_size]
        yield {key: torch.stack([row[key] for row in chosen]) for key in chosen[0]}


def mean_loss(model: nn.Module, batch: dict[str, Tensor], micro_batches: Sequence[dict[str, Tensor]]) -> Tensor:
    """The loss of a micro-batch, divided by how many make a step."""
    return model(**batch).loss / len(micro_batches)


def token_loss(model: nn.Module, batch: dict[str, Tensor], micro_batches: Sequence[dict[str, Tensor]]) -> Tensor:
    """The sum over tokens, divided by those of the whole step; the first of a row is not predicted."""
    num_tokens = sum(each["labels"][:, 1:].numel() for each in micro_batches)
    return model(**batch, num_items_in_batch=torch.tensor(num_tokens)).loss


def grad_scaler(autocast: torch.dtype | None = torch.float16) -> GradScaler:
    """Its scale is so large that the first step is skipped; without float16 it does nothing."""
    return GradScaler("cpu", init_scale=2.0**18, enabled=autocast == torch.float16)


def scale_on_cpu(accelerator: Accelerator) -> None:
    """Have float16 with a scaler on a CPU, which Accelerate does on accelerators only."""
    accelerator.scaler, accelerator.native_amp = grad_scaler(), True


def train_by_hand(
    num_steps: int, *, model: nn.Module | None = None, loss_of: Callable[..., Tensor] = mean_loss, **settings: Any
) -> nn.Module:
    """A model, by default the tiny one, after steps of LDAdamW on the rows; settings as in `steps_by_hand`."""
    return steps_by_hand(num_steps, model or tiny_model(), batches(), loss_of, **settings)


def steps_by_hand(
    num_steps: int,
    model: nn.Module,
    stream: Iterator[dict[str, Tensor]],
    loss_of: Callable[..., Tensor],
    *,
    accumulation: int = 1,
    clip: float | None = None,
    autocast: torch.dtype | None = None,
    in_backward: bool = False,
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
    waits_for_scaler: bool = True,
    weight_decay: float = 0.0,
    **options: Any,
) -> nn.Module:
    """The model after steps of LDAdamW; float16 comes with a scaler.

    The schedule stays where it is at a step that the scaler skips, unless `waits_for_scaler` is False.
    """
    optimizer = LDAdamW(lowrank_param_groups(model, rank=8, weight_decay=weight_decay), lr=LR, **options)
    scheduler, scaler = schedule(optimizer) if schedule else None, grad_scaler(autocast)
    if in_backward:
        step_in_backward(optimizer, accumulation_steps=accumulation)
    for _ in range(num_steps):
        micro_batches = [next(stream) for _ in range(accumulation)]
        for batch in micro_batches:
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                loss = loss_of(model, batch, micro_batches)
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        if scheduler is not None and (scaler.get_scale() == scale or not waits_for_scaler):
            scheduler.step()
        model.zero_grad()
    return model


def warmup(optimizer: Optimizer) -> LRScheduler:
    """Linear over five steps."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))


def are_equal(models: Sequence[nn.Module]) -> bool:
    """Whether two models have the same bits in each parameter."""
    left, right = (dict(model.named_parameters()) for model in models)
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def largest_distance(trained: nn.Module, expected: nn.Module, start: nn.Module | None = None) -> float:
    """Between two trainings of a model, by default the tiny one, relative to what the second has learnt."""
    begin, left, right = (dict(model.named_parameters()) for model in (start or tiny_model(), trained, expected))
    return max(distance(left[name] - begin[name], right[name] - begin[name]) for name in begin)
