"""LoRA on some modules, full-parameter LDAdamW on others, the rest frozen."""

import pytest
import torch
from by_hand import LR, are_equal, token_loss, train_by_hand
from peft import LoraConfig, get_peft_model
from test_transformers import arguments
from tiny_llama import model as tiny_model
from tiny_llama import rows
from transformers import Trainer

from ldadam import lowrank_param_groups
from ldadam.integrations.transformers import LDAdamWFactory


def adapted() -> torch.nn.Module:
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["down_proj"])
    return get_peft_model(tiny_model(), adapter)


def test_full_parameters_get_a_rank_and_adapters_do_not():
    groups = lowrank_param_groups(adapted(), rank=8)
    ranks = {name: group["rank"] for group in groups for name in group["param_names"]}
    low_rank, dense = ([name for name in ranks if ranks[name] == rank] for rank in (8, None))
    assert len(low_rank) == 4 and all("down_proj.modules_to_save" in name for name in low_rank)
    assert len(dense) == 16 and all(".lora_" in name for name in dense)


@pytest.mark.slow
def test_adapters_and_full_parameters_train_and_the_rest_stays(tmp_path):
    model, start = adapted(), dict(adapted().named_parameters())
    choice = (LDAdamWFactory, {"lr": LR, "rank": 8})
    Trainer(model, arguments(tmp_path), train_dataset=rows(), optimizer_cls_and_kwargs=choice).train()
    moved = {name for name, param in model.named_parameters() if not torch.equal(param, start[name])}
    assert moved == {name for name, param in model.named_parameters() if param.requires_grad}
    assert are_equal([model, train_by_hand(4, model=adapted(), loss_of=token_loss)])
    assert not are_equal([model, train_by_hand(4, model=adapted(), loss_of=token_loss, error_feedback=False)])
