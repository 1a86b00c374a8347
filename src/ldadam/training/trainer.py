"""transformers' Trainer with five things changed.

The loss is seen at full precision, batches come in order, evaluation is weighted by tokens, checkpoints appear whole or
not at all, and several processes are ours to arrange: the Trainer knows of one.
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
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from ldadam.training import checkpoints, rank_checkpoints
from ldadam.training.config import PretrainConfig
from ldadam.training.errors import FailedTogether
from ldadam.training.layouts import wrap_model
from ldadam.training.packing import PackedCorpus
from ldadam.training.ranks import Ranks
from ldadam.training.recorder import STATE_FILE, Recorder
from ldadam.training.run_folder import what_can_be_resumed
from ldadam.training.shares import IGNORED, collate, share_of_rank, validation_share

SCHEDULES = {
    "cosine": "cosine_with_min_lr",
    "linear": "linear",
    "constant": "constant_with_warmup",
}


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


class PretrainTrainer(Trainer):
    """The loop, gradient accumulation, clipping, scheduling, saving and resuming are the base class's."""

    def __init__(
        self,
        *,
        recorder: Recorder,
        ranks: Ranks,
        settings: PretrainConfig,
        run: Path,
        validation: Tensor,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.recorder = recorder
        self.ranks = ranks
        self.settings = settings
        self.run_folder = run
        self.validation = validation
        self._saving_to: Path | None = None

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """The base class, which knows of one process, would leave the model as it is."""
        return wrap_model(model, self.settings, self.optimizer) if training else model  # pyright: ignore[reportArgumentType]

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Hand the loss of each micro-batch to the recorder; the base class only logs it rounded."""
        with self._averaging_later(model):
            loss = super().training_step(model, *args, **kwargs)
        self.recorder.add_loss(loss)
        return loss

    def _averaging_later(self, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Only the last micro-batch of a step averages gradients over ranks, where each has a whole one."""
        if isinstance(model, DistributedDataParallel) and not self.accelerator.sync_gradients:
            return model.no_sync()
        return contextlib.nullcontext()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """Blocks come in the data set's own order, which is already shuffled and survives a resume."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(dataset) if hasattr(dataset, "__len__") else None  # pyright: ignore

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

    def _get_output_dir(self, trial: Any) -> str:
        """The run's folder, or the temporary one while a checkpoint is being written."""
        return str(self._saving_to or self.run_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write under a temporary name, then rename. A failure leaves the last good checkpoint and one sentence."""
        name = f"checkpoint-{self.state.global_step}"
        partial = self.run_folder / checkpoints.PARTIAL / name
        self.ranks.waiting_for = name
        with self.recorder.clock.paused(), self._explain_failed_save(name):
            self.ranks.on_first(lambda: checkpoints.remove_partial(self.run_folder))
            if self.settings.parallel == "none":
                self._save_whole(model, trial)
            else:
                self.ranks.on_first(lambda: self._save_progress(partial))
                rank_checkpoints.save(self.model, self.optimizer, partial)  # pyright: ignore[reportArgumentType]
            self.ranks.on_first(lambda: self._publish(partial))

    def _save_whole(self, model: nn.Module, trial: Any) -> None:
        """The checkpoint of one process, which `from_pretrained` reads."""
        self._saving_to = self.run_folder / checkpoints.PARTIAL
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_to = None

    def _save_progress(self, folder: Path) -> None:
        """What is the same on every rank: all but weights and optimizer state."""
        folder.mkdir(parents=True)
        self.model.config.save_pretrained(folder)  # pyright: ignore
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)  # pyright: ignore

    def _publish(self, partial: Path) -> None:
        (partial / STATE_FILE).write_text(json.dumps(self.recorder.state()), encoding="utf-8")
        checkpoints.publish(partial, self.run_folder / partial.name)
        checkpoints.remove_partial(self.run_folder)
        checkpoints.keep_last(self.run_folder, self.settings.keep_checkpoints)

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


def training_arguments(
    config: PretrainConfig, run: Path, device: torch.device, *, batch_size: int
) -> TrainingArguments:
    """The Trainer's settings for this run, with the batch size of this rank."""
    assert config.steps and config.batch_size and config.grad_accum and config.lr is not None
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
    from transformers import PrinterCallback
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    assert config.batch_size
    disable_progress_bar()  # there is one already
    set_verbosity_error()  # it warns of a process group that it does not know of
    trainer = PretrainTrainer(
        recorder=recorder,
        ranks=ranks,
        settings=config,
        run=run,
        validation=data.validation,
        model=model,
        args=training_arguments(config, run, device, batch_size=config.batch_size // ranks.size),
        train_dataset=share_of_rank(data.train, batch_size=config.batch_size, rank=ranks.rank, size=ranks.size),
        eval_dataset=data.validation,
        data_collator=collate,
        processing_class=tokenizer,
        optimizers=(optimizer, None),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
