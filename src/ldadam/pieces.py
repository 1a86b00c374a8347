"""Elementwise work on a large tensor a piece at a time, so that what is made on the way does not grow with it."""

from collections.abc import Iterator

# Entries of a piece. The codec and rounding have at most 24 bytes an entry alive at once, hence 96 MiB; on a GPU, an
# operation on so many still takes longer than its launch.
PIECE = 2**22


def pieces(count: int, *, entries: int = 1) -> Iterator[slice]:
    """Slices of `count` things of that many `entries` each: as many as make up a piece, or one that is larger alone."""
    size = max(1, PIECE // max(1, entries))
    return (slice(start, start + size) for start in range(0, count, size))
