"""Answering: a causal language model that learns answers to prompts, and is scored by those it generates."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

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
    encoded, held_out = (_encode_all(config, tokenizer, side, data.name) for side in (train, validation))
    collate = partial(collate_padded, pad=tokenizer.pad_token_id)
    size = config.batch_size

    def evaluate(model: Any) -> tuple[float, Scores]:
        loss = mean_loss(model, batches(held_out, collate, size=size))
        if not config.generate_tokens:
            return loss, {}
        return loss, {"exact_match": exact_match(config, model, tokenizer, validation)}

    model = load_model(AutoModelForCausalLM, config, tokenizer)
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


def _encode_all(config: FinetuneConfig, tokenizer: Any, problems: Sequence[Problem], name: str) -> list[Encoded]:
    """Tokens of all problems but those whose prompt alone is too long, which are counted on stderr."""
    assert config.length
    encoded = [
        encode(problem, tokenizer, template=config.prompt_template, length=config.length) for problem in problems
    ]
    fitting = [one for one in encoded if one is not None]
    if not fitting:
        raise UsageError(f"every prompt of {name} has {config.length} tokens or more: give a larger --length")
    if len(fitting) < len(encoded):
        dropped = len(encoded) - len(fitting)
        print(
            f"ldadam: {dropped} of {len(encoded)} examples of {name} are left out: their prompts "
            f"have {config.length} tokens or more",
            file=sys.stderr,
        )
    return fitting


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


def exact_match(config: FinetuneConfig, model: Any, tokenizer: Any, problems: Sequence[Problem]) -> float:
    """Share of problems whose generated answer ends in the right result."""
    assert config.batch_size
    right = 0
    for start in range(0, len(problems), config.batch_size):
        group = problems[start : start + config.batch_size]
        prompts = [config.prompt_template.format(prompt=problem.prompt) for problem in group]
        answers = generate(model, tokenizer, prompts, max_new_tokens=config.generate_tokens)
        right += sum(result_of(a) == result_of(p.answer) for a, p in zip(answers, group, strict=True))
    return right / len(problems)


def generate(model: Any, tokenizer: Any, prompts: list[str], *, max_new_tokens: int) -> list[str]:
    """The likeliest continuation of each prompt, token by token."""
    with evaluating(model) as device:
        batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt").to(device)
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
