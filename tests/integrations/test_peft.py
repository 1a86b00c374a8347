"""LoRA on some modules, full-parameter LDAdamW on others, the rest frozen."""

from functools import partial

import pytest
import torch
from by_hand import are_equal, token_loss, train_by_hand
from test_transformers import SETTINGS
from trainers import adapted, plain_trainer

from ldadam import lowrank_param_groups


def test_full_parameters_get_a_rank_and_adapters_do_not():
    groups = lowrank_param_groups(adapted(), rank=8)
    ranks = {name: group["rank"] for group in groups for name in group["param_names"]}
    low_rank, dense = ([name for name in ranks if ranks[name] == rank] for rank in (8, None))
    assert len(low_rank) == 4 and all("down_proj.modules_to_save" in name for name in low_rank)
    assert len(dense) == 16 and all(".lora_" in name for name in dense)


@pytest.mark.parametrize(("of_trainer", "by_hand"), SETTINGS.values(), ids=SETTINGS)
def test_adapters_and_full_parameters_train_with_error_feedback_on_and_the_rest_stays(tmp_path, of_trainer, by_hand):
    model, start = adapted(), dict(adapted().named_parameters())
    plain_trainer(tmp_path, model=model, **of_trainer).train()
    moved = {name for name, param in model.named_parameters() if not torch.equal(param, start[name])}
    assert moved == {name for name, param in model.named_parameters() if param.requires_grad}
    train = partial(train_by_hand, 4, loss_of=token_loss, **by_hand)
    assert are_equal([model, train(model=adapted())])
    assert not are_equal([model, train(model=adapted(), error_feedback=False)])
