"""The loop that trainers are compared with, written out, and what came of two trainings."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tiny_llama import model as tiny_model
from tiny_llama import rows
from torch import Tensor, nn

from ldadam import LDAdamW, lowrank_param_groups, step_in_backward

LR, BATCH_SIZE = 1e-2, 4


def batches(batch_size: int = BATCH_SIZE) -> Iterator[dict[str, Tensor]]:
    """The rows in order, again and again."""
    examples = rows()
    for start in itertools.cycle(range(0, len(examples), batch_size)):
        chosen = examples[start : start + batch_size]
        yield {key: torch.stack([row[key] for row in chosen]) for key in chosen[0]}


def train_by_hand(
    num_steps: int,
    *,
    accumulation: int = 1,
    clip: float | None = None,
    bf16: bool = False,
    in_backward: bool = False,
    **options: Any,
) -> nn.Module:
    """The tiny model after steps of LDAdamW, each on the sum over its micro-batches divided by its tokens."""
    model, stream = tiny_model(), batches()
    groups = lowrank_param_groups(model, rank=8, weight_decay=options.pop("weight_decay", 0.0))
    optimizer = LDAdamW(groups, lr=LR, rank=8, **options)
    if in_backward:
        step_in_backward(optimizer, accumulation_steps=accumulation)
    for _ in range(num_steps):
        micro_batches = [next(stream) for _ in range(accumulation)]
        num_tokens = sum(batch["labels"][:, 1:].numel() for batch in micro_batches)  # the first is not predicted
        for batch in micro_batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**batch, num_items_in_batch=torch.tensor(num_tokens)).loss
            loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        model.zero_grad()
    return model


def are_equal(models: Sequence[nn.Module]) -> bool:
    """Whether two models have the same bits in each parameter."""
    left, right = (dict(model.named_parameters()) for model in models)
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)
