"""Steps of parameters that ranks share: what has to be agreed on beforehand, then all of them together."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from ldadam import backends
from ldadam.backends.partial import Partial, Shards, Steps
from ldadam.backends.update import ParamUpdate
from ldadam.distributed.reduction import combine, run_together


def step_(updates: Sequence[ParamUpdate]) -> None:
    """Move parameters, of all param groups, by one step each."""
    run_together(_steps(_agree_on_skips(updates)))


def _steps(updates: Sequence[ParamUpdate]) -> Iterator[tuple[Steps, Shards]]:
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
    bad = [(~torch.isfinite(update.grad).all()).float() for update in asking]
    shards = [update.shards for update in asking if update.shards is not None]
    for side in ("m", "n"):
        partials = [Partial(flag, side, "non-finite", op="max", of_gradient=side == "m") for flag in bad]
        bad = combine(list(zip(partials, shards, strict=True)))
    agreed = {id(update): flag == 0 for update, flag in zip(asking, bad, strict=True)}
    return [replace(update, agreed=agreed.get(id(update))) for update in updates]
