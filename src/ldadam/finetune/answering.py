"""Answering: a causal language model that learns answers to prompts, and is scored by those it generates."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldadam.finetune.config import FinetuneConfig
from ldadam.finetune.examples import Problem, Problems, fingerprint, refuse_empty
from ldadam.finetune.goals import Batch, Goal, Scores, batches, evaluating
from ldadam.finetune.models import load_model, load_tokenizer
from ldadam.finetune.sequences import Encoded, collate_packed, collate_padded, encode, pack
from ldadam.training.errors import UsageError
from ldadam.training.shares import IGNORED


def answering(config: FinetuneConfig, data: Problems) -> Goal:
    """The goal to answer the prompts of `data`."""
    from transformers import AutoModelForCausalLM

    assert config.length and config.batch_size
    train, validation = data.train[: config.train_examples], data.validation[: config.eval_examples]
    refuse_empty(data.name, training=train, validation=validation)
    tokenizer = load_tokenizer(config)
    train, encoded = _encode_all(config, tokenizer, train, data.name)
    validation, held_out = _encode_all(config, tokenizer, validation, data.name)
    collate = partial(collate_padded, pad=tokenizer.pad_token_id)
    size = config.batch_size

    def evaluate(model: Any) -> tuple[float, Scores]:
        loss = mean_loss(model, batches(held_out, collate, size=size))
        if not config.generate_tokens:
            return loss, {}
        return loss, {"exact_match": exact_match(config, model, tokenizer, validation, held_out)}

    model = load_model(AutoModelForCausalLM, config, tokenizer)
    _refuse_encoder(model, config)
    _refuse_long(model, config)
    model.config.use_cache = False  # and with a cache, packed examples would see each other
    return Goal(
        model=model,
        tokenizer=tokenizer,
        samples=pack(random.Random(config.seed).sample(encoded, len(encoded)), config.length)
        if config.packing
        else encoded,
        collate=partial(collate_packed, pad=tokenizer.pad_token_id, length=config.length)
        if config.packing
        else collate,
        loss=loss_of_step,
        evaluate=evaluate,
        loss_unit="nats per token of an answer",
        fingerprint=fingerprint(encoded, held_out),
        facts={"train_examples": len(encoded), "validation_examples": len(validation)},
    )


def _encode_all(
    config: FinetuneConfig, tokenizer: Any, problems: Sequence[Problem], name: str
) -> tuple[list[Problem], list[Encoded]]:
    """Problems and their tokens, but those whose prompt alone is too long, which are counted on stderr."""
    assert config.length
    encoded = [
        encode(problem, tokenizer, template=config.prompt_template, length=config.length) for problem in problems
    ]
    fitting = [(problem, one) for problem, one in zip(problems, encoded, strict=True) if one is not None]
    if not fitting:
        raise UsageError(f"every prompt of {name} has {config.length} tokens or more: give a larger --length")
    if len(fitting) < len(encoded):
        dropped = len(encoded) - len(fitting)
        print(
            f"ldadam: {dropped} of {len(encoded)} examples of {name} are left out: their prompts "
            f"have {config.length} tokens or more",
            file=sys.stderr,
        )
    return [problem for problem, _ in fitting], [one for _, one in fitting]


def _refuse_encoder(model: Any, config: FinetuneConfig) -> None:
    """Refuse a model that reads later tokens, as BERT does: it would learn to copy its answers.

    The first output of a causal model has no gradient at later inputs: exactly none, in any dtype.
    """
    with evaluating(model) as device, torch.enable_grad():
        embedded = model.get_input_embeddings()(torch.tensor([[1, 2, 3]], device=device)).detach().requires_grad_()
        first = model(inputs_embeds=embedded).logits[0, 0].float()
        (grad,) = torch.autograd.grad(first.square().sum(), embedded)
    if grad[0, 1:].any():
        raise UsageError(f"{config.model} reads the tokens that it is to predict: expected a causal language model")


def _refuse_long(model: Any, config: FinetuneConfig) -> None:
    """Refuse sequences that the model has no positions for, of which it would hear at its first evaluation only."""
    assert config.length
    positions = getattr(model.config, "max_position_embeddings", None)
    longest = config.length + config.generate_tokens
    if positions and longest > positions > 0:
        raise UsageError(
            f"{config.model} has {positions} positions, and length={config.length} with "
            f"generate_tokens={config.generate_tokens} takes {longest}: lower one of them"
        )


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the tokens to be predicted, each from those before it."""
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def loss_of_step(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """The share of one micro-batch in the mean over all predicted tokens of a step."""
    return summed_loss(outputs.logits, labels) / num_items_in_batch


def mean_loss(model: nn.Module, examples: Iterable[Batch]) -> float:
    """Loss per token of the answers."""
    total, count = 0.0, 0
    with evaluating(model) as device:
        for batch in examples:
            labels = batch.pop("labels").to(device)
            outputs = model(**{name: value.to(device) for name, value in batch.items()})
            total += summed_loss(outputs.logits, labels).item()
            count += int((labels != IGNORED).sum())
    return total / count


def exact_match(
    config: FinetuneConfig, model: Any, tokenizer: Any, problems: Sequence[Problem], encoded: Sequence[Encoded]
) -> float:
    """Share of problems, which are given with their tokens, whose generated answer ends in the right result."""
    assert config.batch_size
    right = 0
    for start in range(0, len(problems), config.batch_size):
        group = problems[start : start + config.batch_size]
        prompts = [one.tokens[: one.num_prompt] for one in encoded[start : start + config.batch_size]]
        answers = generate(model, tokenizer, prompts, max_new_tokens=config.generate_tokens)
        right += sum(result_of(a) == result_of(p.answer) for a, p in zip(answers, group, strict=True))
    return right / len(problems)


def generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[str]:
    """The likeliest continuation of each prompt, which is given as tokens."""
    with evaluating(model) as device:
        batch = tokenizer.pad({"input_ids": list(map(list, prompts))}, padding_side="left", return_tensors="pt")
        batch = batch.to(device)
        tokens = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def result_of(answer: str) -> str:
    """What counts of an answer: what stands after the last `####`, or all of it; numbers without commas and units.

    >>> result_of("48 + 24 = 72 clips.\\n#### 1,072")
    '1072'
    >>> result_of(" Paris ")
    'Paris'
    """
    result = answer.rpartition("####")[2].strip()
    number = re.fullmatch(r"\$?\s*(-?[\d,]*\.?\d+)\s*%?\.?", result)
    return _plain(number[1].replace(",", "")) if number else result


def _plain(number: str) -> str:
    """A number without zeros that say nothing."""
    whole, _, fraction = number.partition(".")
    return f"{whole}.{fraction.rstrip('0')}".rstrip(".") if fraction else number
