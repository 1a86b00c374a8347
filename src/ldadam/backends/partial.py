"""Where the step of a matrix needs what other ranks hold: a step is a generator that yields, and is sent, tensors.

On one device each partial tensor is already the whole one, and a step runs from end to end.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Shards:
    """Which block of a matrix this rank holds, and who holds the others.

    Attributes:
        m, n: process groups to be summed over, one after the other, to get what was contracted over that side.
        rows, cols: first and last + 1 index of the block along m and n of the whole matrix.
        shape: m and n of the whole matrix.
        replicas: process groups of ranks that hold the same block and have gradients of their own; they average
            whatever is linear in A.
        stack: how many such matrices the whole parameter is.
    """

    m: tuple[Any, ...]
    n: tuple[Any, ...]
    rows: tuple[int, int]
    cols: tuple[int, int]
    shape: tuple[int, int]
    replicas: tuple[Any, ...] = ()
    stack: int = 1

    @classmethod
    def whole(cls, m: int, n: int, *, stack: int = 1) -> "Shards":
        """Of a rank that holds the whole matrix."""
        return cls((), (), (0, m), (0, n), (m, n), stack=stack)

    def embed_rows(self, block: Tensor) -> Tensor:
        """A block (B, m, r) of rows in zeros of the whole (B, m, r): summed over the blocks, the whole."""
        before, after = self.rows[0], self.shape[0] - self.rows[1]
        return pad(block, (0, 0, before, after))

    def embed_cols(self, block: Tensor) -> Tensor:
        """A block (B, l, n) of columns in zeros of the whole (B, l, n)."""
        return pad(block, (self.cols[0], self.shape[1] - self.cols[1]))


Op = Literal["sum", "max"]


class Partial(NamedTuple):
    """A tensor computed from the local block of a matrix, which the ranks that share the matrix have to combine.

    Attributes:
        value: the local tensor, (B, ...); the whole one may be written into it.
        side: "m" or "n": ranks that hold other blocks along that side contribute to it.
        op: how contributions combine.
        of_gradient: whether it is linear in A, so that replicas average it.
        name: what it is, for messages.
    """

    value: Tensor
    side: Literal["m", "n"]
    name: str
    op: Op = "sum"
    of_gradient: bool = False


# A step, or a part of one: yields partial tensors, is sent the whole ones, and returns a result.
Steps = Generator[list[Partial], list[Tensor], Any]


class SharedSteps(NamedTuple):
    """A step of B matrices that ranks share.

    Attributes:
        steps: the step.
        shards: which blocks of the matrices this rank holds.
        places: of each matrix the number of its parameter, of its first entry in it, and its own among the
            parameter's: an order that all ranks have in common, while which matrices they step together hangs on sizes
            and addresses of their blocks.
    """

    steps: Steps
    shards: Shards
    places: list[tuple[int, ...]]


def resume(steps: Steps, values: list[Tensor] | None) -> list[Partial] | None:
    """Run a step to its next reduction point; what it asks for there, or None where it has ended.

    Args:
        steps: the step.
        values: what it asked for at the last point, whole; None to start it.
    """
    try:
        return next(steps) if values is None else steps.send(values)
    except StopIteration:
        return None


def run_alone(steps: Steps) -> None:
    """Run a step whose matrix no other rank holds a part of."""
    partials = resume(steps, None)
    while partials is not None:
        partials = resume(steps, [partial.value for partial in partials])
