"""Who holds what, and what crosses between devices, as data: no process group is needed to ask.

All m x n work of a step is linear in A, so that only small factors cross. What a device holds of one matrix, the
projected side first, and what is all-reduced in a step, r being the rank:

    ddp          everything                           the gradient
    compressed   everything, and an error buffer of   U_minus'A (r n), A Y (m r), U'A (r n)
                 its own: the mean of all is the one
                 of a single device
    fsdp, tall   rows of W, E; columns of m, v;       A Y (m r), m_minus Y (r r), the largest of Y (r)
                 the whole U
    fsdp, wide   rows of W, E, U; the whole m, v      U_minus'A (r n), X and U_minus (m r), U'A (r n), U'U_minus (r r);
                                                      with `scaled_residual` U'G (r n) and |G_j|^2 (n)

"Tall" is a matrix whose columns are projected: its rows, which fsdp divides, are the n side. Stacks of matrices
(experts) are divided along the stack under fsdp, and nothing crosses.
"""

import math
from collections.abc import Mapping, Sequence
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
        phase: when: in the "forward" or "backward" pass, or in the optimizer's "step".
    """

    kind: str
    what: str
    num_bytes: int
    count: int
    phase: str = "step"

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


@dataclass(frozen=True)
class Sharing:
    """Among whom a matrix is shared, the projected side first.

    Attributes:
        m, n: whether ranks hold blocks of that side.
        replicas: whether ranks have gradients of their own.
    """

    m: bool = False
    n: bool = False
    replicas: bool = False


def sharing_of(layout: MatrixLayout, sharding: str) -> Sharing:
    """How a parameter is shared with one of `SHARDINGS`."""
    if sharding == "fsdp" and not layout.batch:
        return Sharing(m=not layout.transposed, n=layout.transposed)
    return Sharing(replicas=sharding == "compressed")


# Bytes of the longest message that a step sends; but what a single parameter sends at once is never divided.
MAX_MESSAGE_BYTES = 256 * 2**20

# What is sent together, for all matrices of a wave: the terms of one reduction point.
MESSAGES = (
    ("U_minus'A",),
    ("largest of Y",),
    ("A Y", "m_minus Y", "X", "B", "U_minus"),
    ("U'A", "U'U_minus"),
    ("U'G", "|G_j|^2"),
)


def terms(
    m: int, n: int, r: int, sharing: Sharing, *, decomposes: bool = False, adds_residual: bool = False
) -> dict[str, int]:
    """Numbers of one whole matrix that a step reduces, by what they are, in the order of the step.

    Args:
        m, n, r: its sides and its rank.
        sharing: among whom.
        decomposes: whether the basis comes from a decomposition, of the whole target B, as a first one may.
        adds_residual: whether what the subspace misses of G moves the weights too.
    """
    with_m, with_n = sharing.m or sharing.replicas, sharing.n or sharing.replicas
    if decomposes:
        tracked = {"B": m * n, "U_minus": m * r * sharing.m}
    else:
        tracked = {
            "largest of Y": r * sharing.n,
            "A Y": m * r * with_n,
            "m_minus Y": r * r * sharing.n,
            "X": m * r * sharing.m,
            "U_minus": m * r * sharing.m,
        }
    found = {"U_minus'A": r * n * with_m, **tracked, "U'A": r * n * with_m, "U'U_minus": r * r * sharing.m}
    if adds_residual:
        found |= {"U'G": r * n * sharing.m, "|G_j|^2": n * sharing.m}
    return {what: numbers for what, numbers in found.items() if numbers}


def reductions(layout: MatrixLayout, sharding: str, *, adds_residual: bool = False) -> Mapping[str, int]:
    """Numbers of one parameter that a step all-reduces, by what they are, in the order of the step."""
    found = terms(layout.m, layout.n, layout.rank, sharing_of(layout, sharding), adds_residual=adds_residual)
    return {what: math.prod(layout.batch) * numbers for what, numbers in found.items()}


def messages(sizes: Mapping[str, int]) -> dict[tuple[str, ...], int]:
    """The size of each of `MESSAGES` that is sent, from those of terms."""
    found = {names: sum(sizes.get(name, 0) for name in names) for names in MESSAGES}
    return {names: size for names, size in found.items() if size}


def waves(sizes: Sequence[int], *, bound: int | None = None) -> list[list[int]]:
    """The indices of things, in order, that travel together: as many as fit the bound, or a larger one alone.

    Args:
        sizes: of each, such as the bytes of its longest message; they have to be the same on all ranks.
        bound: of their sum; by default `MAX_MESSAGE_BYTES`.
    """
    found: list[list[int]] = []
    room = 0
    for index, size in enumerate(sizes):
        if not found or size > room:
            found.append([])
            room = MAX_MESSAGE_BYTES if bound is None else bound
        found[-1].append(index)
        room -= size
    return found
