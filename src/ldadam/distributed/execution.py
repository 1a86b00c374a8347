"""Steps of parameters that ranks share: all of them together, and what has to be agreed on beforehand."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from ldadam import backends
from ldadam.backends.eager import decomposition
from ldadam.backends.partial import Partial, Shards, SharedSteps
from ldadam.backends.update import ParamUpdate
from ldadam.distributed.plan import Sharing, messages, terms, waves
from ldadam.distributed.reduction import Term, combine, run_together
from ldadam.layout import math_dtype


def step_(updates: Sequence[ParamUpdate]) -> None:
    """Move parameters, of all param groups, by one step each: side by side, as many as messages have room for."""
    for wave in waves([_longest_message(update) for update in updates]):
        run_together(_steps([updates[index] for index in wave]))


def _longest_message(update: ParamUpdate) -> int:
    """Bytes that a parameter sends at once, at most: by its whole shape, hence the same on all ranks."""
    shards, layout = update.shards, update.layout
    assert shards is not None and layout is not None
    sharing = Sharing(m=shards.m != (), n=shards.n != (), replicas=shards.replicas != ())
    decomposes, adds_residual = decomposition(update) is not None, update.hyper.scaled_residual
    sent = terms(*shards.shape, layout.rank, sharing, decomposes=decomposes, adds_residual=adds_residual)
    return shards.stack * math_dtype(update.param.dtype).itemsize * max(messages(sent).values(), default=0)


def _steps(updates: Sequence[ParamUpdate]) -> Iterator[SharedSteps]:
    """The steps of each param group in turn: matrices of one group alone are stepped in one chunk."""
    groups: dict[int, list[ParamUpdate]] = {}
    for update in updates:
        groups.setdefault(id(update.hyper), []).append(update)
    for group in groups.values():
        yield from backends.shared_steps(group, backend=group[0].hyper.backend)


def agree_on_skips(updates: Sequence[ParamUpdate], sharing: Sequence[Shards]) -> list[ParamUpdate]:
    """With `skip_nonfinite`, a step is refused on all ranks where the gradient of one is not finite.

    Args:
        updates: of the blocks of this rank.
        sharing: for each, the ranks that have to take its step together; all of them ask, dense or not, in one message.
    """
    asking = [
        (update, shards)
        for update, shards in zip(updates, sharing, strict=True)
        if update.hyper.skip_nonfinite and (shards.m or shards.replicas)
    ]
    flags = [(~torch.isfinite(update.grad).all()).float()[None] for update, _ in asking]
    asked = [
        Term(Partial(flag, "m", "non-finite", op="max", of_gradient=True), shards, [(update.number,)])
        for flag, (update, shards) in zip(flags, asking, strict=True)
    ]
    agreed = {id(update): flag[0] == 0 for (update, _), flag in zip(asking, combine(asked), strict=True)}
    return [replace(update, agreed=agreed.get(id(update))) for update in updates]
