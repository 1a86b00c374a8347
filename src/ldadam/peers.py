"""Other optimizers, each with the settings its authors recommend. Add one as a row of `PEERS`.

Their packages are imported when one is built; none of them is needed to use this package.
"""

from __future__ import annotations

import importlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer

from ldadam.bfloat16_products import bfloat16_products


@dataclass(frozen=True)
class Weights:
    """Parameters of a model: those that a low-rank optimizer projects, and the others.

    Attributes:
        low_rank: matrices that low-rank optimizers project.
        dense: the others.
        dense_lr: learning rate of the others, where it is one of their own.
    """

    low_rank: list[Parameter]
    dense: list[Parameter]
    dense_lr: float | None = None

    @property
    def params(self) -> list[Parameter]:
        """All of them."""
        return [*self.low_rank, *self.dense]

    @property
    def num_bytes(self) -> int:
        """Bytes of the parameters alone."""
        return sum(param.nbytes for param in self.params)


@dataclass(frozen=True)
class Peer:
    """One optimizer.

    Attributes:
        name: as given to `--optimizer` and `--optimizers`.
        build: makes it, for weights, a learning rate and a rank.
        takes_rank: whether it projects.
        lr: where to begin to search for a learning rate.
        max_grad_norm: the clipping that its authors train with; 0 is none.
        install: what to install where its import fails; empty where nobody knows.
        resumes: whether its state is tensors, which a checkpoint can be read for without running code from it.
    """

    name: str
    build: Callable[..., Optimizer]
    takes_rank: bool
    lr: float
    max_grad_norm: float
    install: str
    resumes: bool = False

    @property
    def package(self) -> str:
        """The module that it comes from, by the name under which it is installed; empty for torch's own."""
        return "" if "torch>=" in self.install else self.install.replace("-", "_")


# Steps from one projection to the next, as GaLore and Fira recommend.
UPDATE_PROJ_GAP = 200


class Combined(Optimizer):
    """Optimizers that step together as one, for those that take matrices only. They share its groups and its state.

    Args:
        parts: they.
        within: what they step in.
    """

    def __init__(self, *parts: Optimizer, within: AbstractContextManager[Any] | None = None) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.state = defaultdict(dict)
        self.parts, self.within = parts, within or nullcontext()
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimizer."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A step of each."""
        assert closure is None
        with self.within:
            for part in self.parts:
                part.step()


def groups_of(weights: Weights, **options: Any) -> list[dict[str, Any]]:
    """The low-rank group with its options, and the dense group without them."""
    groups: list[dict[str, Any]] = [{"params": weights.low_rank, **options}]
    if weights.dense:
        groups.append({"params": weights.dense} | ({} if weights.dense_lr is None else {"lr": weights.dense_lr}))
    return groups


def _adafactor(weights: Weights, *, lr: float, rank: int) -> Optimizer:
    from torch.optim import Adafactor

    return Adafactor(groups_of(weights), lr=lr)


