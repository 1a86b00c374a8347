"""Bytes of tensors that are alive at once: what a step needs on top of what it keeps."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of storages that are made inside, until they are freed.

    Scratch inside of one operation is not seen, nor are tensors inside of compiled code.

    Args:
        device_type: the storages that count, such as "cpu" or "meta".

    Attributes:
        live: bytes of storages that were made inside and are alive.
        peak: the largest that `live` has been.
    """

    def __init__(self, device_type: str = "cpu") -> None:
        super().__init__()
        self.device_type = device_type
        self.live = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def reset_peak(self) -> None:
        """Forget what was alive before."""
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in self._storages((args, kwargs)):
            self._known.add(storage)
        result = func(*args, **(kwargs or {}))
        for storage in self._storages(result):
            if storage not in self._known:
                self._known.add(storage)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return result

    def _count(self, change: int) -> None:
        self.live += change
        self.peak = max(self.peak, self.live)

    def _storages(self, tree: Any) -> list[Any]:
        storages = (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
        return [storage for storage in storages if storage.device.type == self.device_type]
