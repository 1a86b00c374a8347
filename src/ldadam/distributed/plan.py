"""Who holds what, and what crosses between devices, as data: no process group is needed to ask.

All m x n work of a step is linear in A, so that only small factors cross. What a device holds of one matrix, the
projected side first:

    ddp          everything
    compressed   everything, with an error buffer of its own: the buffers' mean is the one of a single device
    fsdp         a part of each: W and E by rows of the parameter, U by rows, m and v by columns

What crosses in a step, r being the rank (a reduce-scatter and an all-gather of the same size cost an all-reduce):

    compressed   all-reduce U_minus'A (r n), A Y (m r), U'A (r n)
    fsdp, tall   all-gather U_minus (m r); reduce-scatter A Y (m r); two Gram matrices (r r); all-gather U (m r)
    fsdp, wide   reduce-scatter U_minus'A (r n); all-gather Y' (r n); m_hat Y and two Gram matrices (r r);
                 reduce-scatter U'A (r n); U'U_minus (r r); all-gather the factors of E and W (3 r n)

"Tall" is a matrix whose columns are projected: its rows, which fsdp divides, are then the n side, and so are m and v.
Stacks of matrices (experts) are divided along the stack under fsdp, and nothing crosses.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from ldadam.layout import MatrixLayout

SHARDINGS = ("ddp", "fsdp", "compressed")

# Factors of several matrices are packed into buffers of about this size, so that few collectives are called.
PACK_BYTES = 256 * 2**20


class Exchange(NamedTuple):
    """What one matrix sends at one point of the step: how, what, and how many numbers before they are divided."""

    kind: str
    what: str
    numbers: int


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind in a training step.

    Attributes:
        kind: "all_reduce", "all_gather" or "reduce_scatter".
        what: what is reduced or gathered.
        num_bytes: of the whole tensors, before they are divided.
        count: how many calls they are sent in.
    """

    kind: str
    what: str
    num_bytes: int
    count: int

    def sent_bytes(self, devices: int) -> int:
        """Bytes that each device sends, by the ring algorithms: all-reduce is reduce-scatter and all-gather."""
        rounds = 2 if self.kind == "all_reduce" else 1
        return math.ceil(rounds * self.num_bytes * (devices - 1) / devices)


def shard_shape(shape: tuple[int, ...], devices: int) -> tuple[int, ...]:
    """The largest shard of a parameter that is divided along its first dimension; scalars are whole everywhere."""
    return (math.ceil(shape[0] / devices), *shape[1:]) if shape else shape


def shard_layout(layout: MatrixLayout, devices: int) -> MatrixLayout:
    """The largest part of a matrix's state that a device holds: its `state_shapes` are those of the part."""
    shape = shard_shape(layout.shape, devices)
    if layout.batch:
        return replace(layout, shape=shape, batch=shape[:1])
    return replace(layout, shape=shape, m=math.ceil(layout.m / devices), n=math.ceil(layout.n / devices))


def exchanges(layout: MatrixLayout, sharding: str) -> tuple[Exchange, ...]:
    """What one matrix sends in a step, in the order of the step; the table at the top of this module."""
    m, n, r = layout.m, layout.n, layout.rank
    if sharding == "compressed":
        stack = math.prod(layout.batch)
        points = (("U_minus'A", stack * r * n), ("A Y", stack * m * r), ("U'A", stack * r * n))
        return tuple(Exchange("all_reduce", what, numbers) for what, numbers in points)
    if sharding == "ddp" or layout.batch:
        return ()
    if layout.transposed:
        return (
            Exchange("all_gather", "U_minus", m * r),
            Exchange("reduce_scatter", "A Y", m * r),
            Exchange("all_reduce", "Gram matrices", 2 * r * r),
            Exchange("all_gather", "U", m * r),
        )
    return (
        Exchange("reduce_scatter", "U_minus'A", r * n),
        Exchange("all_gather", "Y'", r * n),
        Exchange("all_reduce", "m_hat Y", r * r),
        Exchange("all_reduce", "Gram matrices", 2 * r * r),
        Exchange("reduce_scatter", "U'A", r * n),
        Exchange("all_reduce", "U'U_minus", r * r),
        Exchange("all_gather", "factors of E and W", 3 * r * n),
    )