def _muon(weights: Weights, *, lr: float, rank: int) -> Optimizer:
    from torch.optim import AdamW, Muon

    # The adjustment that gives both kinds of weights updates of one size, so that one rate serves both.
    parts: list[Optimizer] = [Muon(weights.low_rank, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")]
    if weights.dense:
        dense_lr = lr if weights.dense_lr is None else weights.dense_lr
        parts.append(AdamW(weights.dense, lr=dense_lr, weight_decay=0.0, fused=True))
    return Combined(*parts, within=bfloat16_products())


def _adamw8bit(weights: Weights, *, lr: float, rank: int) -> Optimizer:
    from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

    return AdamW8bit(groups_of(weights), lr=lr, weight_decay=0.0)


def _adamw4bit(weights: Weights, *, lr: float, rank: int) -> Optimizer:
    from torchao.optim import AdamW4bit  # pyright: ignore[reportMissingImports]

    return AdamW4bit(groups_of(weights), lr=lr, weight_decay=0.0)


def galore(weights: Weights, *, lr: float, rank: int, update_proj_gap: int = UPDATE_PROJ_GAP) -> Optimizer:
    """GaLoreAdamW of galore-torch."""
    from galore_torch import GaLoreAdamW  # pyright: ignore[reportMissingImports]

    options = galore_options(rank, update_proj_gap=update_proj_gap)
    return GaLoreAdamW(groups_of(weights, **options), lr=lr, no_deprecation_warning=True)


def galore_options(rank: int, *, update_proj_gap: int) -> dict[str, Any]:
    """Of a low-rank group, and of its projectors."""
    return {"rank": rank, "update_proj_gap": update_proj_gap, "scale": 0.25, "proj_type": "std"}


def fira(weights: Weights, *, lr: float, rank: int, update_proj_gap: int = UPDATE_PROJ_GAP) -> Optimizer:
    """Fira of pytorch_optimizer."""
    from pytorch_optimizer import Fira  # pyright: ignore[reportMissingImports]

    return Fira(groups_of(weights, **fira_options(rank, update_proj_gap=update_proj_gap)), lr=lr)


def fira_options(rank: int, *, update_proj_gap: int) -> dict[str, Any]:
    """Of a low-rank group, and of its projectors."""
    return {"rank": rank, "update_proj_gap": update_proj_gap, "scale": 0.25, "projection_type": "std"}


def _apollo(weights: Weights, *, lr: float, rank: int) -> Optimizer:
    from apollo_torch import APOLLOAdamW  # pyright: ignore[reportMissingImports]

    options = {"rank": rank, "proj": "random", "scale_type": "channel", "scale": 1, "proj_type": "std"}
    return APOLLOAdamW(groups_of(weights, **options, update_proj_gap=UPDATE_PROJ_GAP), lr=lr)


def _dct_adamw(weights: Weights, *, lr: float, rank: int) -> Optimizer:
    from ista_daslab_optimizers.fft_low_rank.dct_adamw import DCTAdamW  # pyright: ignore[reportMissingImports]

    options = {"proj": "dct", "use_ef": True, "rotate_subspace": True}
    return DCTAdamW(groups_of(weights), lr=lr, weight_decay=0.0, rank=rank, **options)


PEERS = {
    peer.name: peer
    for peer in (
        Peer("adafactor", _adafactor, False, lr=4e-3, max_grad_norm=0.0, install="'torch>=2.5'", resumes=True),
        Peer("muon", _muon, False, lr=4e-3, max_grad_norm=0.0, install="'torch>=2.9'", resumes=True),
        Peer("adamw8bit", _adamw8bit, False, lr=2e-3, max_grad_norm=1.0, install="torchao"),
        Peer("adamw4bit", _adamw4bit, False, lr=2e-3, max_grad_norm=1.0, install="torchao"),
        Peer("galore", galore, True, lr=1e-2, max_grad_norm=0.0, install="galore-torch"),
        Peer("apollo", _apollo, True, lr=1e-2, max_grad_norm=0.0, install="apollo-torch"),
        Peer("fira", fira, True, lr=1e-2, max_grad_norm=0.0, install="pytorch_optimizer"),
        Peer("dct", _dct_adamw, True, lr=4e-3, max_grad_norm=0.0, install="ista-daslab-optimizers"),
    )
}


def of_any_class(place: str) -> Peer:
    """An optimizer class by its place, module:Class; the rank is an argument if it has one, else of its group."""
    module, _, name = place.partition(":")

    def build(weights: Weights, *, lr: float, rank: int) -> Optimizer:
        optimizer_class = getattr(importlib.import_module(module), name)
        if "rank" in inspect.signature(optimizer_class).parameters:
            return optimizer_class(groups_of(weights), lr=lr, rank=rank)
        return optimizer_class(groups_of(weights, rank=rank), lr=lr)

    return Peer(place, build, True, lr=1e-3, max_grad_norm=0.0, install="")


def split(groups: Sequence[dict[str, Any]], *, dense_lr: float | None = None) -> Weights:
    """The groups of `lowrank_param_groups` as two lists. What is no plain matrix is dense to these optimizers."""
    low_rank = [p for group in groups if group["rank"] is not None for p in group["params"] if p.ndim == 2]
    known = {id(parameter) for parameter in low_rank}
    return Weights(low_rank, [p for group in groups for p in group["params"] if id(p) not in known], dense_lr)
