"""What an optimizer does with each parameter, as a table: its name, shape, side, rank, reason and bytes."""

from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from ldadam.backends import explain
from ldadam.hyperparameters import Hyperparameters, resolve
from ldadam.layout import MatrixLayout
from ldadam.optimizer import LDAdamW, layout_of, param_name
from ldadam.param_groups import dense_reason
from ldadam.state import planned_bytes


@dataclass(frozen=True)
class ParamDescription:
    """One parameter: its shape, the projected side and rank (None if dense), why, and planned bytes by state tensor."""

    name: str
    shape: tuple[int, ...]
    side: str | None
    rank: int | None
    reason: str
    state_bytes: dict[str, int]


@dataclass(frozen=True)
class Description:
    """Every parameter of an optimizer; `print` it for a table."""

    rows: list[ParamDescription]
    backends: list[str]

    @property
    def state_bytes(self) -> dict[str, int]:
        """Planned bytes of state in all, by state tensor."""
        total: Counter[str] = Counter()
        for row in self.rows:
            total.update(row.state_bytes)
        return dict(total)

    def __str__(self) -> str:
        """A plain-text table with a line of totals."""
        cells = [("name", "shape", "side", "rank", "state bytes", "why")]
        cells += [
            (
                row.name,
                "x".join(map(str, row.shape)) or "scalar",
                row.side or "-",
                "dense" if row.rank is None else str(row.rank),
                f"{sum(row.state_bytes.values()):,}",
                row.reason,
            )
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        kinds = ", ".join(f"{kind} {size:,}" for kind, size in self.state_bytes.items())
        lines.append(f"total {sum(self.state_bytes.values()):,} bytes: {kinds}")
        lines += [f"backend {backend}" for backend in self.backends]
        return "\n".join(line.rstrip() for line in lines)


def describe(optimizer: LDAdamW) -> Description:
    """What `optimizer` does with each parameter, planned from shapes: no state needs to exist.

    Args:
        optimizer: an `LDAdamW`.

    Examples:
        >>> import torch
        >>> from ldadam import LDAdamW, describe
        >>> model = torch.nn.Linear(64, 32)
        >>> print(describe(LDAdamW(model.named_parameters(), rank=8)))
        name    shape  side  rank   state bytes  why
        weight  32x64  left  8      13,316       both sides exceed the rank
        bias    32     -     dense  260          not a matrix
        total 13,576 bytes: step 8, exp_avg 2,176, exp_avg_sq 2,176, basis 1,024, error_buffer 8,192
        backend batched: Triton's kernels need CUDA and the triton package; parameters are on cpu
    """
    rows, backends = [], []
    for index, group in enumerate(optimizer.param_groups):
        hyper = resolve(group, index)
        for position, param in enumerate(group["params"]):
            layout = layout_of(param, hyper)
            backends.append(explain(hyper.backend, param.device))
            name = param_name(group, index, position)
            rows.append(
                ParamDescription(
                    name=name,
                    shape=tuple(param.shape),
                    side=layout.side if layout else None,
                    rank=layout.rank if layout else None,
                    reason=_reason(name, param, layout, hyper),
                    state_bytes=planned_bytes(param, layout, hyper),
                )
            )
    return Description(rows, sorted(set(backends)))


def _reason(name: str, param: Tensor, layout: MatrixLayout | None, hyper: Hyperparameters) -> str:
    if layout is not None:
        return "both sides exceed the rank"
    if param.ndim < 2:
        return "not a matrix"
    if hyper.rank is not None:
        return "a side does not exceed the rank"
    return dense_reason(name) or "its group has rank=None"
