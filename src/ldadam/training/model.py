"""The model of a run: a Llama from its configuration, with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ldadam.training.config import PretrainConfig
from ldadam.training.errors import UsageError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with weights that depend on the seed and the shapes alone, in the dtype of the run."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    assert config.hidden_size and config.intermediate_size and config.num_layers and config.num_heads
    assert config.sequence_length and config.dtype and isinstance(tokenizer.eos_token_id, int)
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=config.sequence_length,
        rms_norm_eps=1e-6,
        use_cache=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    set_seed(config.seed)
    return LlamaForCausalLM(llama).to(getattr(torch, config.dtype))


def choose_device(name: str) -> torch.device:
    """The device that `--device` means."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch sees no CUDA device: use --device cpu")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"device must be auto, cpu or cuda, got {name!r}")
    return torch.device(name)
