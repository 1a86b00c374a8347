"""Steps of parameters that ranks share: what has to be agreed on beforehand, then all of them together."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from ldadam import backends
from ldadam.backends.eager import decomposition
from ldadam.backends.partial import Partial, SharedSteps
from ldadam.backends.update import ParamUpdate
from ldadam.distributed.plan import Sharing, messages, terms, waves
from ldadam.distributed.reduction import Term, combine, run_together
from ldadam.layout import math_dtype


def step_(updates: Sequence[ParamUpdate]) -> None:
    """Move parameters, of all param groups, by one step each: side by side, as many as messages have room for."""
    updates = _agree_on_skips(updates)
    for wave in waves([_longest_message(update) for update in updates]):
        run_together(_steps([updates[index] for index in wave]))


def _longest_message(update: ParamUpdate) -> int:
    """Bytes that a parameter sends at once, at most: by its whole shape, hence the same on all ranks."""
    shards, layout = update.shards, update.layout
    assert shards is not None and layout is not None
    sharing = Sharing(m=shards.m != (), n=shards.n != (), replicas=shards.replicas != ())
    sent = terms(*shards.shape, layout.rank, sharing, decomposes=decomposition(update) is not None)
    return shards.stack * math_dtype(update.param.dtype).itemsize * max(messages(sent).values(), default=0)


def _steps(updates: Sequence[ParamUpdate]) -> Iterator[SharedSteps]:
    """The steps of each param group in turn: matrices of one group alone are stepped in one chunk."""
    groups: dict[int, list[ParamUpdate]] = {}
    for update in updates:
        groups.setdefault(id(update.hyper), []).append(update)
    for group in groups.values():
        yield from backends.shared_steps(group, backend=group[0].hyper.backend)


def _agree_on_skips(updates: Sequence[ParamUpdate]) -> list[ParamUpdate]:
    """With `skip_nonfinite`, a step is refused on all ranks where the gradient of one is not finite."""
    asking = [update for update in updates if update.hyper.skip_nonfinite]
    if not asking:
        return list(updates)
    bad = [(~torch.isfinite(update.grad).all()).float()[None] for update in asking]
    shards = [update.shards for update in asking if update.shards is not None]
    order = [[(update.number,)] for update in asking]
    for side in ("m", "n"):
        partials = [Partial(flag, side, "non-finite", op="max", of_gradient=side == "m") for flag in bad]
        bad = combine([Term(*each) for each in zip(partials, shards, order, strict=True)])
    agreed = {id(update): flag[0] == 0 for update, flag in zip(asking, bad, strict=True)}
    return [replace(update, agreed=agreed.get(id(update))) for update in updates]
