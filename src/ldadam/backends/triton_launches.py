"""The Triton kernels, as they are launched. On meta tensors a launch does nothing: a step then only allocates.

So Triton is imported by the first launch, and a plan needs none.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch


class Kernel:
    """A kernel, indexed by its grid and called with a tensor first. Constants may be torch's dtypes."""

    def __init__(self, name: str):
        self.name = name
        self._function: Any = None  # of `triton_kernels`, from the first launch on

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return lambda table, *args, **constants: (
            None if table.is_meta else self._launch(grid, table, *args, **constants)
        )

    def _launch(self, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        if self._function is None:
            from ldadam.backends import triton_kernels

            self._function = getattr(triton_kernels, self.name)
        for key, value in constants.items():
            if isinstance(value, torch.dtype):
                constants[key] = _triton_dtypes()[value]
        self._function[grid](*args, **constants)


@lru_cache(maxsize=1)
def _triton_dtypes() -> dict[torch.dtype, Any]:
    import triton.language as tl

    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8)
    return {dtype: getattr(tl, str(dtype).removeprefix("torch.")) for dtype in dtypes}


class Kernels:
    """Every kernel of `triton_kernels`, as an attribute."""

    def __getattr__(self, name: str) -> Kernel:
        kernel = Kernel(name)
        setattr(self, name, kernel)
        return kernel


kernels = Kernels()
