"""`RunConfig`: the settings that every kind of run shares, and what is done with settings of any kind.

The command line and the config file are both made from the fields of a `RunConfig`. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ldadam.training.errors import UsageError

Config = TypeVar("Config", bound="RunConfig")

# Ways to say how long a run is.
LENGTHS = ("steps", "tokens", "epochs")
PANELS = ("Model", "Data", "Answering", "Optimizer", "LDAdamW", "Training", "Several devices", "Run")


def option(default: Any, help: str, *, panel: str, choices: tuple[str, ...] = (), resume: str = "must match") -> Any:
    """A field with what the command line needs to know about it.

    `resume` says what happens when a resumed run is given another value: "must match", or "may change" for
    settings that do not touch the numbers.
    """
    metadata = {"help": help, "panel": panel, "choices": choices, "resume": resume}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunConfig:
    """Settings of one run. `None` means: take the default of the task, the preset or the optimizer.

    Attributes:
        subcommand: of `ldadam`, which makes runs of this kind.
        parallel: how several processes share the work.
    """

    subcommand = ""
    parallel = "none"

    optimizer: str = option(
        "ldadamw",
        "one of ldadamw, adamw and lora, a peer such as galore or muon, or module:Class",
        panel="Optimizer",
    )
    lr: float | None = option(None, "peak learning rate", panel="Optimizer")
    dense_lr_scale: float | None = option(
        None,
        "learning rate of embeddings, head and vectors, over lr; none: the preset's learning rate of these, else 1",
        panel="Optimizer",
    )
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
    scaled_residual: bool | None = option(
        None, "move weights by what the subspace misses of the gradient too", panel="LDAdamW"
    )
    skip_nonfinite: bool | None = option(None, "skip matrices whose gradient is not finite", panel="LDAdamW")
    stochastic_rounding: bool | None = option(None, "round 16-bit weights by chance, without bias", panel="LDAdamW")
    backend: str | None = option(None, "implementation of the step", panel="LDAdamW")
    step_in_backward: bool | None = option(
        None, "move each weight inside backward and free its gradient; no clipping", panel="LDAdamW"
    )
    target_modules: str | None = option(
        None, "regex of the weights that get a rank; none: all but embeddings and head", panel="LDAdamW"
    )

    rank_overrides: str | None = option(
        None, "PATTERN=RANK,...: other ranks, factors such as 0.5, or none for weights by regex", panel="LDAdamW"
    )

    steps: int | None = option(None, "optimizer steps", panel="Training")
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

    out: str = option("runs", "folder of the run", panel="Run", resume="may change")
    eval_every: int | None = option(None, "steps between evaluations", panel="Run")
    save_every: int | None = option(None, "steps between checkpoints", panel="Run", resume="may change")
    keep_checkpoints: int = option(
        2, "how many of the last checkpoints to keep; 0: one until the run has ended", panel="Run", resume="may change"
    )
    log_every: int | None = option(None, "steps between lines of metrics.jsonl", panel="Run")
    monitor_every: int | None = option(None, "steps between measurements of the subspace, 0 for never", panel="Run")
    report: bool = option(True, "write report.html and report.png at the end", panel="Run", resume="may change")


def fields_of(kind: type[RunConfig]) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a kind of configuration by name, in the order in which they are shown."""
    fields = sorted(dataclasses.fields(kind), key=lambda field: PANELS.index(field.metadata["panel"]))
    return {field.name: field for field in fields}


def plain_types(kind: type[RunConfig], name: str) -> tuple[type, ...]:
    """The types that field `name` accepts besides None."""
    hint = typing.get_type_hints(kind)[name]
    members = typing.get_args(hint) or (hint,)
    return tuple(member for member in members if member is not type(None))


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Settings of all layers, the later ones winning. Of the settings that say the same length, the last one counts."""
    merged: dict[str, Any] = {}
    for layer in layers:
        given = [name for name in LENGTHS if layer.get(name) is not None]
        if len(given) > 1:
            got = " and ".join(f"{name}={layer[name]}" for name in given)
            raise UsageError(f"give {' or '.join(given)}, not both: got {got}")
        if given:
            merged = {name: value for name, value in merged.items() if name not in LENGTHS}
        merged.update({name: value for name, value in layer.items() if value is not None})
    return merged


def fill(config: Config, values: dict[str, Any]) -> Config:
    """`config` with `values` where it was left open."""
    return dataclasses.replace(config, **{n: value for n, value in values.items() if getattr(config, n) is None})


def save_config(config: RunConfig, path: Path) -> None:
    """Write every setting as YAML that `--config` reads back."""
    import yaml

    values = {name: getattr(config, name) for name in fields_of(type(config)) if name != "out"}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def differences(saved: RunConfig, asked: RunConfig) -> list[str]:
    """Settings that a resumed run must keep and that `asked` changes."""
    return [
        f"{name} was {getattr(saved, name)} and is now {getattr(asked, name)}"
        for name, field in fields_of(type(saved)).items()
        if field.metadata["resume"] == "must match" and getattr(saved, name) != getattr(asked, name)
    ]


def refuse_below_one(config: RunConfig, names: tuple[str, ...]) -> None:
    """Every one of these settings that was given is at least 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")


def refuse_no_share(config: RunConfig, names: tuple[str, ...]) -> None:
    """Every one of these settings is a share."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise UsageError(f"{name} must be a share between 0 and 1, got {getattr(config, name)}")


_AT_LEAST_ONE = ("steps", "batch_size", "grad_accum", "eval_every", "save_every", "log_every")
_AT_LEAST_ONE += ("update_interval", "threads")


def check_shared_ranges(config: RunConfig) -> None:
    """Refuse numbers out of range. The optimizer checks its own hyperparameters."""
    refuse_below_one(config, _AT_LEAST_ONE)
    refuse_no_share(config, ("warmup", "final_lr"))
    if config.dense_lr_scale is not None and not 0 <= config.dense_lr_scale < float("inf"):
        raise UsageError(f"dense_lr_scale must be a finite number >= 0, got {config.dense_lr_scale}")
    if config.step_in_backward and config.max_grad_norm:
        raise UsageError(
            f"max_grad_norm={config.max_grad_norm} clips by the norm of all gradients, which are never there together "
            "with step_in_backward: leave one of them out"
        )
    if config.keep_checkpoints < 0:
        raise UsageError(f"keep_checkpoints must be at least 0, got {config.keep_checkpoints}")
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"seed must be in 0..2^32-1, got {config.seed}")
