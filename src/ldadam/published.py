"""Import of checkpoints of the published LDAdamW class (github.com/IST-DASLab/LDAdam)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldadam import error_buffer
from ldadam.hyperparameters import resolve
from ldadam.layout import MatrixLayout, math_dtype
from ldadam.optimizer import LDAdamW, layout_of, param_name
from ldadam.state import check_group_sizes, create_state

_GROUP_KEYS = ("lr", "betas", "eps", "weight_decay", "rho", "proj_type", "proj_method", "error_feedback")


def load_published_state(
    optimizer: LDAdamW,
    state_dict: Mapping[str, Any],
    *,
    completed_steps: int,
    error_buffers: Sequence[Tensor | None] | None = None,
) -> None:
    """Continue a run of the published class: moments, bases, and the hyperparameters of each group.

    The published class keeps its step count on the instance and its error buffers in `p.grad`, so that neither is in
    its state dict; without `error_buffers` the feedback starts anew from zero, as in its own resumed runs.

    Args:
        optimizer: over the same parameters, in the same groups and order, with the same ranks.
        state_dict: what the published class's `state_dict` returned. Its bases are pickled objects: load the file
            with `torch.load(weights_only=False)`, where that package can be imported, and only if you trust it.
        completed_steps: how many steps the run had taken.
        error_buffers: `p.grad` after the last step for each parameter in order, None where there is none.

    Raises:
        ValueError: groups, ranks or shapes do not fit the optimizer; then nothing has changed.
    """
    saved_groups = state_dict["param_groups"]
    check_group_sizes(saved_groups, optimizer.param_groups)
    changes = [_group_changes(saved) for saved in saved_groups]
    num_params = sum(len(group["params"]) for group in saved_groups)
    if error_buffers is not None and len(error_buffers) != num_params:
        raise ValueError(
            f"error_buffers must have one entry for each of {num_params} parameters, got {len(error_buffers)}"
        )
    next_error = iter(error_buffers if error_buffers is not None else [None] * num_params)
    placed = {}
    for index, (group, saved_group) in enumerate(zip(optimizer.param_groups, saved_groups, strict=True)):
        hyper = resolve({**group, **changes[index]}, index)
        for position, (param, saved_id) in enumerate(zip(group["params"], saved_group["params"], strict=True)):
            error, saved = next(next_error), state_dict["state"].get(saved_id)
            if saved is None:
                continue
            layout = layout_of(param, hyper)
            state = create_state(param, layout, hyper)
            _copy_moments_(state, saved, layout, math_dtype(param.dtype), name=param_name(group, index, position))
            state["step"].fill_(completed_steps)
            if error is not None and "error_buffer" in state:
                error_buffer.write_(state, error)
            placed[param] = state
    for group, change in zip(optimizer.param_groups, changes, strict=True):
        group.update(change)
    optimizer.state.update(placed)


def _group_changes(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that a published group brings along."""
    changes = {key: saved[key] for key in _GROUP_KEYS if key in saved}
    return changes if saved.get("enable_lowrank", True) else {**changes, "rank": None}


def _copy_moments_(
    state: dict[str, Tensor], saved: Mapping[str, Any], layout: MatrixLayout | None, dtype: torch.dtype, *, name: str
) -> None:
    """Copy m, v and the basis into `state`, with the projected side first."""
    is_low_rank = "previous_projector" in saved
    if is_low_rank != (layout is not None):
        raise ValueError(
            f"{name} is {'low-rank' if is_low_rank else 'dense'} in the published checkpoint and "
            f"{'dense' if is_low_rank else 'low-rank'} in the optimizer: give its group the same rank"
        )
    loaded = {"exp_avg": saved["m"], "exp_avg_sq": saved["v"]}
    if layout is not None:
        loaded["basis"] = saved["previous_projector"].ortho_matrix
        loaded = {key: value.mT if layout.transposed else value for key, value in loaded.items()}
    for key, value in loaded.items():
        if value.shape != state[key].shape:
            raise ValueError(
                f"{key} of {name} has shape {tuple(value.shape)} in the published checkpoint, expected "
                f"{tuple(state[key].shape)}: use its rank and proj_type"
            )
        state[key].copy_(value.to(dtype))
