"""Storage of E, the error buffer: one interface, whatever the dtype.

A float buffer is one tensor, "error_buffer", of the parameter's shape. A quantised one is two: codes under that name
and "error_scale", both of the parameter as a matrix or a stack of them; a convolution's is (out, rest).
"""

from typing import Any

import torch
from torch import Tensor

from ldadam import quantization
from ldadam.layout import math_dtype, matrix_dims
from ldadam.quantization import Quantized

ERROR_DTYPES = ("float64", "float32", "bfloat16", *quantization.LARGEST_CODE)
KEYS = ("error_buffer", "error_scale")


def error_dtype_name(error_dtype: Any) -> str | None:
    """The name of an `error_dtype`, which may be given as a torch dtype: `torch.bfloat16` is "bfloat16"."""
    return str(error_dtype).removeprefix("torch.") if error_dtype is not None else None


def storage_name(error_dtype: str | None, param: Tensor) -> str:
    """How E of `param` is to be stored: None means in the parameter's dtype."""
    return error_dtype or str(param.dtype).removeprefix("torch.")


def stored_name(state: dict[str, Tensor]) -> str | None:
    """How E of a state is stored; None where there is no error feedback."""
    if "error_buffer" not in state:
        return None
    stored = state["error_buffer"]
    return str(stored.dtype).removeprefix("torch.") if stored.is_floating_point() else quantization.kind_of(stored)


def storage(shape: torch.Size | tuple[int, ...], name: str) -> dict[str, Tensor]:
    """What stores E of a parameter of that shape, by key of state: meta tensors, which have shape and dtype alone."""
    if name in quantization.LARGEST_CODE:
        batch, rows, cols = matrix_dims(shape)
        return dict(zip(KEYS, quantization.storage((*batch, rows), cols, name), strict=True))
    return {"error_buffer": torch.empty(shape, dtype=getattr(torch, name), device="meta")}


def create(param: Tensor, error_dtype: str | None) -> dict[str, Tensor]:
    """State of an empty error buffer for `param`: contiguous, all zero."""
    planned = storage(param.shape, storage_name(error_dtype, param))
    return {key: torch.zeros(meta.shape, dtype=meta.dtype, device=param.device) for key, meta in planned.items()}


def planned_bytes(param: Tensor, error_dtype: str | None) -> dict[str, int]:
    """Bytes of each tensor that `create` makes, without making it."""
    return {key: meta.nbytes for key, meta in storage(param.shape, storage_name(error_dtype, param)).items()}


def read(state: dict[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """E in `dtype`, of the parameter's shape; a zero that broadcasts where there is no error feedback."""
    if "error_buffer" not in state:
        return torch.zeros((), dtype=dtype, device=state["exp_avg"].device)
    if "error_scale" not in state:
        return state["error_buffer"].to(dtype)
    quantized = Quantized(*(state[key] for key in KEYS))
    return quantization.decode(quantized, cols=matrix_dims(shape)[-1], dtype=dtype).reshape(shape)


def encode(error: Tensor, name: str | None) -> dict[str, Tensor]:
    """E, of the parameter's shape, as the state that stores it; float dtypes are left to the copy into state."""
    if name is None:
        return {}
    if name not in quantization.LARGEST_CODE:
        return {"error_buffer": error}
    batch, rows, cols = matrix_dims(error.shape)
    return dict(zip(KEYS, quantization.encode(error.reshape(*batch, rows, cols), name), strict=True))


def write_(state: dict[str, Tensor], error: Tensor) -> None:
    """Replace E of a state by `error`, of the parameter's shape."""
    for key, value in encode(error, stored_name(state)).items():
        state[key].copy_(value)


def follow_(state: dict[str, Tensor], param: Tensor, *, error_feedback: bool, error_dtype: str | None) -> None:
    """Create E, drop it or store it anew, so that it is what the hyperparameters now ask for."""
    wanted = storage_name(error_dtype, param) if error_feedback else None
    if stored_name(state) == wanted:
        return
    error = read(state, param.shape, math_dtype(param.dtype))
    for key in KEYS:
        state.pop(key, None)
    if error_feedback:
        state.update(create(param, error_dtype))
        write_(state, error.expand(param.shape))


def add_(state: dict[str, Tensor], grad: Tensor, *, sign: int) -> None:
    """E + sign G, of the parameter's shape, in place; rounded to what the buffer can store."""
    if "error_scale" not in state:
        state["error_buffer"].add_(grad, alpha=sign)
    else:
        write_(state, read(state, grad.shape, math_dtype(grad.dtype)).add_(grad, alpha=sign))
