"""Who holds what, and what crosses between devices, as data: no process group is needed to ask.

All m x n work of a step is linear in A, so that only small factors cross. What a device holds of one matrix, the
projected side first, and what is all-reduced in a step, r being the rank:

    ddp          everything                           the gradient
    compressed   everything, and an error buffer of   U_minus'A (r n), A Y (m r), U'A (r n)
                 its own: the mean of all is the one
                 of a single device
    fsdp, tall   rows of W, E; columns of m, v;       A Y (m r), m_minus Y (r r), the largest of Y (r)
                 the whole U
    fsdp, wide   rows of W, E, U; the whole m, v      U_minus'A (r n), X and U_minus (m r), U'A (r n), U'U_minus (r r)

"Tall" is a matrix whose columns are projected: its rows, which fsdp divides, are the n side. Stacks of matrices
(experts) are divided along the stack under fsdp, and nothing crosses.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ldadam.layout import MatrixLayout

SHARDINGS = ("ddp", "fsdp", "compressed")


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
    return replace(layout, shape=shape, **{"n" if layout.transposed else "m": math.ceil(_rows(layout) / devices)})


def _rows(layout: MatrixLayout) -> int:
    return layout.n if layout.transposed else layout.m


def reductions(layout: MatrixLayout, sharding: str) -> Mapping[str, int]:
    """Numbers of one matrix that a step all-reduces, by what they are, in the order of the step."""
    m, n, r = layout.m, layout.n, layout.rank
    if sharding == "compressed":
        stack = math.prod(layout.batch)
        return {"U_minus'A": stack * r * n, "A Y": stack * m * r, "U'A": stack * r * n}
    if sharding == "ddp" or layout.batch:
        return {}
    if layout.transposed:
        return {"A Y": m * r, "m_minus Y": r * r, "largest of Y": r}
    return {"U_minus'A": r * n, "X": m * r, "U_minus": m * r, "U'A": r * n, "U'U_minus": r * r}
