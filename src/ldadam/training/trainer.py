"""The trainer of a pre-training run: evaluation by tokens, and several processes.

Those are ours to arrange: transformers' Trainer knows of one process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedTokenizerFast, TrainerCallback
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from ldadam import LDAdamW
from ldadam.training import rank_checkpoints
from ldadam.training.clipping import ClipCompressed
from ldadam.training.config import PretrainConfig
from ldadam.training.layouts import wrap_model
from ldadam.training.packing import PackedCorpus
from ldadam.training.ranks import Ranks
from ldadam.training.recorded_trainer import RecordedTrainer, training_arguments
from ldadam.training.recorder import Recorder
from ldadam.training.shares import IGNORED, collate, share_of_rank, validation_share


@torch.no_grad()
def total_loss(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> tuple[float, int]:
    """The loss summed over all predicted tokens of all batches, and how many tokens that is."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        predicted = int((batch["labels"][..., 1:] != IGNORED).sum())
        mean = model(**batch).loss.double().item()  # NaN where nothing is predicted
        total += mean * predicted if predicted else 0.0
        count += predicted
    model.train(was_training)
    return total, count


class PretrainTrainer(RecordedTrainer):
    """A trainer of packed blocks of text."""

    settings: PretrainConfig

    def __init__(self, *, validation: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.validation = validation

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """The base class, which knows of one process, would leave the model as it is."""
        return wrap_model(model, self.settings, self.optimizer) if training else model  # pyright: ignore[reportArgumentType]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As the base class does."""
        with self._averaging_later(model):
            return super().training_step(model, inputs, *args, **kwargs)

    def _averaging_later(self, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Only the last micro-batch of a step averages gradients over ranks, where each has a whole one."""
        if isinstance(model, DistributedDataParallel) and not self.accelerator.sync_gradients:
            return model.no_sync()
        return contextlib.nullcontext()

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Validation loss per token. The base class averages over batches, whatever their size."""
        self.ranks.waiting_for = f"the validation loss after step {self.state.global_step}"
        with self.recorder.clock.paused():
            share = validation_share(
                self.validation, batch_size=self.settings.batch_size or 1, rank=self.ranks.rank, size=self.ranks.size
            )
            total, count = total_loss(self.model, (self._prepare_inputs(batch) for batch in share))  # pyright: ignore[reportArgumentType]
            num_tokens = int(self.ranks.sum(count))
            loss = self.ranks.sum(total) / num_tokens
        metrics = {f"{metric_key_prefix}_loss": loss, f"{metric_key_prefix}_tokens": num_tokens}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _write_checkpoint(self, model: nn.Module, trial: Any, partial: Path) -> None:
        """Each rank writes its own part, where there are several."""
        if self.settings.parallel == "none":
            super()._write_checkpoint(model, trial, partial)
        else:
            self.ranks.on_first(lambda: self._save_progress(partial))
            rank_checkpoints.save(self.model, self.optimizer, partial)  # pyright: ignore[reportArgumentType]

    def _save_progress(self, folder: Path) -> None:
        """What is the same on every rank: all but weights and optimizer state."""
        folder.mkdir(parents=True)
        self.model.config.save_pretrained(folder)  # pyright: ignore
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)  # pyright: ignore

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights, whichever layout wrote them."""
        if self._is_whole(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            rank_checkpoints.load_model_(self.model, Path(resume_from_checkpoint))  # pyright: ignore

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the rest, whichever layout wrote it."""
        if checkpoint is None or self._is_whole(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        rank_checkpoints.load_optimizer_(self.model, self.optimizer, Path(checkpoint))  # pyright: ignore
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))  # pyright: ignore

    def _is_whole(self, checkpoint: str) -> bool:
        """Whether one process wrote it and one process reads it."""
        return self.settings.parallel == "none" and not rank_checkpoints.is_distributed(Path(checkpoint))


def make_trainer(
    config: PretrainConfig,
    *,
    run: Path,
    device: torch.device,
    model: Any,
    optimizer: torch.optim.Optimizer,
    data: PackedCorpus,
    tokenizer: PreTrainedTokenizerFast,
    recorder: Recorder,
    ranks: Ranks,
    callbacks: list[TrainerCallback],
) -> PretrainTrainer:
    """A trainer that is ready for `train()`."""
    assert config.batch_size
    args = training_arguments(config, run, device, batch_size=config.batch_size // ranks.size)
    if config.parallel == "compressed" and config.max_grad_norm:
        assert isinstance(optimizer, LDAdamW)
        args.max_grad_norm = 0.0
        callbacks = [*callbacks, ClipCompressed(optimizer, config.max_grad_norm)]
    return PretrainTrainer(
        recorder=recorder,
        ranks=ranks,
        settings=config,
        run=run,
        validation=data.validation,
        model=model,
        args=args,
        train_dataset=share_of_rank(data.train, batch_size=config.batch_size, rank=ranks.rank, size=ranks.size),
        eval_dataset=data.validation,
        data_collator=collate,
        processing_class=tokenizer,
        optimizers=(optimizer, None),
        callbacks=callbacks,
    )
