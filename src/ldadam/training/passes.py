"""The order in which a run sees its samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class ShuffledPasses(Dataset[Any]):
    """`num_samples` samples in a seeded order: every one once, then all again in another order, and so on.

    The order is a function of the index, so a resumed run can start in the middle.
    """

    def __init__(self, samples: Tensor | Sequence[Any], *, num_samples: int, seed: int) -> None:
        self.samples = samples
        self.num_samples = num_samples
        self.seed = seed
        self._pass = -1
        self._order = torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Any:
        which_pass, position = divmod(index, len(self.samples))
        if which_pass != self._pass:
            generator = torch.Generator().manual_seed(self.seed + which_pass)
            self._order = torch.randperm(len(self.samples), generator=generator)
            self._pass = which_pass
        return self.samples[int(self._order[position])]
