"""Classification: an encoder with a new head, its loss, and its scores."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldadam.finetune.config import FinetuneConfig
from ldadam.finetune.examples import Example, Labelled, fingerprint, first_examples, refuse_empty
from ldadam.finetune.goals import Batch, Goal, Scores, batches, evaluating
from ldadam.finetune.metrics import OF_GROUPS, Outcome, scores
from ldadam.finetune.models import load_model, load_tokenizer, num_positions


def classification(config: FinetuneConfig, data: Labelled) -> Goal:
    """The goal to tell the labels of `data`; a number where there are no classes."""
    assert config.length and config.batch_size
    train = data.train[: config.train_examples]
    validation = first_examples(data, config.eval_examples, whole_groups=not set(OF_GROUPS).isdisjoint(data.metrics))
    refuse_empty(data.name, training=train, validation=validation)
    tokenizer = load_tokenizer(config)
    model = _load(config, data.labels, tokenizer)
    collate = partial(collate_examples, tokenizer=tokenizer, length=_length_for(model, config))
    groups = torch.tensor([example.group for example in validation])
    size = config.batch_size

    def evaluate(model: Any) -> tuple[float, Scores]:
        loss, outputs, labels = predict(model, batches(validation, collate, size=size))
        return loss, scores(Outcome(outputs, labels, groups), data.metrics)

    return Goal(
        model=model,
        tokenizer=tokenizer,
        samples=train,
        collate=collate,
        loss=loss_of_step,
        evaluate=evaluate,
        loss_unit="nats per example" if data.labels else "squared error per example",
        fingerprint=fingerprint(train, validation),
        facts={"train_examples": len(train), "validation_examples": len(validation), "labels": list(data.labels)},
    )


def _load(config: FinetuneConfig, labels: tuple[str, ...], tokenizer: Any) -> Any:
    """The encoder with a head for these labels; a head of another size that it came with is dropped."""
    from transformers import AutoModelForSequenceClassification

    names = dict(enumerate(labels or ("value",)))
    return load_model(
        AutoModelForSequenceClassification,
        config,
        tokenizer,
        num_labels=len(names),
        id2label=names,
        label2id={name: index for index, name in names.items()},
        ignore_mismatched_sizes=True,
    )


def _length_for(model: nn.Module, config: FinetuneConfig) -> int:
    """The tokens that are read of a text: no more than the model has positions for."""
    assert config.length
    limit = num_positions(model)
    if limit is None or config.length <= limit:
        return config.length
    print(f"ldadam: {config.model} has {limit} positions: texts are cut there, not at {config.length}", file=sys.stderr)
    return limit


def collate_examples(examples: Sequence[Example], *, tokenizer: Any, length: int) -> Batch:
    """Tokens of a batch, padded to its longest text; labels are int64 classes, or float32 numbers."""
    texts = [example.text for example in examples]
    pairs = None if examples[0].pair is None else [example.pair for example in examples]
    batch = tokenizer(texts, pairs, truncation=True, max_length=length, padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([example.label for example in examples])}


def summed_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of (n, classes) logits and classes, or squared error of (n, 1) outputs and numbers."""
    if labels.is_floating_point():
        return F.mse_loss(outputs[:, 0].float(), labels, reduction="sum")
    return F.cross_entropy(outputs.float(), labels, reduction="sum")


def loss_of_step(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """The share of one micro-batch in the mean over all examples of a step."""
    return summed_loss(outputs.logits, labels) / num_items_in_batch


def predict(model: nn.Module, examples: Iterable[Batch]) -> tuple[float, Tensor, Tensor]:
    """Mean loss, (n, classes) outputs and (n,) labels of all examples, on the CPU."""
    outputs, labels = [], []
    with evaluating(model) as device:
        for batch in examples:
            labels.append(batch.pop("labels"))
            outputs.append(model(**{name: value.to(device) for name, value in batch.items()}).logits.float().cpu())
    all_outputs, all_labels = torch.cat(outputs), torch.cat(labels)
    return summed_loss(all_outputs, all_labels).item() / len(all_labels), all_outputs, all_labels
