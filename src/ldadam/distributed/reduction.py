"""Steps of many matrices side by side, so that what ranks have to combine at one point travels in one message."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ldadam.backends.partial import Op, Partial, Shards, SharedSteps, resume

_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class Term(NamedTuple):
    """What is asked for at a reduction point of one or more matrices.

    Attributes:
        partial: this rank's part.
        shards: who holds the rest.
        order: of each matrix, where its part belongs in a message: the same order on all ranks.
    """

    partial: Partial
    shards: Shards
    order: list[tuple[int, ...]]


class Pending(NamedTuple):
    """A step that has stopped at a reduction point, and what it asks for there."""

    shared: SharedSteps
    partials: list[Partial]

    @property
    def terms(self) -> list[Term]:
        """What it asks for, in the order of matrices, and of each as it asks."""
        _, shards, places = self.shared
        return [
            Term(partial, shards, [(*place, position) for place in places])
            for position, partial in enumerate(self.partials)
        ]


def run_together(started: Iterable[SharedSteps]) -> None:
    """Run steps from one reduction point to the next, all of them, until each has ended.

    Every rank of a group must step the same matrices; it may hold larger blocks of them, and batch them otherwise.
    """
    pending = [Pending(each, partials) for each in started if (partials := resume(each.steps, None)) is not None]
    while pending:
        values = iter(combine([term for one in pending for term in one.terms]))
        resumed = [(one, resume(one.shared.steps, [next(values) for _ in one.partials])) for one in pending]
        pending = [one._replace(partials=partials) for one, partials in resumed if partials is not None]


def combine(asked: Sequence[Term]) -> list[Tensor]:
    """The whole tensor of each partial one: one message for each group of ranks, kind of reduction and dtype."""
    whole = [term.partial.value.contiguous() for term in asked]
    messages: dict[tuple[Any, ...], list[_Part]] = {}
    for (partial, shards, order), value in zip(asked, whole, strict=True):
        if groups := _groups(partial, shards):
            parts = messages.setdefault((groups, partial.op, value.dtype, value.device), [])
            parts += [_Part(*each, partial.name) for each in zip(order, value.unbind(), strict=True)]
    for parts in messages.values():
        parts.sort(key=lambda part: part.order)
    for (groups, op, *_), parts in sorted(messages.items(), key=lambda message: message[1][0].order):
        _send_(parts, groups, op=op)
    return whole


class _Part(NamedTuple):
    """What one matrix has in a message."""

    order: tuple[int, ...]
    value: Tensor
    name: str


def _send_(parts: Sequence[_Part], groups: tuple[tuple[Any, bool], ...], *, op: Op) -> None:
    """One message of all parts, over the groups one after the other, into their own storage."""
    values = [part.value for part in parts]
    flat = torch.cat([value.reshape(-1) for value in values])
    for group, is_mean in groups:
        all_reduce_(flat, group, op=_OPS[op], what=f"reduce {', '.join(dict.fromkeys(part.name for part in parts))}")
        if is_mean:
            flat.div_(dist.get_world_size(group))
    reduced = flat.split([value.numel() for value in values])
    reduced = [one.view(value.shape) for one, value in zip(reduced, values, strict=True)]
    torch._foreach_copy_(values, reduced)  # pyright: ignore[reportPrivateImportUsage]


def _groups(partial: Partial, shards: Shards) -> tuple[tuple[Any, bool], ...]:
    """The groups to reduce over, one after the other, and whether the result is their mean."""
    along = shards.m if partial.side == "m" else shards.n
    replicas = shards.replicas if partial.of_gradient else ()
    return (*((group, False) for group in along), *((group, True) for group in replicas))


def all_reduce_(tensor: Tensor, group: Any, *, op: Any, what: str) -> None:
    """Reduce a tensor in place over the ranks of a group.

    Raises:
        RuntimeError: another rank does not take part; says what it should have taken part in.
    """
    try:
        dist.all_reduce(tensor, op=op, group=group)
    except RuntimeError as error:
        raise RuntimeError(
            f"LDAdamW could not {what} over the {dist.get_world_size(group)} ranks of its group: a rank has stopped, "
            "or takes other steps than this one. Start again from the last checkpoint."
        ) from error
