"""Stepping in backward on a real model: one gradient at a time, with activation checkpointing, and nothing kept."""

import gc
import weakref

import pytest
import torch

from builders import assert_same_params
from in_backward_runs import build, train
from ldadam import LDAdamW, step_in_backward


def llama(**options):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, **options))


def llama_backward(model, *, num_micro: int = 1) -> None:
    tokens = torch.arange(64).reshape(2, 32)
    for _ in range(num_micro):
        (model(input_ids=tokens, labels=tokens).loss / num_micro).backward()


@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied head"])
def test_activation_checkpointing_changes_nothing(reentrant, tied):
    expected, model = (llama(tie_word_embeddings=tied) for _ in range(2))
    ordinary, optimizer = (LDAdamW(one.parameters(), rank=4) for one in (expected, model))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    step_in_backward(optimizer)
    for _ in range(3):
        for one, its_optimizer in ((expected, ordinary), (model, optimizer)):
            llama_backward(one)
            its_optimizer.step()
            its_optimizer.zero_grad()
    assert_same_params(model.parameters(), expected.parameters())


@pytest.mark.parametrize("num_micro", [1, 2])
def test_one_gradient_is_alive_at_a_time(num_micro):
    """Bytes of `.grad` in all, seen by hooks that run before a parameter is stepped: of a matrix, and small vectors."""
    model = llama()
    params = list(model.parameters())
    seen = []

    def count(_):
        seen.append(sum(param.grad.nbytes for param in params if param.grad is not None))

    for param in params:
        param.register_post_accumulate_grad_hook(count)
    optimizer = LDAdamW(params, rank=4)
    step_in_backward(optimizer, accumulation_steps=num_micro)
    llama_backward(model, num_micro=num_micro)
    optimizer.step()
    vectors = sum(param.nbytes for param in params if param.ndim == 1) if num_micro > 1 else 0
    assert len(seen) == num_micro * len(params)
    assert max(param.nbytes for param in params) <= max(seen) <= max(param.nbytes for param in params) + vectors
    assert all(param.grad is None for param in params)


def test_a_handle_keeps_no_model_alive():
    model, optimizer = build()
    step_in_backward(optimizer, accumulation_steps=2)
    train(model, optimizer, range(1), num_micro=2)
    weight = weakref.ref(model.experts)
    del model, optimizer
    gc.collect()
    assert weight() is None
