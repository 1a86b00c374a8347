"""`PretrainConfig`: every setting of a run, once. The command line and the config file are both made from its fields.

Order of precedence: command line, config file, preset, optimizer defaults. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldadam.training.errors import UsageError
from ldadam.training.presets import find_preset


def option(default: Any, help: str, *, panel: str, choices: tuple[str, ...] = (), resume: str = "must match") -> Any:
    """A field with what the command line needs to know about it.

    `resume` says what happens when a resumed run is given another value: "must match", or "may change" for
    settings that do not touch the numbers.
    """
    metadata = {"help": help, "panel": panel, "choices": choices, "resume": resume}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of one run. `None` means: take the preset's value, or the optimizer's default."""

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

    optimizer: str = option("ldadamw", "optimizer: ldadamw or adamw", panel="Optimizer")
    lr: float | None = option(None, "peak learning rate", panel="Optimizer")
    beta1: float | None = option(None, "decay of the first moment", panel="Optimizer")
    beta2: float | None = option(None, "decay of the second moment", panel="Optimizer")
    eps: float | None = option(None, "added to the root of the second moment", panel="Optimizer")
    weight_decay: float | None = option(None, "decoupled weight decay, multiplied by lr", panel="Optimizer")
    rank: int | float | None = option(None, "rank of the moments: 32, or 0.25 of the shorter side", panel="LDAdamW")
    rho: float | None = option(None, "inertia of the subspace", panel="LDAdamW")
    proj_type: str | None = option(
        None,
        "side that is projected: std is the shorter one",
        panel="LDAdamW",
        choices=("std", "reverse_std", "left", "right"),
    )
    proj_method: str | None = option(
        None, "how the subspace moves", panel="LDAdamW", choices=("power_iteration", "svd", "svd_lowrank")
    )
    error_feedback: bool | None = option(None, "keep what the projection drops for later steps", panel="LDAdamW")
    error_dtype: str | None = option(
        None,
        "storage of the error buffer; none: the weight's dtype",
        panel="LDAdamW",
        choices=("float32", "bfloat16", "int8", "int4"),
    )
    update_interval: int | None = option(None, "move the subspace every so many steps", panel="LDAdamW")
    skip_nonfinite: bool | None = option(None, "skip matrices whose gradient is not finite", panel="LDAdamW")
    stochastic_rounding: bool | None = option(None, "round 16-bit weights by chance, without bias", panel="LDAdamW")
    backend: str | None = option(None, "implementation of the step", panel="LDAdamW")
    step_in_backward: bool | None = option(
        None, "move each weight inside backward and free its gradient; no clipping", panel="LDAdamW"
    )
    target_modules: str | None = option(
        None, "regex of the weights that get a rank; none: all but embeddings and head", panel="LDAdamW"
    )

    steps: int | None = option(None, "optimizer steps", panel="Training")
    tokens: int | None = option(None, "length of the run in tokens, instead of --steps", panel="Training")
    batch_size: int | None = option(None, "sequences per forward pass, of all processes together", panel="Training")
    grad_accum: int | None = option(None, "forward passes per optimizer step", panel="Training")
    max_grad_norm: float | None = option(
        None, "clip gradients to this norm, 0 for never; none: 1.0 for adamw, never for ldadamw", panel="Training"
    )
    schedule: str = option(
        "cosine", "learning rate after warm-up", panel="Training", choices=("cosine", "linear", "constant")
    )
    warmup: float = option(0.1, "share of the steps in which lr rises from 0", panel="Training")
    final_lr: float = option(0.1, "learning rate at the end of the cosine, as a share of the peak", panel="Training")
    seed: int = option(0, "seed of weights, split order and batches", panel="Training")
    device: str = option("auto", "where to train: auto, cpu or cuda", panel="Training", resume="may change")
    dtype: str | None = option(
        None, "dtype of the weights and activations", panel="Training", choices=("float32", "bfloat16")
    )
    threads: int | None = option(None, "CPU threads of torch", panel="Training", resume="may change")

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

    out: str = option("runs/pretrain", "folder of the run", panel="Run", resume="may change")
    eval_every: int | None = option(None, "steps between evaluations", panel="Run")
    save_every: int | None = option(None, "steps between checkpoints", panel="Run", resume="may change")
    keep_checkpoints: int = option(2, "how many of the last checkpoints to keep", panel="Run", resume="may change")
    log_every: int | None = option(None, "steps between lines of metrics.jsonl", panel="Run")
    monitor_every: int | None = option(None, "steps between measurements of the subspace, 0 for never", panel="Run")
    report: bool = option(True, "write report.html and report.png at the end", panel="Run", resume="may change")


