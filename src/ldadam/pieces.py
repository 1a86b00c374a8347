"""Elementwise work on a large tensor a piece at a time, so that what is made on the way does not grow with it."""

from collections.abc import Iterator
from itertools import islice

from torch import Tensor

# Entries of a piece. The codec and rounding have at most 24 bytes an entry alive at once, hence 96 MiB; on a GPU, an
# operation on so many still takes longer than its launch.
PIECE = 2**22


def pieces(tensor: Tensor) -> Iterator[slice]:
    """Slices of the first dimension, of `PIECE` entries each at the most, or of one row where that has more.

    Of a meta tensor, which has shape but no content, the first two alone: they allocate what all do.
    """
    count = len(tensor)
    size = max(1, PIECE // max(1, tensor.numel() // max(1, count)))
    found = (slice(start, start + size) for start in range(0, count, size))
    return islice(found, 2) if tensor.is_meta else found
