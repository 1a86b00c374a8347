"""Products of bfloat16 matrices on a processor that has no instructions for them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default)


class Float32Products(TorchDispatchMode):
    """Multiplies them as float32 matrices and rounds the result, as such instructions do, but for the order of sums."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in PRODUCTS and args[0].dtype == torch.bfloat16 and args[0].device.type == "cpu":
            return func(*(arg.float() if isinstance(arg, Tensor) else arg for arg in args), **kwargs).bfloat16()
        return func(*args, **kwargs)


def bfloat16_products() -> AbstractContextManager[Any]:
    """What to multiply them within, so that they are fast: without such instructions torch goes element by element.

    Example:
        >>> with bfloat16_products():
        ...     (torch.ones(2, 3, dtype=torch.bfloat16) @ torch.ones(3, 2, dtype=torch.bfloat16)).dtype
        torch.bfloat16
    """
    has_them = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return nullcontext() if has_them else Float32Products()
