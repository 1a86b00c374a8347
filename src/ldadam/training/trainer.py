"""transformers' Trainer with four things changed.

The loss is seen at full precision, batches come in order, evaluation is weighted by tokens, and checkpoints appear
whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from ldadam.training import checkpoints
from ldadam.training.config import PretrainConfig
from ldadam.training.errors import RunError
from ldadam.training.packing import PackedCorpus
from ldadam.training.recorder import STATE_FILE, Recorder
from ldadam.training.run_folder import what_can_be_resumed

SCHEDULES = {
    "cosine": "cosine_with_min_lr",
    "linear": "linear",
    "constant": "constant_with_warmup",
}


def collate(blocks: list[Tensor]) -> dict[str, Tensor]:
    """A batch for a causal language model; the model shifts the labels itself."""
    batch = torch.stack(blocks).long()
    return {"input_ids": batch, "labels": batch}


@torch.no_grad()
def token_weighted_loss(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> tuple[float, int]:
    """Mean loss per predicted token over all batches, and how many tokens that is."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        predicted = int((batch["labels"][..., 1:] != -100).sum())
        total += model(**batch).loss.double().item() * predicted
        count += predicted
    model.train(was_training)
    return total / count, count


class PretrainTrainer(Trainer):
    """The loop, gradient accumulation, clipping, scheduling, saving and resuming are the base class's."""

    def __init__(self, *, recorder: Recorder, run: Path, keep_checkpoints: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.recorder = recorder
        self.run_folder = run
        self.keep_checkpoints = keep_checkpoints
        self._saving_to: Path | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Hand the loss of each micro-batch to the recorder; the base class only logs it rounded."""
        loss = super().training_step(*args, **kwargs)
        self.recorder.add_loss(loss)
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """Blocks come in the data set's own order, which is already shuffled and survives a resume."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(dataset) if hasattr(dataset, "__len__") else None  # pyright: ignore

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Validation loss per token. The base class averages over batches, whatever their size."""
        with self.recorder.clock.paused():
            batches = (self._prepare_inputs(batch) for batch in self.get_eval_dataloader(eval_dataset))
            loss, num_tokens = token_weighted_loss(self.model, batches)  # pyright: ignore[reportArgumentType]
        metrics = {f"{metric_key_prefix}_loss": loss, f"{metric_key_prefix}_tokens": num_tokens}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_output_dir(self, trial: Any) -> str:
        """The run's folder, or the temporary one while a checkpoint is being written."""
        return str(self._saving_to or self.run_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write under a temporary name, then rename. A failure leaves the last good checkpoint and one sentence."""
        name = f"checkpoint-{self.state.global_step}"
        partial = self.run_folder / checkpoints.PARTIAL
        with self.recorder.clock.paused(), self._explain_failed_save(name):
            checkpoints.remove_partial(self.run_folder)
            self._saving_to = partial
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving_to = None
            state = json.dumps(self.recorder.state())
            (partial / name / STATE_FILE).write_text(state, encoding="utf-8")
            checkpoints.publish(partial / name, self.run_folder / name)
            checkpoints.remove_partial(self.run_folder)
            checkpoints.keep_last(self.run_folder, self.keep_checkpoints)

    @contextlib.contextmanager
    def _explain_failed_save(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            checkpoints.remove_partial(self.run_folder)
            reason = checkpoints.disk_reason(error)
            if reason is None:
                raise
            raise RunError(
                f"could not write {name} in {self.run_folder}: {reason}; make room, then: "
                f"{what_can_be_resumed(self.run_folder)}"
            ) from error


def training_arguments(config: PretrainConfig, run: Path, device: torch.device) -> TrainingArguments:
    """The Trainer's settings for this run."""
    assert config.steps and config.batch_size and config.grad_accum and config.lr is not None
    cosine = {"min_lr_rate": config.final_lr} if config.schedule == "cosine" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = TrainingArguments(
            output_dir=str(run),
            max_steps=config.steps,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.batch_size,
            gradient_accumulation_steps=config.grad_accum,
            learning_rate=config.lr,
            lr_scheduler_type=SCHEDULES[config.schedule],
            lr_scheduler_kwargs=cosine,
            warmup_steps=round(config.warmup * config.steps),
            max_grad_norm=config.max_grad_norm or 0.0,
            seed=config.seed,
            use_cpu=device.type == "cpu",
            eval_strategy="steps",
            eval_steps=config.eval_every,
            save_strategy="steps",
            save_steps=config.save_every or 0,
            logging_strategy="no",
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
            log_level="error",
        )
    # Several GPUs in one process would mean DataParallel, whose replicas see other gradients than the optimizer.
    args._n_gpu = min(1, args.n_gpu)
    return args


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
    callbacks: list[TrainerCallback],
) -> PretrainTrainer:
    """A trainer that is ready for `train()`."""
    from transformers import PrinterCallback
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # there is one already
    trainer = PretrainTrainer(
        recorder=recorder,
        run=run,
        keep_checkpoints=config.keep_checkpoints,
        model=model,
        args=training_arguments(config, run, device),
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=collate,
        processing_class=tokenizer,
        optimizers=(optimizer, None),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
