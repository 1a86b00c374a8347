"""LoRA as a contestant: adapters on the matrices that LDAdamW would project; beside them heads alone are trained.

Source: Hu et al., arXiv 2106.09685; the adapters are peft's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ldadam.param_groups import lowrank_param_groups
from ldadam.training.errors import RunError


def add_adapters(model: Any, *, rank: int, target_modules: str | None, seed: int) -> None:
    """Put LoRA adapters into a pre-trained model, in place, and freeze what is neither adapter nor head.

    Args:
        model: of transformers; a head is what lies outside its base, but for the output embedding.
        rank: of each adapter; they are scaled by 1.
        target_modules: as of `lowrank_param_groups`, which names the matrices to adapt.
        seed: of the adapters' first weights.

    Raises:
        RunError: peft is not installed.
        ValueError: the model is not one of transformers.
    """
    if not hasattr(model, "base_model_prefix"):
        raise ValueError(f"adapters are for pre-trained models of transformers, got {type(model).__name__}")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RunError(f"lora cannot be built: {error}: pip install peft") from error
    groups = lowrank_param_groups(model, rank=rank, target_modules=target_modules)
    projected = {id(param) for group in groups if group["rank"] is not None for param in group["params"]}
    heads = [param for name, param in model.named_parameters() if _is_head(name, param, model)]
    projected -= {id(param) for param in heads}
    adapted = [name for name, module in model.named_modules() if id(getattr(module, "weight", None)) in projected]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=adapted), model)
    for param in heads:
        param.requires_grad_(True)


def _is_head(name: str, param: nn.Parameter, model: Any) -> bool:
    output = model.get_output_embeddings()
    is_output = output is not None and param is output.weight
    return not name.startswith(f"{model.base_model_prefix}.") and not is_output
