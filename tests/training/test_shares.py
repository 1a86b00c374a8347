"""Shares of all ranks together are the batches of one process, in their order."""

import pytest
import torch
from torch.utils.data import IterableDataset

from ldadam.training.passes import ShuffledPasses
from ldadam.training.shares import IGNORED, share_of_rank, validation_share

BLOCKS = torch.arange(24).reshape(12, 2)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(BLOCKS)


def shares(blocks, size):
    return [share_of_rank(blocks, batch_size=4, rank=rank, size=size) for rank in range(size)]


def in_order(blocks):
    return list(blocks) if isinstance(blocks, IterableDataset) else [blocks[index] for index in range(len(blocks))]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("streamed", [False, True])
def test_each_batch_is_dealt_out(size, streamed):
    blocks = Stream() if streamed else ShuffledPasses(BLOCKS, num_samples=12, seed=3)
    whole = in_order(blocks)
    found = [in_order(share) for share in shares(blocks, size)]
    length = 4 // size
    dealt = [block for batch in range(3) for share in found for block in share[batch * length : (batch + 1) * length]]
    assert torch.stack(dealt).equal(torch.stack(whole))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("num_blocks", [1, 5, 12])
def test_validation_sees_each_block_once_in_equally_many_batches(size, num_blocks):
    """FSDP gathers weights in every forward pass, so that one more on a single rank would wait for ever."""
    found = [list(validation_share(BLOCKS[:num_blocks], batch_size=4, rank=rank, size=size)) for rank in range(size)]
    assert {len(batches) for batches in found} == {-(-num_blocks // 4)}
    predicted = [batch["labels"] for batches in found for batch in batches if (batch["labels"] != IGNORED).any()]
    assert sorted(torch.cat(predicted).tolist()) == BLOCKS[:num_blocks].tolist()
