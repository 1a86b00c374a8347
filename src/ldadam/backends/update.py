"""One parameter about to be moved: what every backend, and the dense update, is handed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldadam import rounding
from ldadam.backends.partial import Shards
from ldadam.hyperparameters import Hyperparameters
from ldadam.layout import MatrixLayout, math_dtype


@dataclass(frozen=True)
class ParamUpdate:
    """A parameter, its gradient and state, and which step of its own this is.

    Attributes:
        param: the parameter.
        grad: its gradient, of the same shape; its dtype may differ.
        state: its optimizer state, changed in place.
        step: t, from 1; a 0-d float64 tensor on the parameter's device where the host must not know it.
        hyper: the hyperparameters of its group.
        layout: how it is seen as a matrix; None for dense AdamW.
        is_first: whether the basis is still the random one it was created with.
        shards: which block of its matrix the parameter is, and who holds the others; None for the whole.
        number: the parameter's place among those of all groups of its optimizer.
        first_entry: the number of its first entry in the whole parameter, where it is a block of it.
        name: the parameter's name, for messages.
        agreed: what `accepts` is, where ranks had to agree on it.
    """

    param: Tensor
    grad: Tensor
    state: dict[str, Tensor]
    step: float | Tensor
    hyper: Hyperparameters
    layout: MatrixLayout | None = None
    is_first: bool = False
    shards: Shards | None = None
    number: int = 0
    first_entry: int = 0
    name: str = ""
    agreed: Tensor | None = None

    @property
    def shorter_side(self) -> int:
        """Of the whole matrix."""
        assert self.layout is not None
        return min(self.layout.m, self.layout.n) if self.shards is None else min(self.shards.shape)

    @property
    def moves_subspace(self) -> bool:
        """Whether this step finds a new basis: always, but for an `update_interval` above 1."""
        if self.is_first or self.hyper.update_interval == 1:
            return True
        return int(self.step - 1) % self.hyper.update_interval == 0

    @property
    def rounds_by_chance(self) -> bool:
        """Whether the moved weights are rounded stochastically."""
        return self.hyper.stochastic_rounding and rounding.rounds(self.param.dtype)

    def descent_grad(self) -> Tensor:
        """The gradient to descend, in the dtype of the arithmetic."""
        grad = self.grad.to(math_dtype(self.param.dtype))
        return -grad if self.hyper.maximize else grad

    def accepts(self) -> Tensor | None:
        """Whether to take the step at all, as a 0-d bool tensor; None where nothing is ever skipped."""
        if not self.hyper.skip_nonfinite or self.agreed is not None:
            return self.agreed
        return torch.isfinite(self.grad).all()

    def count_skip_(self, accept: Tensor | None) -> None:
        """Take back the count of a step that `accept` refuses."""
        if accept is not None:
            skipped = (~accept).to(torch.float32)
            self.state["step"].sub_(skipped)
            self.state["num_skipped"].add_(skipped)

    def keep_(self, new: dict[str, Tensor]) -> None:
        """Write new values of state and of "param" in place, or none of them where the step is refused."""
        accept = self.accepts()
        for name, value in new.items():
            old = self.param if name == "param" else self.state[name]
            if name == "param" and self.rounds_by_chance:
                value = rounding.stochastic_round(
                    value, old.dtype, key=rounding.noise_key(self.number, self.step) + self.first_entry
                )
            old.copy_(value if accept is None else torch.where(accept, value, old))
        self.count_skip_(accept)
