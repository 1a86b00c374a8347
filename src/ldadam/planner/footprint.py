"""Bytes on one device, by what they are for, and the cards that they fit on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

# Memory of common cards, in GiB, as they are sold.
CARDS = (8, 12, 16, 24, 40, 80, 141)

# What the CUDA context, libraries and gaps between the allocator's blocks take of a card: not planned, but kept free.
RESERVED_BYTES = 2**30


@dataclass(frozen=True)
class StateBytes:
    """Bytes of optimizer state by kind.

    Attributes:
        basis: bases of low-rank matrices, or the projections of other low-rank optimizers.
        moments: of low-rank matrices.
        dense_moments: of other weights; of quantised optimizers, codes, scales and tables.
        error_buffer: error buffers, with their scales.
        step: counters.
    """

    basis: int = 0
    moments: int = 0
    dense_moments: int = 0
    error_buffer: int = 0
    step: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())


def sort_state(planned: Iterable[tuple[Mapping[str, int], bool]]) -> StateBytes:
    """State by kind, from the bytes of each parameter's state tensors by key and whether it is low-rank.

    Raises:
        KeyError: a state tensor has a key of no known kind.
    """
    totals = dict.fromkeys(asdict(StateBytes()), 0)
    for state, is_low_rank in planned:
        for key, num_bytes in state.items():
            kind = _KINDS[key]
            totals["dense_moments" if kind == "moments" and not is_low_rank else kind] += num_bytes
    return StateBytes(**totals)


_KINDS = {
    "step": "step",
    "num_skipped": "step",
    "exp_avg": "moments",
    "exp_avg_sq": "moments",
    "basis": "basis",
    "error_buffer": "error_buffer",
    "error_scale": "error_buffer",
}


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device with one optimizer.

    Attributes:
        optimizer: its name.
        weights: of the model.
        gradients: alive at once: all, or the largest one with `step_in_backward`.
        state: of the optimizer, by kind.
        step_peak: what a step allocates and frees; None where it is not known.
        messages: the largest message of a step, packed to be reduced over devices.
        activations: estimated peak of forward and backward; None where it is not estimated.
        gathered: weights, and gradients before they are reduced, that FSDP makes whole during forward and backward.
        step_in_backward: whether parameters are stepped while activations are alive.
    """

    optimizer: str
    weights: int
    gradients: int
    state: StateBytes
    step_peak: int | None
    messages: int
    activations: int | None
    gathered: int
    step_in_backward: bool

    @property
    def passes(self) -> int:
        """Bytes that only the forward and backward pass need."""
        return (self.activations or 0) + self.gathered

    @property
    def step(self) -> int:
        """Bytes that only the step needs."""
        return (self.step_peak or 0) + self.messages

    @property
    def total(self) -> int:
        """Bytes at the peak of training: what stays, and the larger of passes and step, or both where they overlap."""
        stays = self.weights + self.gradients + self.state.total
        return stays + (self.passes + self.step if self.step_in_backward else max(self.passes, self.step))

    @property
    def cards(self) -> tuple[int, ...]:
        """The cards that it fits on, by their GiB, with `RESERVED_BYTES` left free."""
        return tuple(card for card in CARDS if self.total + RESERVED_BYTES <= card * 2**30)
