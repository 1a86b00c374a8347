"""Bytes that tensors keep alive, wherever an optimizer's state holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every plain tensor inside of a value of some optimizer's state: in projectors, quantised and sharded ones too."""
    if hasattr(value, "__tensor_flatten__") and type(value) is not Tensor:
        names, _ = value.__tensor_flatten__()
        # A sharded tensor names its mesh as well, which is no storage of the tensor.
        yield from tensors_in([inner for name in names if isinstance(inner := getattr(value, name), Tensor)])
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors_in(inner)
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value))


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes behind the tensors: a view counts for all it keeps alive, a shared storage counts once."""
    storages = [inner.untyped_storage() for tensor in tensors for inner in tensors_in(tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
