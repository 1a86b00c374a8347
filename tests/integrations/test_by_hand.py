"""The loop that every trainer is compared with is itself compared with the page."""

import torch
from by_hand import LR, batches, largest_distance, mean_loss, train_by_hand
from tiny_llama import model as tiny_model
from torch import Tensor

from ldadam import lowrank_param_groups
from ldadam.algorithm import LowRankState, adam_direction, descend, ldadam_step
from ldadam.subspace import power_iteration, top_singular_vectors
from tolerances import TOLERANCES

ADAM = {"betas": (0.908, 0.99), "eps": 1e-8}


def low_rank_update(grad: Tensor, prev: LowRankState | None, *, step: int, rank: int) -> tuple[Tensor, LowRankState]:
    """U d of the page, for a gradient whose shorter side comes first."""
    rows, columns = grad.shape
    moment = grad.new_zeros(rank, columns)
    prev = prev or LowRankState(grad.new_zeros(rows, rank), moment, moment, grad.new_zeros(()))
    next_basis = top_singular_vectors if step == 1 else power_iteration
    return ldadam_step(grad, prev, step=step, rho=0.908, next_basis=next_basis, **ADAM)


def dense_update(grad: Tensor, prev: tuple[Tensor, Tensor] | None, *, step: int) -> tuple[Tensor, tuple]:
    """Adam's."""
    beta1, beta2 = ADAM["betas"]
    exp_avg, exp_avg_sq = prev or (torch.zeros_like(grad), torch.zeros_like(grad))
    exp_avg, exp_avg_sq = beta1 * exp_avg + (1 - beta1) * grad, beta2 * exp_avg_sq + (1 - beta2) * grad.square()
    return adam_direction(exp_avg, exp_avg_sq, step=step, **ADAM), (exp_avg, exp_avg_sq)


def train_by_the_page(num_steps: int) -> torch.nn.Module:
    model, states = tiny_model(), {}
    groups = lowrank_param_groups(model, rank=8)
    for step, batch in zip(range(1, num_steps + 1), batches(), strict=False):
        mean_loss(model, batch, [batch]).backward()
        for param, rank in [(param, group["rank"]) for group in groups for param in group["params"]]:
            is_tall = rank is not None and param.shape[0] > param.shape[1]
            grad = param.grad.mT if is_tall else param.grad
            options = {} if rank is None else {"rank": rank}
            update_of = dense_update if rank is None else low_rank_update
            update, states[param] = update_of(grad, states.get(param), step=step, **options)
            param.data = descend(param.data, update.mT if is_tall else update, lr=LR, weight_decay=0.0)
        model.zero_grad()
    return model


def test_the_loop_by_hand_is_the_page_with_error_feedback_on():
    page, tolerance = train_by_the_page(4), TOLERANCES["backend, float32, many steps"]
    assert largest_distance(train_by_hand(4), page) < tolerance
    assert largest_distance(train_by_hand(4, error_feedback=False), page) > 100 * tolerance
