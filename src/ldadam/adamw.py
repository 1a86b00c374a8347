"""The dense update, for parameters without low-rank state: AdamW with float32 state and the page's formulas."""

from collections.abc import Sequence

from ldadam.algorithm import adam_direction, descend
from ldadam.backends.update import ParamUpdate


def step_(updates: Sequence[ParamUpdate]) -> None:
    """Move dense parameters and their moments in place; source: Loshchilov and Hutter, arXiv 1711.05101."""
    for update in updates:
        _step_one_(update)


def _step_one_(update: ParamUpdate) -> None:
    state, hyper = update.state, update.hyper
    grad = update.descent_grad()
    beta1, beta2 = hyper.betas
    exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * grad  # m
    exp_avg_sq = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad.square()  # v
    direction = adam_direction(exp_avg, exp_avg_sq, step=update.step, betas=hyper.betas, eps=hyper.eps)  # d
    moved = descend(update.param.to(grad.dtype), direction, lr=hyper.lr, weight_decay=hyper.weight_decay)  # W
    update.keep_({"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "param": moved}, accept=update.accepts(grad))
