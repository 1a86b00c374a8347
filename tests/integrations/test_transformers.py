"""LDAdamW in the Trainer of Hugging Face Transformers."""

from functools import partial

import pytest
import torch
from by_hand import are_equal, scale_on_cpu, token_loss
from by_hand import train_by_hand as train_by_hand_on
from tiny_llama import model as tiny_model
from tiny_llama import rows
from trainers import arguments, plain_trainer
from transformers import Trainer

from ldadam import LDAdamW, LDAdamWarning
from ldadam.integrations.transformers import (
    LDAdamWFactory,
    StepInBackwardCallback,
    SubspaceCallback,
    optimizer_cls_and_kwargs,
    unwrap,
)
from tolerances import TOLERANCES

train_by_hand = partial(train_by_hand_on, loss_of=token_loss)


SETTINGS = {
    "plain": ({}, {}),
    "accumulation and clipping": (
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5},
        {"accumulation": 2, "clip": 0.5},
    ),
    "bfloat16 autocast": ({"bf16": True}, {"autocast": torch.bfloat16}),
}


@pytest.mark.parametrize("of_trainer, by_hand", SETTINGS.values(), ids=SETTINGS)
def test_trainer_is_the_loop_by_hand_with_error_feedback_on(tmp_path, of_trainer, by_hand):
    trainer = plain_trainer(tmp_path, **of_trainer)
    trainer.train()
    assert are_equal([trainer.model, train_by_hand(4, **by_hand)])
    assert not are_equal([trainer.model, train_by_hand(4, **by_hand, error_feedback=False)])


def test_the_callback_measures_what_a_grad_scaler_has_unscaled_and_leaves_out_what_it_skips(tmp_path):
    trainer = plain_trainer(tmp_path, fp16=True, logging_steps=1)
    scale_on_cpu(trainer.accelerator)
    trainer.add_callback(SubspaceCallback(trainer))
    trainer.train()
    assert are_equal([trainer.model, train_by_hand(4, autocast=torch.float16)])
    assert not are_equal([trainer.model, train_by_hand(4, autocast=torch.float16, error_feedback=False)])
    measured = [record for record in trainer.state.log_history if "ldadam/state_bytes" in record]
    assert ["ldadam/captured" in record for record in measured] == [True, False, True, True]
    assert all(0.1 < record["ldadam/captured"] < 1 for record in measured if "ldadam/captured" in record)


def test_the_pair_for_older_versions_trains_as_the_factory_does(tmp_path):
    model, args = tiny_model(), arguments(tmp_path, weight_decay=0.1)
    choice = optimizer_cls_and_kwargs(model, args, rank=8)
    assert choice[0] is LDAdamW
    Trainer(model, args, train_dataset=rows(), optimizer_cls_and_kwargs=choice).train()
    assert are_equal([model, train_by_hand(4, weight_decay=0.1)])


def test_the_callback_logs_beside_the_loss_and_changes_no_number(tmp_path):
    trainer = plain_trainer(tmp_path)
    trainer.add_callback(SubspaceCallback(trainer))
    trainer.train()
    assert are_equal([trainer.model, train_by_hand(4)])
    history = trainer.state.log_history
    assert [record["step"] for record in history if "loss" in record] == [2, 4]
    measured = [record for record in history if "ldadam/captured" in record]
    assert [record["step"] for record in measured] == [2, 4]
    optimizer = unwrap(trainer.optimizer)
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    assert measured[-1]["ldadam/state_bytes"] == sum(value.nbytes for value in tensors)
    buffers = [state["error_buffer"] for state in optimizer.state.values() if "error_buffer" in state]
    norm = torch.cat([buffer.flatten() for buffer in buffers]).norm().item()
    assert measured[-1]["ldadam/error_norm"] == pytest.approx(norm, rel=TOLERANCES["float32 step"])
    assert 0 < measured[-1]["ldadam/captured_min"] < measured[-1]["ldadam/captured"] < 1


def test_stepping_in_backward_accumulates_and_leaves_no_gradient_to_clip(tmp_path):
    trainer = plain_trainer(tmp_path, callbacks=[StepInBackwardCallback()], gradient_accumulation_steps=2)
    trainer.train()
    assert are_equal([trainer.model, train_by_hand(4, accumulation=2, in_backward=True)])
    trainer = plain_trainer(tmp_path, callbacks=[StepInBackwardCallback()], max_grad_norm=0.5)
    with pytest.warns(LDAdamWarning, match="max_grad_norm=0.5 clips nothing"):
        trainer.train()
    assert are_equal([trainer.model, train_by_hand(4)])


def test_axolotl_hands_the_factory_its_arguments_and_the_trainer_does_not(tmp_path):
    args = arguments(tmp_path, learning_rate=3e-3, weight_decay=0.2)
    optimizer = LDAdamWFactory()(tiny_model(), args, rank="8", betas="(0.9, 0.95)")
    assert optimizer.defaults["lr"] == 3e-3 and optimizer.defaults["betas"] == (0.9, 0.95)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2, 0.0}
    assert LDAdamWFactory()(tiny_model(), args, lr=1e-4, weight_decay=0.0).defaults["lr"] == 1e-4
    with pytest.raises(ValueError, match="does not hand over its learning_rate"):
        LDAdamWFactory()(tiny_model(), rank=8)


def test_callbacks_refuse_another_optimizer():
    with pytest.raises(TypeError, match="expected the Trainer to train with LDAdamW, got SGD"):
        unwrap(torch.optim.SGD([torch.zeros(1)]))
