"""transformers' Trainer with what every run of ours changes in it.

The loss is seen at full precision, batches come in order, checkpoints appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from ldadam.training import checkpoints
from ldadam.training.errors import FailedTogether
from ldadam.training.quiet import silence_transformers
from ldadam.training.ranks import Ranks
from ldadam.training.recorder import STATE_FILE, Recorder
from ldadam.training.run_config import RunConfig
from ldadam.training.run_folder import what_can_be_resumed

SCHEDULES = {
    "cosine": "cosine_with_min_lr",
    "linear": "linear",
    "constant": "constant_with_warmup",
}


class RecordedTrainer(Trainer):
    """The loop, gradient accumulation, clipping, scheduling, saving and resuming are the base class's."""

    def __init__(self, *, recorder: Recorder, ranks: Ranks, settings: RunConfig, run: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)
        self.recorder = recorder
        self.ranks = ranks
        self.settings = settings
        self.run_folder = run
        self._saving_to: Path | None = None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Hand the loss of each micro-batch to the recorder; the base class only logs it rounded."""
        num_tokens = inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.recorder.add_loss(loss, num_tokens)
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """Blocks come in the data set's own order, which is already shuffled and survives a resume."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(dataset) if hasattr(dataset, "__len__") else None  # pyright: ignore

    def _get_output_dir(self, trial: Any) -> str:
        """The run's folder, or the temporary one while a checkpoint is being written."""
        return str(self._saving_to or self.run_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write under a temporary name, then rename. A failure leaves the last good checkpoint and one sentence."""
        if self.settings.keep_checkpoints == 0 and self.state.global_step >= self.args.max_steps:
            return self.ranks.on_first(lambda: checkpoints.keep_last(self.run_folder, 0))
        name = f"checkpoint-{self.state.global_step}"
        self.ranks.waiting_for = name
        with self.recorder.clock.paused(), self._explain_failed_save(name):
            self.ranks.on_first(lambda: checkpoints.remove_partial(self.run_folder))
            self._write_checkpoint(model, trial, self.run_folder / checkpoints.PARTIAL / name)
            self.ranks.on_first(lambda: self._publish(self.run_folder / checkpoints.PARTIAL / name))

    def _write_checkpoint(self, model: nn.Module, trial: Any, partial: Path) -> None:
        """The checkpoint of one process, which `from_pretrained` reads where no adapters are in the model."""
        self._saving_to = partial.parent
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_to = None

    def _publish(self, partial: Path) -> None:
        (partial / STATE_FILE).write_text(json.dumps(self.recorder.state()), encoding="utf-8")
        checkpoints.publish(partial, self.run_folder / partial.name)
        checkpoints.remove_partial(self.run_folder)
        checkpoints.keep_last(self.run_folder, max(1, self.settings.keep_checkpoints))

    @contextlib.contextmanager
    def _explain_failed_save(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.ranks.is_first:
                checkpoints.remove_partial(self.run_folder)
            reason = checkpoints.disk_reason(error)
            if reason is None:
                raise
            raise FailedTogether(
                f"could not write {name} in {self.run_folder}: {reason}; make room, then: "
                f"{what_can_be_resumed(self.run_folder)}"
            ) from error


def training_arguments(config: RunConfig, run: Path, device: torch.device, *, batch_size: int) -> TrainingArguments:
    """The Trainer's settings for this run, with the batch size of this rank."""
    assert config.steps and config.batch_size and config.grad_accum and config.lr is not None
    silence_transformers()
    own_gpu = torch.cuda.current_device() if device.type == "cuda" else None
    cosine = {"min_lr_rate": config.final_lr} if config.schedule == "cosine" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = TrainingArguments(
            output_dir=str(run),
            max_steps=config.steps,
            per_device_train_batch_size=batch_size,
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
    # As the only process that the Trainer knows of, it has just taken the first GPU.
    if own_gpu is not None:
        torch.cuda.set_device(own_gpu)
    args._setup_devices = device
    return args
