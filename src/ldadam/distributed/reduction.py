"""Steps of many matrices side by side, so that what ranks have to combine at one point travels in one message."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ldadam.backends.partial import Op, Partial, Shards, Steps, resume

_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class Pending(NamedTuple):
    """A step that has stopped at a reduction point, what it asks for there, and who holds the rest."""

    steps: Steps
    partials: list[Partial]
    shards: Shards


def run_together(started: Iterable[tuple[Steps, Shards]]) -> None:
    """Run steps from one reduction point to the next, all of them, until each has ended.

    Every rank of a group must run the same steps in the same order; the size of a local block may differ.
    """
    pending = [
        Pending(steps, partials, shards) for steps, shards in started if (partials := resume(steps, None)) is not None
    ]
    while pending:
        values = iter(combine([(partial, one.shards) for one in pending for partial in one.partials]))
        resumed = [(one, resume(one.steps, [next(values) for _ in one.partials])) for one in pending]
        pending = [one._replace(partials=partials) for one, partials in resumed if partials is not None]


def combine(asked: Sequence[tuple[Partial, Shards]]) -> list[Tensor]:
    """The whole tensor of each partial one: one message for each group of ranks, kind of reduction and dtype."""
    messages: dict[tuple[Any, ...], list[int]] = {}
    for index, (partial, shards) in enumerate(asked):
        if groups := _groups(partial, shards):
            messages.setdefault((groups, partial.op, partial.value.dtype, partial.value.device), []).append(index)
    whole = [partial.value for partial, _ in asked]
    for (groups, op, *_), members in messages.items():
        names = list(dict.fromkeys(asked[index][0].name for index in members))
        flat = torch.cat([whole[index].reshape(-1) for index in members])
        for group, is_mean in groups:
            all_reduce_(flat, group, op=op, names=names)
            if is_mean:
                flat.div_(dist.get_world_size(group))
        for index, part in zip(members, flat.split([whole[index].numel() for index in members]), strict=True):
            whole[index] = part.view(whole[index].shape)
    return whole


def _groups(partial: Partial, shards: Shards) -> tuple[tuple[Any, bool], ...]:
    """The groups to reduce over, one after the other, and whether the result is their mean."""
    along = shards.m if partial.side == "m" else shards.n
    replicas = shards.replicas if partial.of_gradient else ()
    return (*((group, False) for group in along), *((group, True) for group in replicas))


def all_reduce_(flat: Tensor, group: Any, *, op: Op, names: Sequence[str]) -> None:
    """Reduce a message in place over the ranks of a group.

    Raises:
        RuntimeError: the others do not answer; `names` says what was to be reduced.
    """
    try:
        dist.all_reduce(flat, op=_OPS[op], group=group)
    except RuntimeError as error:
        raise RuntimeError(
            f"LDAdamW could not reduce {', '.join(names)} over the {dist.get_world_size(group)} ranks of its group: a "
            "rank has stopped, or takes other steps than this one. Start again from the last checkpoint."
        ) from error
