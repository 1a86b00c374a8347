"""What a goal, to classify or to answer, hands to the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
Scores = dict[str, float]


@dataclass(frozen=True)
class Goal:
    """A model and what it is to learn.

    Attributes:
        samples: what is shuffled and put into batches.
        collate: makes a batch of some of them.
        loss: of a model's outputs for a batch of labels, summed and divided by the number of labels of the whole step.
        evaluate: validation loss and scores of a model.
        loss_unit: of the loss, for pictures.
        fingerprint: of the data.
        facts: what the run folder should say of the data.
    """

    model: Any
    tokenizer: Any
    samples: Sequence[Any]
    collate: Callable[[list[Any]], Batch]
    loss: Callable[..., Tensor]
    evaluate: Callable[[Any], tuple[float, Scores]]
    loss_unit: str
    fingerprint: str
    facts: dict[str, Any]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Inside, the model drops nothing out and no gradients are kept; gives its device."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield next(model.parameters()).device
    model.train(was_training)


def batches(samples: Sequence[Any], collate: Callable[[list[Any]], Batch], *, size: int) -> Iterator[Batch]:
    """All samples in their order, the last batch perhaps smaller."""
    for start in range(0, len(samples), size):
        yield collate(list(samples[start : start + size]))
