"""The page as it stands, one parameter at a time: the slowest backend, and the yardstick of the others."""

from collections.abc import Callable, Sequence

from torch import Tensor

from ldadam import error_buffer
from ldadam.algorithm import LowRankState, adam_direction, descend, ldadam_step
from ldadam.backends.update import ParamUpdate
from ldadam.subspace import PROJ_METHODS, first_basis, power_iteration, range_finder


def step_(updates: Sequence[ParamUpdate]) -> None:
    """Move each parameter and its state in place."""
    for update in updates:
        _step_one_(update)


def _step_one_(update: ParamUpdate) -> None:
    layout, state, hyper = update.layout, update.state, update.hyper
    assert layout is not None
    grad = update.descent_grad()
    error = error_buffer.read(state, grad.shape, grad.dtype)
    direction, new = ldadam_step(
        layout.to_matrix(grad),
        LowRankState(
            state["basis"],
            state["exp_avg"],
            state["exp_avg_sq"],
            layout.to_matrix(error) if error.dim() else error,
        ),
        step=update.step,
        betas=hyper.betas,
        eps=hyper.eps,
        rho=hyper.rho,
        next_basis=next_basis(update),
        adds_residual=hyper.scaled_residual,
    )
    moved = descend(
        update.param.to(grad.dtype), layout.from_matrix(direction), lr=hyper.lr, weight_decay=hyper.weight_decay
    )
    kept = {"basis": new.basis, "exp_avg": new.exp_avg, "exp_avg_sq": new.exp_avg_sq, "param": moved}
    kept |= error_buffer.encode(layout.from_matrix(new.error_buffer), error_buffer.stored_name(state))
    update.keep_(kept)


def dense_step_(updates: Sequence[ParamUpdate]) -> None:
    """AdamW with the page's formulas, in place; source: Loshchilov and Hutter, arXiv 1711.05101."""
    for update in updates:
        _dense_step_one_(update)


def _dense_step_one_(update: ParamUpdate) -> None:
    state, hyper = update.state, update.hyper
    grad = update.descent_grad()
    beta1, beta2 = hyper.betas
    exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * grad  # m
    exp_avg_sq = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad.square()  # v
    direction = adam_direction(exp_avg, exp_avg_sq, step=update.step, betas=hyper.betas, eps=hyper.eps)  # d
    moved = descend(update.param.to(grad.dtype), direction, lr=hyper.lr, weight_decay=hyper.weight_decay)  # W
    update.keep_({"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "param": moved})


def next_basis(update: ParamUpdate) -> Callable[[Tensor, Tensor], Tensor] | None:
    """How this step finds its basis; None where it keeps the one it has."""
    if update.is_first:
        return first_basis(update.hyper.proj_method, shorter_side=update.shorter_side)
    return PROJ_METHODS[update.hyper.proj_method] if update.moves_subspace else None


def decomposition(update: ParamUpdate) -> Callable[[Tensor, Tensor], Tensor] | None:
    """How this step finds its basis, where that needs the matrix itself rather than products with it."""
    method = next_basis(update)
    return None if method in (power_iteration, range_finder) else method
