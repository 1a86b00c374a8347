"""What AdamW and LDAdamW reach with different learning rates of embeddings, head and vectors."""

from __future__ import annotations

from typing import Any

from ldadam.comparison.study import Contestant, Study
from ldadam.recipes.llamas import DEMO, HALF_DEMO, TEN_MILLION

SMALLER = (0.008, 0.016, 0.032, 0.064)
LARGER = (0.032, 0.064, 0.128)


def _dense_rates(
    name: str, llama: dict[str, Any], dense_lrs: tuple[float, ...], *, rank: int, lr: float, adamw_lr: float
) -> list[Study]:
    """Both at a learning rate of matrices that is good for them; each rate of the other weights is a contestant."""

    def at(dense_lr: float, optimizer: str, lr: float, **settings: Any) -> Contestant:
        settings["dense_lr_scale"] = dense_lr / lr
        return Contestant(optimizer, (lr,), settings, f"{optimizer}, dense lr {dense_lr:g}")

    ours = [at(dense_lr, "ldadamw", lr, rank=rank) for dense_lr in dense_lrs]
    adamw = [at(dense_lr, "adamw", adamw_lr) for dense_lr in dense_lrs]
    about = "rates of what is no matrix"
    return [Study(name, about, "pretrain", llama, (*ours, *adamw))]


def dense_rates_small_rank16_cpu() -> list[Study]:
    """A Llama of half the demo's width, AdamW and LDAdamW: which learning rate embeddings, head and vectors want."""
    return _dense_rates("dense-rates-small-rank16-cpu", HALF_DEMO, SMALLER, rank=16, lr=8e-3, adamw_lr=4e-3)


def dense_rates_demo_rank32_cpu() -> list[Study]:
    """The same on the demo's Llama, around the rate of its comparison."""
    return _dense_rates("dense-rates-demo-rank32-cpu", DEMO, SMALLER[1:], rank=32, lr=4e-3, adamw_lr=2e-3)


def dense_rates_gutenberg_rank80_cpu() -> list[Study]:
    """The same on a Llama of 10 M parameters and eighteen books."""
    return _dense_rates("dense-rates-gutenberg-rank80-cpu", TEN_MILLION, LARGER, rank=80, lr=2e-3, adamw_lr=1e-3)


ALL = (dense_rates_small_rank16_cpu, dense_rates_demo_rank32_cpu, dense_rates_gutenberg_rank80_cpu)
