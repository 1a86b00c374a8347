"""Clipping where ranks keep the gradients of low-rank weights to themselves."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from ldadam import LDAdamW
from ldadam.distributed import clip_grad_norm_


class ClipCompressed(TrainerCallback):
    """Scales the gradients of all ranks by one factor, before each step; the Trainer would take one of each rank."""

    def __init__(self, optimizer: LDAdamW, max_norm: float) -> None:
        self._optimizer = optimizer
        self._max_norm = max_norm

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clip; called by the Trainer when all micro-batches are summed."""
        clip_grad_norm_(self._optimizer, self._max_norm)
