"""The page through `torch.compile`: one graph for each shape, whatever the step, the learning rate and the betas."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldadam import error_buffer
from ldadam.algorithm import LowRankState, adam_direction, descend, ldadam_step
from ldadam.backends import eager
from ldadam.backends.update import ParamUpdate
from ldadam.subspace import PROJ_METHODS

# Every shape, and every combination of options, is a graph of its own; torch.compile's default stops at eight.
MAX_GRAPHS = 1024


def step_(updates: Sequence[ParamUpdate]) -> None:
    """Move each parameter and its state in place; a first step, which is taken once, is left to the page."""
    eager.step_([update for update in updates if update.is_first])
    for update in updates:
        if not update.is_first:
            _step_one_(update)


def dense_step_(updates: Sequence[ParamUpdate]) -> None:
    """AdamW in place."""
    for update in updates:
        state, numbers = update.state, _numbers(update)
        moved, exp_avg, exp_avg_sq = _call(
            _dense_step, update.param, update.descent_grad(), state["exp_avg"], state["exp_avg_sq"], numbers
        )
        update.keep_({"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "param": moved})


def _step_one_(update: ParamUpdate) -> None:
    layout, state = update.layout, update.state
    assert layout is not None
    grad = update.descent_grad()
    error = error_buffer.read(state, grad.shape, grad.dtype)
    prev = LowRankState(
        state["basis"], state["exp_avg"], state["exp_avg_sq"], layout.to_matrix(error) if error.dim() else error
    )
    method = update.hyper.proj_method if update.moves_subspace else None
    moved, new = _call(
        _low_rank_step,
        layout.to_matrix(update.param),
        layout.to_matrix(grad),
        prev,
        _numbers(update),
        method,
        update.hyper.scaled_residual,
    )
    kept = {"basis": new.basis, "exp_avg": new.exp_avg, "exp_avg_sq": new.exp_avg_sq}
    kept["param"] = layout.from_matrix(moved)
    kept |= error_buffer.encode(layout.from_matrix(new.error_buffer), error_buffer.stored_name(state))
    update.keep_(kept)


def _numbers(update: ParamUpdate) -> dict[str, Tensor]:
    """What changes from step to step or from run to run, as 0-d float64 tensors.

    A tensor's value is no part of a compiled graph; a Python number's is.
    """
    hyper = update.hyper
    values = {"beta1": hyper.betas[0], "beta2": hyper.betas[1], "eps": hyper.eps, "rho": hyper.rho}
    values |= {"weight_decay": hyper.weight_decay, "lr": hyper.lr, "step": update.step}
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()}


def _call(function, *args):
    with torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS):  # pyright: ignore[reportAttributeAccessIssue]
        return function(*args)


@torch.compile(dynamic=False)
def _low_rank_step(
    param: Tensor, grad: Tensor, prev: LowRankState, numbers: dict[str, Tensor], method: str | None, adds_residual: bool
) -> tuple[Tensor, LowRankState]:
    direction, new = ldadam_step(
        grad,
        prev,
        step=numbers["step"],
        betas=(numbers["beta1"], numbers["beta2"]),  # pyright: ignore[reportArgumentType]
        eps=numbers["eps"],  # pyright: ignore[reportArgumentType]
        rho=numbers["rho"],  # pyright: ignore[reportArgumentType]
        next_basis=PROJ_METHODS[method] if method else None,
        adds_residual=adds_residual,
    )
    decay = numbers["weight_decay"]
    return descend(param.to(grad.dtype), direction, lr=numbers["lr"], weight_decay=decay), new  # pyright: ignore[reportArgumentType]


@torch.compile(dynamic=False)
def _dense_step(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, numbers: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    betas = (numbers["beta1"], numbers["beta2"])
    exp_avg = betas[0] * exp_avg + (1 - betas[0]) * grad  # m
    exp_avg_sq = betas[1] * exp_avg_sq + (1 - betas[1]) * grad.square()  # v
    direction = adam_direction(exp_avg, exp_avg_sq, step=numbers["step"], betas=betas, eps=numbers["eps"])  # type: ignore[arg-type]
    moved = descend(param.to(grad.dtype), direction, lr=numbers["lr"], weight_decay=numbers["weight_decay"])  # type: ignore[arg-type]
    return moved, exp_avg, exp_avg_sq
