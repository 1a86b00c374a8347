"""Which sequences each rank sees: a batch is that of one process, dealt out, so results do not depend on the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

IGNORED = -100  # the label of a token that is not to be predicted


def collate(blocks: list[Tensor]) -> dict[str, Tensor]:
    """A batch for a causal language model; the model shifts the labels itself."""
    batch = torch.stack(blocks).long()
    return {"input_ids": batch, "labels": batch}


def share_of_rank(blocks: Dataset[Tensor], *, batch_size: int, rank: int, size: int) -> Dataset[Tensor]:
    """The blocks of one of `size` ranks: of every `batch_size` in their order, the `rank`-th part."""
    if size == 1:
        return blocks
    share = StreamedShare if isinstance(blocks, IterableDataset) else Share
    return share(blocks, batch_size=batch_size, rank=rank, size=size)  # pyright: ignore[reportArgumentType]


@dataclass(eq=False)
class Share(Dataset[Tensor]):
    """A share of blocks that are reached by their index."""

    blocks: Dataset[Tensor]
    batch_size: int
    rank: int
    size: int

    def __len__(self) -> int:
        return len(self.blocks) // self.size  # pyright: ignore[reportArgumentType]

    def __getitem__(self, index: int) -> Tensor:
        length = self.batch_size // self.size
        batch, position = divmod(index, length)
        return self.blocks[batch * self.batch_size + self.rank * length + position]


@dataclass(eq=False)
class StreamedShare(IterableDataset[Tensor]):
    """A share of a stream of blocks, all of which every rank reads."""

    blocks: IterableDataset[Tensor]
    batch_size: int
    rank: int
    size: int

    def __iter__(self) -> Iterator[Tensor]:
        length = self.batch_size // self.size
        for index, block in enumerate(self.blocks):
            if index % self.batch_size // length == self.rank:
                yield block


def validation_share(blocks: Tensor, *, batch_size: int, rank: int, size: int) -> Iterator[dict[str, Tensor]]:
    """The batches on which a rank evaluates: equally many on each, since sharded models run together.

    A rank that is left without a block of the last batch gets one whose tokens are not to be predicted.
    """
    for group in blocks.split(batch_size):
        own = group.tensor_split(size)[rank]
        batch = collate(list(own if len(own) else group[:1]))
        if not len(own):
            batch["labels"] = torch.full_like(batch["labels"], IGNORED)
        yield batch
