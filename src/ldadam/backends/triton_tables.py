"""What Triton kernels read for each of B matrices or vectors: tables of addresses, of noise, and of scalars."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ldadam import rounding
from ldadam.hyperparameters import Hyperparameters


class Scalars:
    """What the kernels read for each of B matrices or vectors, as tensors on their device."""

    def __init__(self, count: int, device: torch.device, hyper: Hyperparameters, accept: Tensor | None):
        self.count, self.device, self.hyper, self.accept = count, device, hyper, accept
        self.masked = accept is not None

    @property
    def accepts(self) -> Tensor:
        """(B,) 1 where the step is taken, 0 where refused; without meaning where nothing is refused."""
        return (
            torch.empty(0, dtype=torch.int8, device=self.device) if self.accept is None else self.accept.to(torch.int8)
        )

    @property
    def scale(self) -> Tensor:
        """(1,): lr."""
        lr = self.hyper.lr
        if isinstance(lr, Tensor):
            return lr.to(self.device, torch.float32).reshape(1)
        return torch.full((1,), lr, dtype=torch.float32, device=self.device)

    @property
    def decays(self) -> Tensor:
        """(B,): 1 - lr wd, and 1 where the step is refused."""
        decays = (1 - self.scale * self.hyper.weight_decay).expand(self.count)
        return decays.contiguous() if self.accept is None else torch.where(self.accept.reshape(-1), decays, 1)

    def biases(self, step: float | Tensor) -> Tensor:
        """(B, 4): 1 - beta1^(t-1), 1 - beta2^(t-1), 1 - beta1^t, 1 - beta2^t."""
        beta1, beta2 = self.hyper.betas
        if isinstance(step, Tensor):
            counts = step[:, 0]
            powers = [beta1 ** (counts - 1), beta2 ** (counts - 1), beta1**counts, beta2**counts]
            return (1 - torch.cat(powers, dim=-1)).float()
        biases = [1 - beta1 ** (step - 1), 1 - beta2 ** (step - 1), 1 - beta1**step, 1 - beta2**step]
        return torch.tensor([biases] * self.count, dtype=torch.float32).to(self.device, non_blocking=True)


# Tables that a CUDA graph reads at each replay, and that the cache below must therefore not be the last to hold.
_CAPTURED: list[Tensor] = []


def addresses_of(tensors: Sequence[Tensor]) -> Tensor:
    """The addresses of tensors on one device, as an int64 tensor there."""
    return _table([tensor.data_ptr() for tensor in tensors], tensors[0])


def noise_keys(
    numbers: Sequence[int], first_entries: Sequence[int], step: float | Tensor, device: torch.device
) -> Tensor:
    """(B,) int64: where the noise begins of parameters by number, or of a matrix of them by its first entry."""
    if isinstance(step, Tensor):
        return rounding.noise_key(_table(numbers, step), step.reshape(-1)) + _table(first_entries, step)
    keys = [rounding.noise_key(number, step) + entry for number, entry in zip(numbers, first_entries, strict=True)]
    return torch.tensor(keys, dtype=torch.int64).to(device, non_blocking=True)


def _table(values: Sequence[int], like: Tensor) -> Tensor:
    """An int64 tensor on the device of `like`; on meta where that is a meta tensor, whatever device it stands for."""
    table = _cached_table(tuple(values), like.device, like.is_meta)
    if not table.is_meta and table.is_cuda and torch.cuda.is_current_stream_capturing():
        _CAPTURED.append(table)
    return table


@lru_cache(maxsize=4096)
def _cached_table(values: tuple[int, ...], device: torch.device, is_meta: bool) -> Tensor:
    """A table is a function of its arguments alone, so that what is cached is right for ever."""
    table = torch.tensor(values, dtype=torch.int64)
    return table.to("meta" if is_meta else device, non_blocking=True)
