"""`PretrainConfig`: every setting of a pre-training run, once.

Order of precedence: command line, config file, preset, optimizer defaults. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ldadam.training.errors import UsageError
from ldadam.training.presets import find_preset
from ldadam.training.run_config import (
    RunConfig,
    check_shared_ranges,
    fields_of,
    fill,
    option,
    refuse_below_one,
    refuse_no_share,
)


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Settings of one run. `None` means: take the preset's value, or the optimizer's default."""

    subcommand = "pretrain"

    preset: str = option("demo", "model size and its settings: demo, 20m, 60m, 130m, 350m, 1b or 7b", panel="Model")
    hidden_size: int | None = option(None, "width of the model", panel="Model")
    intermediate_size: int | None = option(None, "width inside the MLP", panel="Model")
    num_layers: int | None = option(None, "number of blocks", panel="Model")
    num_heads: int | None = option(None, "attention heads per block", panel="Model")
    sequence_length: int | None = option(None, "tokens per sequence", panel="Model")

    corpus: str = option(
        "stdlib", "text: stdlib, gutenberg, a .txt/.jsonl/.parquet path, or a hub id such as allenai/c4", panel="Data"
    )
    corpus_config: str | None = option(None, "configuration of a hub data set, such as en", panel="Data")
    tokenizer: str | None = option(None, "hub id or folder of a tokenizer; none: train one on the corpus", panel="Data")
    vocab_size: int | None = option(None, "size of a tokenizer trained on the corpus", panel="Data")
    validation_fraction: float = option(
        0.05, "share of documents held out, chosen by a hash of their text", panel="Data"
    )
    eval_tokens: int | None = option(None, "validation tokens per evaluation, at most", panel="Data")

    tokens: int | None = option(None, "length of the run in tokens, instead of --steps", panel="Training")

    out: str = option("runs/pretrain", "folder of the run", panel="Run", resume="may change")

    parallel: str = option(
        "none",
        "how several processes share the work, under torchrun",
        panel="Several devices",
        choices=("none", "ddp", "compressed", "fsdp", "hsdp"),
        resume="may change",
    )
    shard_size: int | None = option(
        None,
        "processes that share one copy of the weights with hsdp; none: those of a host",
        panel="Several devices",
        resume="may change",
    )
    parallel_timeout: int = option(
        600, "seconds that a process waits for the others", panel="Several devices", resume="may change"
    )


def resolve(settings: dict[str, Any]) -> PretrainConfig:
    """`settings` with everything that was left open filled in, and every value checked."""
    from ldadam.training.optimizers import find_optimizer

    config = PretrainConfig(**settings)
    preset = find_preset(config.preset)
    choice = find_optimizer(config.optimizer)
    if choice.name == "lora":
        raise UsageError("lora trains adapters beside weights, which are random in pretrain: use ldadam finetune")
    choice.refuse_foreign_options(settings)
    open_values: dict[str, Any] = {"max_grad_norm": choice.max_grad_norm, **choice.defaults()}
    for name in fields_of(PretrainConfig):
        if name in choice.foreign_options():
            continue
        if (value := getattr(preset, name, None)) is not None and name != "lr":
            open_values[name] = value
    if config.optimizer in preset.lr:
        open_values["lr"] = preset.lr[config.optimizer]
    lr = open_values["lr"] if config.lr is None else config.lr
    if preset.dense_lr is not None and lr > 0:
        open_values["dense_lr_scale"] = preset.dense_lr / lr
    if settings.get("vocab_size") is not None:
        open_values["tokenizer"] = None
    return check_ranges(_length_in_steps(fill(config, open_values), asked_tokens=settings.get("tokens")))


def _length_in_steps(config: PretrainConfig, *, asked_tokens: int | None) -> PretrainConfig:
    """Turn `tokens` into whole steps, rounding up."""
    if asked_tokens is None:
        return config
    per_step = tokens_per_step(config)
    return dataclasses.replace(config, steps=max(1, -(-asked_tokens // per_step)), tokens=None)


def tokens_per_step(config: PretrainConfig) -> int:
    """Tokens that one optimizer step sees."""
    assert config.batch_size and config.grad_accum and config.sequence_length
    return config.batch_size * config.grad_accum * config.sequence_length


_AT_LEAST_ONE = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "vocab_size", "eval_tokens")
_AT_LEAST_ONE += ("shard_size", "parallel_timeout")


def check_ranges(config: PretrainConfig) -> PretrainConfig:
    """`config`, if every number is in range. The optimizer checks its own hyperparameters."""
    check_shared_ranges(config)
    refuse_below_one(config, _AT_LEAST_ONE)
    refuse_no_share(config, ("validation_fraction",))
    assert config.sequence_length and config.hidden_size and config.num_heads
    if config.sequence_length < 2:
        raise UsageError(f"sequence_length must be at least 2, got {config.sequence_length}")
    if config.hidden_size % config.num_heads or (config.hidden_size // config.num_heads) % 2:
        raise UsageError(
            f"hidden_size / num_heads must be a whole even number, got {config.hidden_size} / {config.num_heads}"
        )
    return config
