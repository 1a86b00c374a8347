"""Whether ranks that share parameters are about to take the same step of them, asked before anything moves."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ldadam.backends.update import ParamUpdate
from ldadam.distributed.blocks import has_own_matrices, mesh_groups
from ldadam.distributed.reduction import all_reduce_
from ldadam.hyperparameters import NAMES

# One parameter: what all ranks must have in common to take its step, by name.
Entry: TypeAlias = dict[str, Any]

Groups: TypeAlias = tuple[dist.ProcessGroup, ...]

NUM_RANKS_NAMED = 4


# Counters of steps, one for each state whose first step in this process was compared.
_COMPARED = WeakTensorKeyDictionary()


def refuse_different_steps(updates: Sequence[ParamUpdate], replicas: Mapping[Tensor, Groups]) -> None:
    """Compare the step of parameters between the ranks that share them: once, and again where state was loaded.

    Args:
        updates: of whole parameters of all param groups, before anything has moved or was counted.
        replicas: for a parameter, groups of ranks whose gradients of it differ.

    Raises:
        RuntimeError: on all ranks, where they are about to take different steps.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    by_groups: dict[Groups, list[ParamUpdate]] = {}
    for update in updates:
        if update.state["step"] in _COMPARED:
            continue
        if groups := _groups(update.param, replicas.get(update.param, ())):
            by_groups.setdefault(groups, []).append(update)
    for groups in sorted(by_groups, key=_in_common):
        _compare(by_groups[groups], groups)
        # At a learning rate of zero this may be no step but a request for state: the first step is yet to come.
        _COMPARED.update({one.state["step"]: True for one in by_groups[groups] if not one.hyper.has_zero_lr})


def _in_common(groups: Groups) -> tuple[int, list[list[int]]]:
    """Sorts comparisons as all ranks do, even where they have their parameters in another order.

    First by how many groups there are: those of a stack's replicas are also the last of other parameters' groups, and
    would come before them on some ranks and after them on others.
    """
    return len(groups), [dist.get_process_group_ranks(group) for group in groups]


def _groups(param: Tensor, replicas: Groups) -> Groups:
    """The ranks that have to step a parameter together."""
    return replicas if has_own_matrices(param) else (*mesh_groups(param), *replicas)


def _compare(updates: Sequence[ParamUpdate], groups: Groups) -> None:
    """Compare a hash of the step; only where it differs do ranks tell each other more.

    The groups are the axes of a mesh, and reduced over one after the other: all its ranks get the same answer.
    """
    entries = [_entry(update) for update in updates]
    number = int.from_bytes(hashlib.sha256(repr(entries).encode()).digest()[:7], "big")
    extremes = torch.tensor([number, -number], device=updates[0].grad.device)
    for group in groups:
        all_reduce_(extremes, group, op=dist.ReduceOp.MAX, what="compare what ranks are about to do")
    largest, negated_smallest = extremes.tolist()
    if largest != -negated_smallest:
        raise RuntimeError(
            f"ranks are about to take different steps of LDAdamW: {_difference(_gather(entries, groups))}. Build the "
            "same model and the same param groups on every rank, in the same order and with the same options; resume "
            "all ranks from the same checkpoint; and give the same parameters a gradient"
        )


def _entry(update: ParamUpdate) -> Entry:
    """What decides the step of a parameter, and what ranks send each other in it; not the device."""
    layout, options = update.layout, {name: getattr(update.hyper, name) for name in NAMES}
    return {
        "name": update.name,
        "shape": tuple(update.param.shape),
        "dtype": str(update.param.dtype),
        "sharding": str(getattr(update.param, "placements", None)),
        "step": float(update.state["step"]),
        **{name: value.item() if isinstance(value, Tensor) else value for name, value in options.items()},
        "rank": layout and layout.rank,
        "side": layout and layout.side,
    }


def _gather(entries: list[Entry], groups: Groups) -> Mapping[int, list[Entry]]:
    """The entries of all ranks of the mesh."""
    found = {dist.get_rank(): entries}
    for group in groups:
        parts: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, found, group=group)
        found = {rank: each for part in parts for rank, each in part.items()}
    return dict(sorted(found.items()))


def _difference(of_ranks: Mapping[int, list[Entry]]) -> str:
    """The first parameter that is not the same on all ranks, and what each has there."""
    rows = enumerate(zip_longest(*of_ranks.values(), fillvalue=None))
    position, row = next((position, row) for position, row in rows if any(each != row[0] for each in row))
    ranks_by_text: dict[str, list[int]] = {}
    for rank, text in zip(of_ranks, _texts(row), strict=True):
        ranks_by_text.setdefault(text, []).append(rank)
    told = "; ".join(f"{_some(ranks)}: {text}" for text, ranks in ranks_by_text.items())
    return f"the parameters that have a gradient differ at place {position} ({told})"


def _texts(row: Sequence[Entry | None]) -> Iterator[str]:
    """The name of each rank's parameter, and what is not the same for all of them."""
    present = [entry for entry in row if entry is not None]
    differing = [key for key in present[0] if any(entry[key] != present[0][key] for entry in present)]
    if "name" in differing:
        differing = ["shape"]
    for entry in row:
        yield "none" if entry is None else ", ".join([entry["name"], *(f"{key}={entry[key]!r}" for key in differing)])


def _some(ranks: Sequence[int]) -> str:
    """A few of them, however many there are."""
    more = f" and {len(ranks) - NUM_RANKS_NAMED} more" if len(ranks) > NUM_RANKS_NAMED else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:NUM_RANKS_NAMED]))}{more}"