FIELDS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(PretrainConfig)}
TYPES: dict[str, Any] = typing.get_type_hints(PretrainConfig)


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Settings of all layers, the later ones winning. `steps` and `tokens` say the same thing: the last one counts."""
    merged: dict[str, Any] = {}
    for layer in layers:
        if layer.get("steps") is not None and layer.get("tokens") is not None:
            raise UsageError(f"give steps or tokens, not both: got steps={layer['steps']} and tokens={layer['tokens']}")
        for one, other in (("steps", "tokens"), ("tokens", "steps")):
            if layer.get(one) is not None:
                merged.pop(other, None)
        merged.update({name: value for name, value in layer.items() if value is not None})
    return merged


def save_config(config: PretrainConfig, path: Path) -> None:
    """Write every setting as YAML that `--config` reads back."""
    import yaml

    values = {name: value for name, value in dataclasses.asdict(config).items() if name != "out"}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def resolve(settings: dict[str, Any]) -> PretrainConfig:
    """`settings` with everything that was left open filled in, and every value checked."""
    from ldadam.training.optimizers import find_optimizer

    config = PretrainConfig(**settings)
    preset = find_preset(config.preset)
    choice = find_optimizer(config.optimizer)
    choice.refuse_foreign_options(settings)
    open_values: dict[str, Any] = {"max_grad_norm": choice.max_grad_norm, **choice.defaults()}
    for name in FIELDS:
        if name in choice.foreign_options():
            continue
        if (value := getattr(preset, name, None)) is not None and name != "lr":
            open_values[name] = value
    open_values["lr"] = preset.lr.get(config.optimizer, open_values.get("lr"))
    if settings.get("vocab_size") is not None:
        open_values["tokenizer"] = None
    filled = {name: value for name, value in open_values.items() if getattr(config, name) is None}
    config = dataclasses.replace(config, **filled)
    return check_ranges(_length_in_steps(config, asked_tokens=settings.get("tokens")))


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


_AT_LEAST_ONE = (
    *("hidden_size", "intermediate_size", "num_layers", "num_heads", "vocab_size", "steps", "batch_size", "grad_accum"),
    *("eval_tokens", "eval_every", "save_every", "keep_checkpoints", "log_every", "update_interval", "threads"),
    *("shard_size", "parallel_timeout"),
)
_SHARES = ("validation_fraction", "warmup", "final_lr")


def check_ranges(config: PretrainConfig) -> PretrainConfig:
    """`config`, if every number is in range. The optimizer checks its own hyperparameters."""
    for name in _AT_LEAST_ONE:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    for name in _SHARES:
        if not 0 <= getattr(config, name) <= 1:
            raise UsageError(f"{name} must be a share between 0 and 1, got {getattr(config, name)}")
    assert config.sequence_length and config.hidden_size and config.num_heads
    if config.sequence_length < 2:
        raise UsageError(f"sequence_length must be at least 2, got {config.sequence_length}")
    if config.hidden_size % config.num_heads or (config.hidden_size // config.num_heads) % 2:
        raise UsageError(
            f"hidden_size / num_heads must be a whole even number, got {config.hidden_size} / {config.num_heads}"
        )
    if config.step_in_backward and config.max_grad_norm:
        raise UsageError(
            f"max_grad_norm={config.max_grad_norm} clips by the norm of all gradients, which are never there together "
            "with step_in_backward: leave one of them out"
        )
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"seed must be in 0..2^32-1, got {config.seed}")
    return config


def differences(saved: PretrainConfig, asked: PretrainConfig) -> list[str]:
    """Settings that a resumed run must keep and that `asked` changes."""
    return [
        f"{name} was {getattr(saved, name)} and is now {getattr(asked, name)}"
        for name, field in FIELDS.items()
        if field.metadata["resume"] == "must match" and getattr(saved, name) != getattr(asked, name)
    ]
