"""Every weight as the optimizer sees it, whole and as the largest part that one device holds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldadam.distributed.plan import shard_layout, shard_shape
from ldadam.hyperparameters import Hyperparameters, resolve
from ldadam.layout import MatrixLayout
from ldadam.optimizer import LDAdamW, layout_of, param_name


@dataclass(frozen=True)
class Shard:
    """One weight that is trained.

    Attributes:
        name: of the parameter.
        param: the whole, on meta.
        layout: of the whole; None for dense AdamW.
        local: the largest part on one device, on meta.
        local_layout: of that part, with the whole's side and rank.
        hyper: of its group.
        parts: into how many it is divided.
    """

    name: str
    param: Tensor
    layout: MatrixLayout | None
    local: Tensor
    local_layout: MatrixLayout | None
    hyper: Hyperparameters
    parts: int

    @property
    def gathered_bytes(self) -> int:
        """Bytes of the whole as FSDP2 gathers and reduces it: every part is padded to the largest."""
        return self.parts * self.local.nbytes if self.local.dim() else self.param.nbytes

    @property
    def unit(self) -> str:
        """What FSDP gathers it with: the layer it is in, such as model.layers.3, or "" for the rest of the model."""
        found = re.match(r"(.*?\.\d+)\.", self.name)
        return found[1] if found else ""


def find_shards(optimizer: LDAdamW, *, parts: int) -> list[Shard]:
    """The weights of an optimizer's groups, divided into `parts` along their first dimension."""
    shards = []
    for index, group in enumerate(optimizer.param_groups):
        hyper = resolve(group, index)
        for position, param in enumerate(group["params"]):
            layout = layout_of(param, hyper)
            local_layout = shard_layout(layout, parts) if layout else None
            name = param_name(group, index, position)
            shards.append(Shard(name, param, layout, local_part(param, parts), local_layout, hyper, parts))
    return shards


def local_part(param: Tensor, parts: int) -> Tensor:
    """The largest of `parts` shards of a tensor, on meta."""
    return torch.empty(shard_shape(tuple(param.shape), parts), dtype=param.dtype, device="meta")


def bytes_by_unit(shards: Iterable[Shard]) -> dict[str, int]:
    """Bytes of the whole weights of each unit of FSDP, as it gathers them."""
    units: dict[str, int] = {}
    for shard in shards:
        units[shard.unit] = units.get(shard.unit, 0) + shard.gathered_bytes
    return units
