"""Optimizer state of one parameter: its creation, its planned size, and checks of what is loaded."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldadam import error_buffer
from ldadam.hyperparameters import Hyperparameters
from ldadam.layout import MatrixLayout, math_dtype
from ldadam.subspace import random_basis


def create_state(param: Tensor, layout: MatrixLayout | None, hyper: Hyperparameters) -> dict[str, Tensor]:
    """State before the first step: `step` and moments zero, the buffer empty, the basis the fixed random one."""
    dtype, device = math_dtype(param.dtype), param.device
    state = _counters(param, hyper)
    if layout is None:
        zeros = torch.zeros(param.shape, dtype=dtype, device=device)
        return {**state, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
    shapes = layout.state_shapes()
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = torch.zeros(shapes[name], dtype=dtype, device=device)
    basis = random_basis(layout.m, layout.rank).to(device, dtype)
    state["basis"] = basis.expand(shapes["basis"]).contiguous()
    if hyper.error_feedback:
        state |= error_buffer.create(param, hyper.error_dtype)
    return state


def _counters(param: Tensor, hyper: Hyperparameters) -> dict[str, Tensor]:
    """`step` is on the CPU, as in torch.optim, unless the device decides whether a step counts."""
    device = param.device if hyper.device_step else None
    names = ("step", "num_skipped") if hyper.skip_nonfinite else ("step",)
    return {name: torch.zeros((), dtype=torch.float32, device=device) for name in names}


def is_known_to_host(counter: Tensor, *, capturable: bool) -> bool:
    """Whether `step` may be read: it is on the CPU, and no CUDA graph would replay what was read once."""
    return counter.device.type == "cpu" and not capturable


def count_steps_(counters: list[Tensor], *, capturable: bool) -> list[float] | list[Tensor]:
    """Add one to each `step`; the new counts, as numbers, or as 0-d float64 tensors where the host must not wait."""
    if not counters:
        return []
    torch._foreach_add_(counters, 1)  # pyright: ignore[reportPrivateImportUsage]
    if all(is_known_to_host(counter, capturable=capturable) for counter in counters):
        return [counter.item() for counter in counters]
    if len({counter.device for counter in counters}) > 1:
        return [counter.double() for counter in counters]
    return list(torch.stack(counters).double().unbind())


def planned_bytes(param: Tensor, layout: MatrixLayout | None, hyper: Hyperparameters) -> dict[str, int]:
    """Bytes of each state tensor that `create_state` makes, without making it."""
    item = math_dtype(param.dtype).itemsize
    counters = {name: counter.nbytes for name, counter in _counters(param, hyper).items()}
    if layout is None:
        return {**counters, "exp_avg": param.numel() * item, "exp_avg_sq": param.numel() * item}
    planned = {name: math.prod(shape) * item for name, shape in layout.state_shapes().items()}
    if hyper.error_feedback:
        planned |= error_buffer.planned_bytes(param, hyper.error_dtype)
    return {**counters, **planned}


def follow_changes_(
    state: dict[str, Tensor], param: Tensor, layout: MatrixLayout | None, hyper: Hyperparameters, *, name: str
) -> None:
    """Bring state in line with hyperparameters that were changed after it was created.

    The error buffer comes and goes with `error_feedback` and is stored anew when `error_dtype` changes; the count of
    skipped steps comes with `skip_nonfinite`.

    Raises:
        ValueError: the rank or the projected side has changed, which moments cannot follow.
    """
    expected = tuple(param.shape) if layout is None else layout.state_shapes()["exp_avg"]
    if tuple(state["exp_avg"].shape) != expected:
        raise ValueError(
            f"the moments of {name} have shape {tuple(state['exp_avg'].shape)}, and its group now asks for {expected}: "
            "set rank and proj_type before the first step, or delete the state of the parameter to start it anew"
        )
    if layout is not None:
        error_buffer.follow_(state, param, error_feedback=hyper.error_feedback, error_dtype=hyper.error_dtype)
    if hyper.skip_nonfinite and "num_skipped" not in state:
        state["step"] = state["step"].to(param.device)
        state["num_skipped"] = torch.zeros_like(state["step"])


def check_group_sizes(saved_groups: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse param groups that do not have as many parameters each as the optimizer's.

    Raises:
        ValueError: the number or the sizes of groups differ.
    """
    saved_sizes, sizes = ([len(group["params"]) for group in some] for some in (saved_groups, groups))
    if saved_sizes != sizes:
        raise ValueError(
            f"the checkpoint has param groups of {saved_sizes} parameters, the optimizer of {sizes}: "
            "build the optimizer with the groups that the checkpoint was saved with"
        )


def check_state(state: dict[str, Tensor], param: Tensor, layout: MatrixLayout | None, *, name: str) -> None:
    """Refuse loaded state that does not fit its parameter.

    Raises:
        ValueError: a state tensor is missing, or has another shape than the parameter and its rank ask for.
    """
    shapes = {"exp_avg": tuple(param.shape), "exp_avg_sq": tuple(param.shape)}
    if layout is not None:
        shapes = layout.state_shapes()
        if (stored := error_buffer.stored_name(state)) is not None:
            shapes |= {key: tuple(meta.shape) for key, meta in error_buffer.storage(param.shape, stored).items()}
    for key, shape in {"step": (), **shapes}.items():
        if key not in state:
            raise ValueError(
                f"the loaded state of {name} has no {key!r}, only {sorted(state)}: was it saved by LDAdamW with the "
                "same rank and the same order of parameters? For the published class use load_published_state."
            )
        if tuple(state[key].shape) != shape:
            raise ValueError(
                f"the loaded {key!r} of {name} has shape {tuple(state[key].shape)}, expected {shape}: load into the "
                "model, parameter order and ranks that the checkpoint was saved with"
            )
