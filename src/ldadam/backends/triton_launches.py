"""The Triton kernels, as they are launched. On meta tensors a launch does nothing: a step then only allocates."""

from collections.abc import Callable
from typing import Any

from ldadam.backends import triton_kernels


class Kernel:
    """A kernel, indexed by its grid and called with a tensor first."""

    def __init__(self, function: Any):
        self.function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return lambda table, *args, **constants: (
            None if table.is_meta else self.function[grid](table, *args, **constants)
        )


class Kernels:
    """Every kernel of `triton_kernels`, as an attribute."""

    def __getattr__(self, name: str) -> Kernel:
        return Kernel(getattr(triton_kernels, name))


kernels = Kernels()
