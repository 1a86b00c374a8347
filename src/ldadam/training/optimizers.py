"""The optimizers that `--optimizer` knows: the three of this table, those of `peers.PEERS`, and any module:Class.

Hyperparameter defaults are read from the optimizer's own signature, so they are written down once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ldadam import provenance
from ldadam.peers import PEERS, Peer, of_any_class, split
from ldadam.spelling import did_you_mean
from ldadam.training.errors import RunError, UsageError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from ldadam.training.run_config import RunConfig

COMMON_OPTIONS: tuple[str, ...] = ("lr", "dense_lr_scale", "beta1", "beta2", "eps", "weight_decay")
LDADAMW_OPTIONS: tuple[str, ...] = (
    *COMMON_OPTIONS,
    "rank",
    "rho",
    "proj_type",
    "proj_method",
    "error_feedback",
    "error_dtype",
    "update_interval",
    "scaled_residual",
    "skip_nonfinite",
    "stochastic_rounding",
    "backend",
    "step_in_backward",
    "target_modules",
    "rank_overrides",
)
LORA_OPTIONS: tuple[str, ...] = ("lr", "beta1", "beta2", "eps", "weight_decay", "rank", "target_modules")
# Every option that belongs to some optimizer: those that the chosen one lacks are refused.
ALL_OPTIONS = LDADAMW_OPTIONS


@dataclass(frozen=True)
class OptimizerChoice:
    """One row of the table: which settings the optimizer takes, their defaults, and how to build it."""

    name: str
    options: tuple[str, ...]
    max_grad_norm: float  # as published; 0 is no clipping
    defaults: Callable[[], dict[str, Any]]
    build: Callable[[nn.Module, RunConfig], Optimizer]
    resumes: bool = True  # whether a checkpoint can be read without running code from it
    package: str = ""  # beside torch, what it is imported from, and installed by

    @property
    def is_installed(self) -> bool:
        """Whether its package can be found."""
        return not self.package or find_spec(self.package) is not None

    @property
    def package_version(self) -> str | None:
        """Its package and which version of it is installed; None where there is none."""
        version = provenance.version(self.package) if self.package else None
        return version and f"{self.package} {version}"

    def foreign_options(self) -> set[str]:
        """Options of other optimizers."""
        return {name for name in ALL_OPTIONS if name not in self.options}

    def refuse_foreign_options(self, settings: dict[str, Any]) -> None:
        """A setting without effect is a mistake of the caller."""
        for name in sorted(self.foreign_options()):
            if settings.get(name) is not None:
                raise UsageError(f"{name} has no effect on {self.name}: leave it out, or choose another optimizer")


def find_optimizer(name: str) -> OptimizerChoice:
    """The row called `name`."""
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if name in PEERS:
        return _choice_of(PEERS[name])
    if ":" in name and name.partition(":")[0] not in (*OPTIMIZERS, *PEERS):
        return _choice_of(of_any_class(name))
    known = (*OPTIMIZERS, *PEERS)
    hint = did_you_mean(name, known, otherwise=f"expected one of {', '.join(known)}, or module:Class")
    raise UsageError(f"unknown optimizer {name!r}: {hint}")


def _choice_of(peer: Peer) -> OptimizerChoice:
    """A peer as a row of the table."""
    from ldadam import lowrank_param_groups

    def build(model: nn.Module, config: RunConfig) -> Optimizer:
        groups = lowrank_param_groups(model, rank=config.rank or 1, target_modules=config.target_modules)
        if peer.takes_rank:
            if not isinstance(config.rank, int):
                raise ValueError(f"rank must be a whole number, got {config.rank}")
            _refuse_rank_above_every_matrix(groups, config.rank)
        dense_lr = _dense_lr(config)
        if config.target_modules and dense_lr is not None:
            raise ValueError(
                "target_modules leaves out matrices, which would get the learning rate of embeddings: leave it out, or "
                "give dense_lr_scale=1"
            )
        try:
            return peer.build(split(groups, dense_lr=dense_lr), lr=config.lr, rank=config.rank)
        except (ImportError, AttributeError) as error:
            hint = f": pip install {peer.install}" if peer.install else ""
            raise RunError(f"{peer.name} cannot be built: {error}{hint}") from error

    options = ("lr", "dense_lr_scale", *(("rank", "target_modules") if peer.takes_rank else ()))
    defaults = {"lr": peer.lr, "dense_lr_scale": 1.0}
    return OptimizerChoice(peer.name, options, peer.max_grad_norm, lambda: defaults, build, peer.resumes, peer.package)


def build_optimizer(model: nn.Module, config: RunConfig) -> Optimizer:
    """The optimizer that `config` describes; what it refuses becomes one sentence."""
    try:
        return find_optimizer(config.optimizer).build(model, config)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{config.optimizer}: {error}") from error


def _signature_defaults(optimizer_class: type, options: tuple[str, ...]) -> dict[str, Any]:
    """Defaults of `options` as the class declares them; `betas` is two settings here."""
    parameters = inspect.signature(optimizer_class).parameters
    declared = {name: parameter.default for name, parameter in parameters.items()}
    declared["beta1"], declared["beta2"] = declared["betas"]
    return {"dense_lr_scale": 1.0, **{name: declared[name] for name in options if name in declared}}


def _ldadamw_defaults() -> dict[str, Any]:
    from ldadam import LDAdamW

    return {**_signature_defaults(LDAdamW, LDADAMW_OPTIONS), "step_in_backward": False}


def _adamw_defaults() -> dict[str, Any]:
    from torch.optim import AdamW

    # The papers train without weight decay; torch's own default is 0.01.
    return {**_signature_defaults(AdamW, COMMON_OPTIONS), "weight_decay": 0.0}


def _build_ldadamw(model: nn.Module, config: RunConfig) -> Optimizer:
    from ldadam import LDAdamW, lowrank_param_groups

    assert config.rank is not None and config.beta1 is not None and config.beta2 is not None
    assert config.backend is not None
    groups = lowrank_param_groups(
        model,
        rank=config.rank,
        target_modules=config.target_modules,
        rank_overrides=_parse_overrides(config.rank_overrides),
        weight_decay=config.weight_decay,
        dense_lr=_dense_lr(config),
    )
    passed_on = ("lr", "eps", "weight_decay", "rho", "proj_type", "proj_method", "error_feedback")
    passed_on += ("update_interval", "scaled_residual", "skip_nonfinite", "stochastic_rounding")
    hyperparameters = {name: getattr(config, name) for name in passed_on}
    _refuse_rank_above_every_matrix(groups, config.rank)
    return LDAdamW(
        groups,
        betas=(config.beta1, config.beta2),
        rank=config.rank,
        error_dtype=config.error_dtype,
        backend=config.backend,
        **hyperparameters,
    )


def _dense_lr(config: RunConfig) -> float | None:
    """The learning rate of embeddings, heads and vectors, where it is not that of matrices."""
    if config.dense_lr_scale in (None, 1):
        return None
    assert config.lr is not None and config.dense_lr_scale is not None
    return config.lr * config.dense_lr_scale


def _parse_overrides(text: str | None) -> dict[str, int | float | None]:
    """The ranks of "PATTERN=RANK,..." by pattern."""
    found: dict[str, int | float | None] = {}
    for part in text.split(",") if text else ():
        pattern, _, value = (piece.strip() for piece in part.rpartition("="))
        try:
            found[pattern] = None if value == "none" else float(value) if "." in value else int(value)
        except ValueError:
            pattern = ""
        if not pattern:
            raise ValueError(f"rank_overrides must be PATTERN=RANK with commas between, got {text!r}")
    return found


def _refuse_rank_above_every_matrix(groups: list[dict[str, Any]], rank: int | float) -> None:
    """With a rank that fits no matrix every weight would get plain AdamW, which nobody asks for."""
    from ldadam.layout import matrix_layout

    parameters = [p for group in groups if group["rank"] is not None for p in group["params"]]
    layouts = [matrix_layout(parameter.shape, rank=1, proj_type="std") for parameter in parameters]
    shorter_sides = [min(layout.m, layout.n) for layout in layouts if layout is not None]
    if not shorter_sides:
        raise ValueError("no weight was given a rank: target_modules matches no matrix of this model")
    if rank >= max(shorter_sides):
        raise ValueError(
            f"rank={rank} is too large for every matrix of this model: the longest shorter side is "
            f"{max(shorter_sides)}; choose a rank below that, usually a quarter of it or less"
        )


def _build_adamw(model: nn.Module, config: RunConfig) -> Optimizer:
    from torch.optim import AdamW

    from ldadam import lowrank_param_groups

    assert config.lr is not None and config.beta1 is not None and config.beta2 is not None
    assert config.eps is not None and config.weight_decay is not None
    params: list[Any] = [param for param in model.parameters() if param.requires_grad]
    if (dense_lr := _dense_lr(config)) is not None:
        params = lowrank_param_groups(model, rank=1, dense_lr=dense_lr)
    return AdamW(
        params,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _build_lora(model: nn.Module, config: RunConfig) -> Optimizer:
    from ldadam.training.adapters import add_adapters

    if not isinstance(config.rank, int):
        raise ValueError(f"rank must be a whole number, got {config.rank}")
    add_adapters(model, rank=config.rank, target_modules=config.target_modules, seed=config.seed)
    return _build_adamw(model, config)


def _lora_defaults() -> dict[str, Any]:
    return {name: value for name, value in _adamw_defaults().items() if name in LORA_OPTIONS}


OPTIMIZERS: dict[str, OptimizerChoice] = {
    "ldadamw": OptimizerChoice("ldadamw", LDADAMW_OPTIONS, 0.0, _ldadamw_defaults, _build_ldadamw),
    "adamw": OptimizerChoice("adamw", COMMON_OPTIONS, 1.0, _adamw_defaults, _build_adamw),
    "lora": OptimizerChoice("lora", LORA_OPTIONS, 1.0, _lora_defaults, _build_lora, package="peft"),
}
