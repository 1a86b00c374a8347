"""Parameters as 2-D matrices, grouped so that equal ones are stepped together."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ldadam import rounding
from ldadam.backends.eager import decomposition
from ldadam.backends.partial import Shards
from ldadam.backends.update import ParamUpdate
from ldadam.error_buffer import KEYS
from ldadam.hyperparameters import Hyperparameters
from ldadam.layout import math_dtype
from ldadam.quantization import Quantized


class Matrix(NamedTuple):
    """Views of one matrix of a parameter, the projected side first."""

    param: Tensor  # W   (m, n)
    grad: Tensor  # G   (m, n)
    error: Tensor | None  # E   (m, n), None where it is kept in codes, or without error feedback
    basis: Tensor  # U_minus   (m, r)
    exp_avg: Tensor  # (r, n)
    exp_avg_sq: Tensor  # (r, n)
    accept: Tensor | None  # 0-d bool, None where no step is ever refused
    quantized: Quantized | None  # E in codes, of the parameter's own rows
    transposed: bool  # whether the parameter's own rows are columns here
    number: int  # of its parameter
    first_entry: int  # of the matrix, among those of its whole parameter

    @property
    def has_error(self) -> bool:
        """Whether there is error feedback."""
        return self.stored_error is not None

    @property
    def stored_error(self) -> Tensor | None:
        """What holds E: floats or codes."""
        return self.error if self.quantized is None else self.quantized.codes

    def own_rows(self, matrix: Tensor) -> Tensor:
        """A (m, n) tensor as the parameter has it; its own inverse."""
        return matrix.mT if self.transposed else matrix


class Kind(NamedTuple):
    """What matrices must have in common to be stepped together."""

    m: int
    n: int
    rank: int
    dtypes: tuple[torch.dtype, ...]
    strides: tuple[tuple[int, ...], ...]
    device: torch.device
    step: float | None  # None where the device keeps it
    is_first: bool
    moves_subspace: bool
    shards: Shards | None
    decomposition: Callable[[Tensor, Tensor], Tensor] | None
    rounds_by_chance: bool


@dataclass(frozen=True)
class Chunk:
    """Matrices of one kind, with their small state stacked."""

    matrices: list[Matrix]
    kind: Kind
    hyper: Hyperparameters
    step: float | Tensor  # (B, 1, 1) float64 where the device keeps it

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return math_dtype(self.matrices[0].param.dtype)

    @cached_property
    def accept(self) -> Tensor | None:
        """(B, 1, 1) bools, or None where no step is ever refused."""
        if self.matrices[0].accept is None:
            return None
        return torch.stack([matrix.accept for matrix in self.matrices if matrix.accept is not None])[:, None, None]

    def noise_key(self, index: int) -> int | Tensor:
        """Where the noise of one matrix's weights begins."""
        matrix = self.matrices[index]
        step = self.step[index].reshape(()) if isinstance(self.step, Tensor) else self.step
        return rounding.noise_key(matrix.number, step) + matrix.first_entry

    def stack(self, name: str) -> Tensor:
        """One field of all matrices, copied into a (B, ...) tensor."""
        return torch.stack([getattr(matrix, name) for matrix in self.matrices])

    def unstack_(self, name: str, values: Tensor) -> None:
        """Copy a (B, ...) tensor back into one field of all matrices; refused steps keep their old values."""
        old = [getattr(matrix, name) for matrix in self.matrices]
        if (accept := self.accept) is not None:
            values = torch.where(accept, values, torch.stack(old))
        torch._foreach_copy_(old, list(values.unbind()))  # pyright: ignore[reportPrivateImportUsage]


def chunks(updates: Sequence[ParamUpdate], *, max_scratch: int) -> Iterator[Chunk]:
    """The matrices of all updates of a group in chunks of one kind each, of about `max_scratch` bytes of scratch."""
    by_kind: dict[Kind, list[tuple[Matrix, ParamUpdate]]] = {}
    for update in updates:
        for matrix, kind in _matrices(update):
            by_kind.setdefault(kind, []).append((matrix, update))
    for kind, members in by_kind.items():
        size = max(1, max_scratch // max(1, scratch_bytes(kind)))
        for start in range(0, len(members), size):
            part = members[start : start + size]
            step = common_step([update for _, update in part])
            yield Chunk([matrix for matrix, _ in part], kind, part[0][1].hyper, step)


def scratch_bytes(kind: Kind) -> int:
    """Bytes of scratch for one matrix: about six (r, n) and six (m, r) float32 tensors."""
    return 24 * kind.rank * (kind.m + kind.n)


def common_step(updates: Sequence[ParamUpdate]) -> float | Tensor:
    """The step that all updates share, or (B, 1, 1) steps where the device keeps them."""
    steps = [update.step for update in updates]
    if isinstance(steps[0], Tensor):
        return torch.stack([step for step in steps if isinstance(step, Tensor)])[:, None, None]
    return steps[0]


def _matrices(update: ParamUpdate) -> Iterable[tuple[Matrix, Kind]]:
    """The matrices of one parameter: itself, or each of a stack."""
    layout, state = update.layout, update.state
    assert layout is not None
    accept = update.accepts()
    update.count_skip_(accept)
    quantized = Quantized(*(state[key] for key in KEYS)) if "error_scale" in state else None
    error = layout.to_matrix(state["error_buffer"]) if "error_buffer" in state and quantized is None else None
    param, grad = layout.to_matrix(update.param), layout.to_matrix(update.grad)
    parts = range(layout.batch[0]) if layout.batch else [...]
    for index, part in enumerate(parts):
        matrix = Matrix(
            param[part],
            grad[part],
            None if error is None else error[part],
            state["basis"][part],
            state["exp_avg"][part],
            state["exp_avg_sq"][part],
            accept,
            None if quantized is None else Quantized(*(tensor[part] for tensor in quantized)),
            layout.transposed,
            update.number,
            update.first_entry + index * layout.m * layout.n,
        )
        yield matrix, _kind(matrix, update, layout.rank)


def _kind(matrix: Matrix, update: ParamUpdate, rank: int) -> Kind:
    big = [tensor for tensor in (matrix.param, matrix.grad, matrix.stored_error) if tensor is not None]
    m, n = matrix.param.shape
    return Kind(
        m=m,
        n=n,
        rank=rank,
        dtypes=tuple(tensor.dtype for tensor in big),
        strides=tuple(tensor.stride() for tensor in big),
        device=matrix.param.device,
        step=None if isinstance(update.step, Tensor) else update.step,
        is_first=update.is_first,
        moves_subspace=update.moves_subspace,
        shards=update.shards,
        decomposition=decomposition(update),
        rounds_by_chance=update.rounds_by_chance,
    )
