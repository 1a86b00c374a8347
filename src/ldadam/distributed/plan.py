"""Who holds what, and what crosses between devices, as data: no process group is needed to ask.

All m x n work of a step is linear in A, so that only small things are reduced. With Shard(0), rows of the parameter are
divided; the projected side comes first in (m, n):

    sharding     what a device holds of one matrix                     what is all-reduced
    ddp          everything                                            the gradient
    fsdp, tall   rows of W, E; columns of m, v; U                      A Y                           m r
    fsdp, wide   rows of W, E, U; m, v                                 U_minus'A, Gram twice, U'A    r n, 2 r r, r n + r r
    compressed   everything, and a local E                             U_minus'A, A Y, U'A           r n, m r, r n

"Tall" is a matrix whose columns are projected. Stacks of matrices (experts) are divided along the stack: nothing is reduced.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ldadam.layout import MatrixLayout

SHARDINGS = ("ddp", "fsdp", "compressed")


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind in a step.

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
    """The largest shard of a matrix, with the side and the rank that the whole matrix has."""
    shape = shard_shape(layout.shape, devices)
    if layout.batch:
        return replace(layout, shape=shape, batch=shape[:1])
    return replace(layout, shape=shape, **{"n" if layout.transposed else "m": shape[0]})


def reductions(layout: MatrixLayout, sharding: str) -> Mapping[str, int]:
    """Numbers of one matrix that a step all-reduces at each reduction point, in the order of the step."""
    m, n, r = layout.m, layout.n, layout.rank
    if sharding == "compressed":
        stack = math.prod(layout.batch)
        return {"U_minus'A": stack * r * n, "A Y": stack * m * r, "U'A": stack * r * n}
    if sharding == "fsdp" and not layout.batch:
        if layout.transposed:
            return {"A Y": m * r}
        return {"U_minus'A": r * n, "first Gram matrix": r * r, "second Gram matrix": r * r, "U'A": r * n + r * r}
    return {}
