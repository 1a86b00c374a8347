"""Storage of E, the error buffer: one interface, whatever the dtype."""

from typing import Any

import torch
from torch import Tensor

ERROR_DTYPES = ("float64", "float32", "bfloat16")


def error_dtype_name(error_dtype: Any) -> str | None:
    """The name of an `error_dtype`, which may be given as a torch dtype: `torch.bfloat16` is "bfloat16"."""
    return str(error_dtype).removeprefix("torch.") if error_dtype is not None else None


def storage_dtype(error_dtype: str | None, param_dtype: torch.dtype) -> torch.dtype:
    """The dtype in which E is kept; None means the parameter's."""
    return param_dtype if error_dtype is None else getattr(torch, error_dtype)


def create(param: Tensor, error_dtype: str | None) -> dict[str, Tensor]:
    """State of an empty error buffer for `param`: contiguous, of the parameter's shape, zero."""
    return {
        "error_buffer": torch.zeros(param.shape, dtype=storage_dtype(error_dtype, param.dtype), device=param.device)
    }


def read(state: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """E in `dtype`, of the parameter's shape; a zero that broadcasts where there is no error feedback."""
    if "error_buffer" not in state:
        return torch.zeros((), dtype=dtype, device=state["exp_avg"].device)
    return state["error_buffer"].to(dtype)


def add_(state: dict[str, Tensor], grad: Tensor, *, sign: int) -> None:
    """E + sign G, of the parameter's shape, in place; rounded once to the dtype of the buffer."""
    state["error_buffer"].add_(grad, alpha=sign)
