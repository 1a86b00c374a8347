"""LDAdamW in TRL: SFT takes it as an argument, DPO after its construction."""

import inspect
from itertools import islice

import pytest
import torch
import trl
from by_hand import LR, are_equal
from datasets import Dataset
from tiny_llama import model as tiny_model
from tiny_llama import texts, tokenizer

from ldadam import LDAdamW, lowrank_param_groups
from ldadam.integrations.transformers import LDAdamWFactory, SubspaceCallback

NUM_STEPS = 4


def settings(folder) -> dict:
    shared = {"output_dir": str(folder), "max_steps": NUM_STEPS, "per_device_train_batch_size": 4, "max_grad_norm": 0.0}
    shared |= {"learning_rate": LR, "lr_scheduler_type": "constant", "train_sampling_strategy": "sequential"}
    shared |= {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    return {**shared, "gradient_checkpointing": False, "logging_steps": 2, "max_length": 64}


def sft_trainer(folder):
    return trl.SFTTrainer(
        tiny_model(),
        args=trl.SFTConfig(**settings(folder)),
        train_dataset=Dataset.from_dict({"text": texts()}),
        processing_class=tokenizer(),
        optimizer_cls_and_kwargs=(LDAdamWFactory, {"lr": LR, "rank": 8}),
    )


def dpo_trainer(folder):
    pairs = {"prompt": [text[:32] for text in texts()], "chosen": [text[32:] for text in texts()]}
    trainer = trl.DPOTrainer(
        tiny_model(),
        ref_model=tiny_model(),
        args=trl.DPOConfig(**settings(folder)),
        train_dataset=Dataset.from_dict({**pairs, "rejected": pairs["chosen"][::-1]}),
        processing_class=tokenizer(),
    )
    trainer.optimizer_cls_and_kwargs = (LDAdamWFactory, {"lr": LR, "rank": 8})
    return trainer


def train_by_hand(trainer, **options) -> torch.nn.Module:
    """A loop around the loss and the batches of a trainer that is not asked to train."""
    model = trainer.model.train()
    optimizer = LDAdamW(lowrank_param_groups(model, rank=8), lr=LR, **options)
    for batch in islice(trainer.get_train_dataloader(), NUM_STEPS):
        num_items = trainer._get_num_items_in_batch([batch], trainer.args.device)
        trainer.compute_loss(model, batch, num_items_in_batch=num_items).backward()
        optimizer.step()
        model.zero_grad()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("build", [sft_trainer, dpo_trainer])
def test_trl_is_the_loop_by_hand_with_error_feedback_on(tmp_path, build):
    trainer = build(tmp_path)
    trainer.add_callback(SubspaceCallback(trainer))
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, LDAdamW)
    assert are_equal([trainer.model, train_by_hand(build(tmp_path))])
    assert not are_equal([trainer.model, train_by_hand(build(tmp_path), error_feedback=False)])


@pytest.mark.slow
def test_the_callback_leaves_the_metrics_of_trl_in_its_own_record(tmp_path):
    trainer = sft_trainer(tmp_path)
    trainer.add_callback(SubspaceCallback(trainer))
    trainer.train()
    losses = [record for record in trainer.state.log_history if "loss" in record]
    measured = [record for record in trainer.state.log_history if "ldadam/captured" in record]
    assert [record["step"] for record in losses] == [record["step"] for record in measured] == [2, 4]
    assert all("mean_token_accuracy" in record for record in losses)
    assert not any("mean_token_accuracy" in record for record in measured)


def test_dpo_still_has_no_argument_for_an_optimizer():
    """When this fails, docs/integrations.md and the example can say it in one line."""
    assert "optimizer_cls_and_kwargs" in inspect.signature(trl.SFTTrainer).parameters
    assert "optimizer_cls_and_kwargs" not in inspect.signature(trl.DPOTrainer).parameters
