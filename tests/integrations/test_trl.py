"""LDAdamW in TRL: SFT takes it as an argument, DPO after its construction."""

import inspect

import pytest
import trl
from by_hand import are_equal
from test_transformers import SETTINGS
from trainers import dpo_trainer, sft_trainer, train_by_hand_with

from ldadam import LDAdamW
from ldadam.integrations.transformers import SubspaceCallback


@pytest.mark.slow
@pytest.mark.parametrize(("of_trainer", "by_hand"), SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("build", [sft_trainer, dpo_trainer])
def test_trl_is_the_loop_by_hand_with_error_feedback_on(tmp_path, build, of_trainer, by_hand):
    trainer = build(tmp_path, **of_trainer)
    trainer.add_callback(SubspaceCallback(trainer))
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, LDAdamW)
    assert are_equal([trainer.model, train_by_hand_with(build(tmp_path, **of_trainer), **by_hand)])
    without = train_by_hand_with(build(tmp_path, **of_trainer), error_feedback=False, **by_hand)
    assert not are_equal([trainer.model, without])


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
    """When this fails, docs/integrations/trl.md and the example can say it in one line."""
    assert "optimizer_cls_and_kwargs" in inspect.signature(trl.SFTTrainer).parameters
    assert "optimizer_cls_and_kwargs" not in inspect.signature(trl.DPOTrainer).parameters
