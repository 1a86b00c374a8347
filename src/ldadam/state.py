"""Optimizer state of one parameter: its creation, its planned size, and checks of what is loaded."""

import math

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
    if not hyper.skip_nonfinite:
        return {"step": torch.zeros((), dtype=torch.float32)}
    return {name: torch.zeros((), dtype=torch.float32, device=param.device) for name in ("step", "num_skipped")}


def planned_bytes(param: Tensor, layout: MatrixLayout | None, hyper: Hyperparameters) -> dict[str, int]:
    """Bytes of each state tensor that `create_state` makes, without making it."""
    item = math_dtype(param.dtype).itemsize
    counters = {name: counter.nbytes for name, counter in _counters(param, hyper).items()}
    if layout is None:
        return {**counters, "exp_avg": param.numel() * item, "exp_avg_sq": param.numel() * item}
    planned = {name: math.prod(shape) * item for name, shape in layout.state_shapes().items()}
    del planned["error_buffer"]
    if hyper.error_feedback:
        planned["error_buffer"] = param.numel() * error_buffer.storage_dtype(hyper.error_dtype, param.dtype).itemsize
    return {**counters, **planned}


def check_state(state: dict[str, Tensor], param: Tensor, layout: MatrixLayout | None, *, name: str) -> None:
    """Refuse loaded state that does not fit its parameter.

    Raises:
        ValueError: a state tensor is missing, or has another shape than the parameter and its rank ask for.
    """
    shapes = {"exp_avg": tuple(param.shape), "exp_avg_sq": tuple(param.shape)}
    if layout is not None:
        shapes = layout.state_shapes()
        if "error_buffer" not in state:
            del shapes["error_buffer"]
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
