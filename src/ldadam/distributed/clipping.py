"""Clipping by the norm of all gradients, where ranks hold parts of them or have gradients of their own."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from ldadam.backends.partial import Partial, Shards
from ldadam.distributed.blocks import block_of, dividing_groups, is_sharded, refuse_other_optimizers
from ldadam.distributed.compressed import average_gradients_
from ldadam.distributed.reduction import Term, combine
from ldadam.layout import MatrixLayout, math_dtype

if TYPE_CHECKING:
    from ldadam.optimizer import LDAdamW


@torch.no_grad()
def clip_grad_norm_(optimizer: "LDAdamW", max_norm: float) -> Tensor:
    """Scale all gradients, by one factor on all ranks, so that what ranks know of their norm is at most `max_norm`.

    The norm is that of gradients of dense parameters and, for low-rank ones, of U_minus'G: what the subspace sees of
    them before it moves. Under `compress_gradients` G is the mean of all ranks' gradients. None of them has it, so that
    its own norm cannot be had without sending it; U_minus'G takes r n numbers of an m x n matrix at rank r, all in one
    message. It is at most the norm of G, so that the same `max_norm` clips less. Before the first step there is no
    subspace: the root mean square of the ranks' norms stands in, an upper bound.

    `torch.nn.utils.clip_grad_norm_` would scale each rank's gradients by another factor under `compress_gradients`, and
    the ranks' weights would part. Call this one on every rank, between the last backward and `optimizer.step()`; not
    with `step_in_backward`, which leaves no gradients to clip. It also takes what torch's does not: DTensors on several
    meshes, or beside plain tensors.

    Args:
        optimizer: whose parameters' gradients are scaled, in place.
        max_norm: the largest norm, in units of the gradient; `math.inf` only measures.

    Returns:
        The norm before clipping, a 0-d tensor, the same on all ranks.

    Raises:
        TypeError: not an `LDAdamW`.
        ValueError: `max_norm` is not above zero.

    Example:
        >>> import torch
        >>> from ldadam import LDAdamW
        >>> from ldadam.distributed import clip_grad_norm_
        >>> model = torch.nn.Linear(64, 32)
        >>> optimizer = LDAdamW(model.named_parameters(), lr=1e-3, rank=8)
        >>> model(torch.ones(4, 64)).sum().backward()
        >>> norm = clip_grad_norm_(optimizer, 1.0)  # of 4 in each of 64 x 32 weights and 32 biases
        >>> round(norm.item(), 3), round(model.bias.grad.norm().item(), 3)
        (182.428, 0.124)
    """
    refuse_other_optimizers(optimizer, caller="clip_grad_norm_")
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm!r}")
    layouts = {param: layout for param, layout in optimizer.layouts().items() if param.grad is not None}
    for param in layouts:
        _place_gradient_(param)
    average_gradients_((param for param, layout in layouts.items() if layout is None), optimizer.replicas)
    norm = _squared_norm(optimizer, layouts).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for param in layouts:
        assert param.grad is not None
        grad = block_of(param.grad)
        grad.mul_(factor.to(grad))
    return norm


def _place_gradient_(param: Tensor) -> None:
    """Sum up, or divide, a gradient that tensor parallel has left otherwise than its parameter."""
    grad = param.grad
    if grad is not None and is_sharded(param) and is_sharded(grad) and grad.placements != param.placements:
        param.grad = grad.redistribute(placements=param.placements)


def _has_subspace(state: Mapping[str, Tensor]) -> bool:
    """Whether the basis is no longer the random one; a count that only the device knows is taken for one of steps."""
    return "basis" in state and (state["step"].device.type != "cpu" or state["step"].item() > 0)


def _squared_norm(optimizer: "LDAdamW", layouts: Mapping[Tensor, MatrixLayout | None]) -> Tensor:
    """The square of the norm (), on all ranks: first U_minus'G is made whole, then the sum of squares."""
    asked = [_measured(param, layout, optimizer, place) for place, (param, layout) in enumerate(layouts.items())]
    squares = []
    for (partial, shards, order), whole in zip(asked, combine(asked), strict=True):
        square = torch.linalg.vector_norm(whole, dtype=math_dtype(whole.dtype)).square()[None]
        # Ranks with gradients of their own, of which nothing is known together, share the mean of their squares.
        partial = Partial(square, "n", "squared norms", of_gradient=not partial.of_gradient)
        squares.append(Term(partial, shards, order))
    return sum((square[0] for square in combine(squares)), torch.zeros(()))


def _measured(param: Tensor, layout: MatrixLayout | None, optimizer: "LDAdamW", place: int) -> Term:
    """What the norm is taken of, and who has the rest of it: U_minus'G, or G of a parameter that has no subspace."""
    state = optimizer.state.get(param, {})
    assert param.grad is not None
    grad = block_of(param.grad)
    replicas = optimizer.replicas.get(param, ()) if layout is not None else ()
    if layout is None or not _has_subspace(state):
        return Term(Partial(grad[None], "m", "gradients"), _shards(param, param, replicas), [(place,)])
    low_rank = block_of(state["basis"]).mT @ layout.to_matrix(grad).to(math_dtype(param.dtype))
    partial = Partial(low_rank[None], "m", "U_minus'G", of_gradient=True)
    return Term(partial, _shards(param, state["exp_avg"], replicas), [(place,)])


def _shards(param: Tensor, measured: Tensor, replicas: tuple[dist.ProcessGroup, ...]) -> Shards:
    """Of the ranks that share `param`: who has other terms of what is measured (m), and other entries of it (n)."""
    divided, kept = dividing_groups(param), dividing_groups(measured)
    terms = tuple(group for group in divided if group not in kept)
    return Shards(terms, kept, (0, 0), (0, 0), (0, 0), replicas)
