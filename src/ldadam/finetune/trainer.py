"""The trainer of a fine-tuning run: the goal's own loss and evaluation."""

from __future__ import annotations

from typing import Any

from ldadam.finetune.goals import Goal
from ldadam.training.recorded_trainer import RecordedTrainer


class FinetuneTrainer(RecordedTrainer):
    """A trainer of samples whose batches may differ in size."""

    def __init__(self, *, goal: Goal, **kwargs: Any) -> None:
        super().__init__(
            model=goal.model,
            data_collator=goal.collate,
            compute_loss_func=goal.loss,
            processing_class=goal.tokenizer,
            eval_dataset=[],
            **kwargs,
        )
        self.goal = goal

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Validation loss and scores, over all validation examples alike."""
        with self.recorder.clock.paused():
            loss, scores = self.goal.evaluate(self.model)
        metrics = {f"{metric_key_prefix}_loss": loss, f"{metric_key_prefix}_scores": scores}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
