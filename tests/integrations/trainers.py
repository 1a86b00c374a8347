"""Trainers of Transformers, PEFT and TRL around the tiny model, and the loop that TRL's are compared with."""

from typing import Any

import torch
import trl
from by_hand import BATCH_SIZE, LR, steps_by_hand
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_llama import model as tiny_model
from tiny_llama import rows, texts, tokenizer
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from ldadam.integrations.transformers import LDAdamWFactory

NUM_STEPS = 4


def arguments(folder, of: type[TrainingArguments] = TrainingArguments, **options: Any) -> Any:
    settings = {"max_steps": NUM_STEPS, "per_device_train_batch_size": BATCH_SIZE, "learning_rate": LR}
    settings |= {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential", "save_strategy": "no"}
    settings |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 2, "max_grad_norm": 0.0}
    if of is not TrainingArguments:  # where TRL has defaults of its own
        settings |= {"bf16": False, "gradient_checkpointing": False, "max_length": 64}
    return of(output_dir=str(folder), **(settings | options))


def choice(options: dict[str, Any] | None) -> tuple[type, dict[str, Any]]:
    """LDAdamW for a trainer; numbers as text, which a command line would give."""
    return LDAdamWFactory, {"lr": str(LR), "rank": "8", **(options or {})}


def plain_trainer(folder, *, model: nn.Module | None = None, optimizer=None, callbacks=(), **options: Any) -> Trainer:
    return Trainer(
        model or tiny_model(),
        arguments(folder, **options),
        train_dataset=rows(),
        optimizer_cls_and_kwargs=choice(optimizer),
        callbacks=list(callbacks),
    )


def adapted() -> nn.Module:
    """The tiny model with LoRA on some modules, others trained as they are, and the rest frozen."""
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["down_proj"])
    return get_peft_model(tiny_model(), adapter)


def peft_trainer(folder, **options: Any) -> Trainer:
    return plain_trainer(folder, model=adapted(), **options)


def sft_trainer(folder, *, optimizer=None, **options: Any) -> Trainer:
    return trl.SFTTrainer(
        tiny_model(),
        args=arguments(folder, trl.SFTConfig, **options),
        train_dataset=Dataset.from_dict({"text": texts()}),
        processing_class=tokenizer(),
        optimizer_cls_and_kwargs=choice(optimizer),
    )


def dpo_trainer(folder, *, optimizer=None, **options: Any) -> Trainer:
    pairs = {"prompt": [text[:32] for text in texts()], "chosen": [text[32:] for text in texts()]}
    trainer = trl.DPOTrainer(
        tiny_model(),
        ref_model=tiny_model(),
        args=arguments(folder, trl.DPOConfig, **options),
        train_dataset=Dataset.from_dict({**pairs, "rejected": pairs["chosen"][::-1]}),
        processing_class=tokenizer(),
    )
    trainer.optimizer_cls_and_kwargs = choice(optimizer)
    return trainer


def train_by_hand_with(trainer: Trainer, **options: Any) -> nn.Module:
    """The loop by hand around the loss and the batches of a trainer that is not asked to train; `options` are its."""

    def loss_of(model: nn.Module, batch: dict[str, Tensor], micro_batches: list[dict[str, Tensor]]) -> Tensor:
        num_items = trainer._get_num_items_in_batch(micro_batches, torch.device("cpu"))
        loss = trainer.compute_loss(model, batch, num_items_in_batch=num_items)
        return loss / len(micro_batches) if num_items is None else loss

    stream = iter(trainer.get_train_dataloader())
    return steps_by_hand(NUM_STEPS, trainer.model.train(), stream, loss_of, **options)
