"""The scores of the tasks, as GLUE and SuperGLUE define them: pure functions of tensors on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """What a model said about n examples, and what is true.

    Attributes:
        outputs: (n, classes) logits, or (n, 1) predicted numbers.
        labels: (n,) classes, or numbers.
        groups: (n,) the question that each example is a choice for.
    """

    outputs: Tensor
    labels: Tensor
    groups: Tensor

    def predictions(self) -> Tensor:
        """(n,) the likeliest class of each example."""
        return self.outputs.argmax(-1)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of equal classes.

    >>> accuracy(torch.tensor([1, 0, 1, 1]), torch.tensor([1, 0, 0, 1]))
    0.75
    """
    return (predictions == labels).double().mean().item()


def f1(predictions: Tensor, labels: Tensor, *, positive: int = 1) -> float:
    """Harmonic mean of precision and recall of one class; 0 where nothing of it was found."""
    found, true = predictions == positive, labels == positive
    hits = (found & true).sum().item()
    return 2 * hits / max(1, found.sum().item() + true.sum().item())


def f1_macro(predictions: Tensor, labels: Tensor) -> float:
    """Mean of the F1 of every class that occurs."""
    classes = torch.cat([predictions, labels]).unique().tolist()
    return sum(f1(predictions, labels, positive=one) for one in classes) / len(classes)


def matthews(predictions: Tensor, labels: Tensor) -> float:
    """Matthews' correlation of classes, two or more: between -1 and 1, and 0 for a constant prediction."""
    classes = torch.cat([predictions, labels]).unique()
    found, true = ((values[:, None] == classes).double() for values in (predictions, labels))  # (n, classes)
    found, true = found - found.mean(0), true - true.mean(0)
    scale = (found.square().sum() * true.square().sum()).sqrt().item()
    return (found * true).sum().item() / scale if scale else 0.0


def pearson(values: Tensor, truth: Tensor) -> float:
    """Linear correlation of two vectors of numbers; 0 where one is constant."""
    values, truth = values.double() - values.double().mean(), truth.double() - truth.double().mean()
    scale = (values.square().sum() * truth.square().sum()).sqrt().item()
    return (values @ truth).item() / scale if scale else 0.0


def ranks(values: Tensor) -> Tensor:
    """The place of each number in the order of all, equal ones sharing the mean of theirs."""
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - (counts - 1) / 2)[which]


def spearman(values: Tensor, truth: Tensor) -> float:
    """Correlation of ranks."""
    return pearson(ranks(values), ranks(truth))


def all_correct(predictions: Tensor, labels: Tensor, groups: Tensor) -> float:
    """Share of groups in which every example is right."""
    _, which = groups.unique(return_inverse=True)
    wrong = torch.zeros(int(which.max()) + 1).index_add_(0, which, (predictions != labels).float())
    return (wrong == 0).double().mean().item()


def best_choice(outputs: Tensor, labels: Tensor, groups: Tensor) -> float:
    """Share of groups in which the example with the largest margin for class 1 is one of class 1."""
    margin = outputs[:, 1] - outputs[:, 0]
    right = []
    for group in groups.unique():
        members = (groups == group).nonzero()[:, 0]
        right.append(bool(labels[members[margin[members].argmax()]] == 1))
    return sum(right) / len(right)


METRICS: dict[str, Callable[[Outcome], float]] = {
    "accuracy": lambda o: accuracy(o.predictions(), o.labels),
    "f1": lambda o: f1(o.predictions(), o.labels),
    "f1_macro": lambda o: f1_macro(o.predictions(), o.labels),
    "matthews": lambda o: matthews(o.predictions(), o.labels),
    "pearson": lambda o: pearson(o.outputs[:, 0], o.labels),
    "spearman": lambda o: spearman(o.outputs[:, 0], o.labels),
    "question_accuracy": lambda o: all_correct(o.predictions(), o.labels, o.groups),
    "choice_accuracy": lambda o: best_choice(o.outputs, o.labels, o.groups),
}


OF_GROUPS = ("question_accuracy", "choice_accuracy")


def scores(outcome: Outcome, names: Sequence[str]) -> dict[str, float]:
    """The scores called `names`."""
    return {name: METRICS[name](outcome) for name in names}
