"""A model with every kind of parameter, and the loop that trains it, for the tests of `step_in_backward`."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from builders import normal, quiet
from ldadam import LDAdamW


class Everything(nn.Module):
    """A wide and a tall matrix, a convolution, a stack of experts, biases, and an embedding tied to the head."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.tall = nn.Linear(20, 12), nn.Linear(12, 30)
        self.conv = nn.Conv2d(3, 8, 3)
        self.experts = nn.Parameter(torch.randn(3, 10, 8) / 3)
        self.tokens = nn.Embedding(30, 10)
        self.to(dtype)

    def forward(self, inputs: Tensor, *, uses_experts: bool = True) -> Tensor:
        """The loss of inputs (batch, 20)."""
        hidden = torch.tanh(self.tall(torch.tanh(self.wide(inputs))))
        hidden = self.conv(hidden[:, :27].unflatten(1, (3, 3, 3))).flatten(1)
        hidden = (self.experts @ hidden.T).sum(0).T if uses_experts else functional.pad(hidden, (0, 2))
        logits = functional.linear(torch.tanh(hidden + self.tokens.weight[3]), self.tokens.weight)
        return functional.cross_entropy(logits.float(), torch.arange(len(inputs)) % 30)


def build(dtype: torch.dtype = torch.float32, **options) -> tuple[Everything, LDAdamW]:
    model = Everything(dtype)
    groups = [{"params": [model.wide.weight, model.wide.bias]}]
    groups.append({"params": [p for name, p in model.named_parameters() if "wide" not in name], "lr": 0.02})
    return model, quiet(groups, **{"lr": 0.01, "rank": 4, "weight_decay": 0.1, **options})


def backward(model: nn.Module, seed: int, *, num_micro: int = 1, uses_experts: bool = True) -> None:
    """Gradients of one micro-batch; its share of the mean over all."""
    inputs = normal(6, 20, seed=seed, dtype=next(model.parameters()).dtype)
    (model(inputs, uses_experts=uses_experts) / num_micro).backward()


def train(
    model: nn.Module,
    optimizer: LDAdamW,
    steps: Iterable[int],
    *,
    num_micro: int = 1,
    uses_experts: Callable[[int], bool] = lambda micro: True,
    after_step: Callable[[], object] = lambda: None,
) -> None:
    """The ordinary loop, whether or not backward steps."""
    for step in steps:
        for micro in range(num_micro):
            backward(model, 100 * step + micro, num_micro=num_micro, uses_experts=uses_experts(micro))
        optimizer.step()
        optimizer.zero_grad()
        after_step()
