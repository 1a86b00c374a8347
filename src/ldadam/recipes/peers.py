"""LDAdamW beside every other optimizer on the same pre-training, each at its best of four learning rates."""

from __future__ import annotations

import dataclasses
from typing import Any

from ldadam.comparison.study import Contestant, Study
from ldadam.recipes.llamas import DEMO, HALF_DEMO, TEN_MILLION

SEEDS = (0, 1, 2)


def _beside(
    name: str, llama: dict[str, Any], *, rank: int, small_rank: int, adam: float, num_rates: int = 4
) -> list[Study]:
    """Rates of matrices are a factor of two apart, around each one's best; other weights have four times that.

    GaLore does the same as published: it scales the updates of matrices by 0.25. APOLLO and Fira have one rate for all,
    as published, and are better with it.

    Args:
        name: of the study.
        llama: what is trained.
        rank: of all low-rank optimizers.
        small_rank: the largest at which LDAdamW with an int4 error buffer keeps no more bytes than APOLLO and Fira.
        adam: the first rate of the AdamWs.
        num_rates: how many are tried.
    """
    ours, smaller, larger, largest, adam_rates = (
        tuple(first * 2**doubling for doubling in range(num_rates)) for first in (2e-3, 5e-3, 1e-2, 2e-2, adam)
    )
    dense, with_rank = {"dense_lr_scale": 4.0}, {"dense_lr_scale": 4.0, "rank": rank}
    residual = {**with_rank, "scaled_residual": True}
    smallest = {**residual, "error_dtype": "int4"}
    contestants = (
        Contestant("ldadamw", ours, with_rank, "LDAdamW"),
        Contestant("ldadamw", ours, residual, "LDAdamW, scaled residual"),
        Contestant("ldadamw", ours, smallest, "LDAdamW, scaled residual, int4"),
        Contestant("ldadamw", ours, {**smallest, "rank": small_rank}, f"LDAdamW, residual, int4, rank {small_rank}"),
        Contestant("adamw", adam_rates, dense),
        Contestant("galore", larger, {"rank": rank}),
        Contestant("apollo", smaller, {"rank": rank}),
        Contestant("fira", smaller, {"rank": rank}),
        Contestant("adafactor", largest, dense),
        Contestant("muon", ours, dense),
        Contestant("adamw8bit", adam_rates, dense),
        Contestant("adamw4bit", adam_rates, dense),
    )
    return [Study(name, "every optimizer that can be installed beside it", "pretrain", llama, contestants, SEEDS)]


def peers_demo_rank32_cpu() -> list[Study]:
    """The demo's Llama on Python's own sources, rank 32, two cores: what `make peers` installs."""
    return _beside("peers-demo-rank32-cpu", DEMO, rank=32, small_rank=25, adam=5e-4)


def peers_small_rank16_cpu() -> list[Study]:
    """A Llama of half the demo's width, rank 16, half a minute a run: the same optimizers."""
    return _beside("peers-small-rank16-cpu", HALF_DEMO, rank=16, small_rank=12, adam=1e-3)


def peers_gutenberg_rank80_cpu() -> list[Study]:
    """A Llama of 10 M parameters on eighteen books, rank 80, four minutes a run: the same optimizers, three rates."""
    return _beside("peers-gutenberg-rank80-cpu", TEN_MILLION, rank=80, small_rank=63, adam=5e-4, num_rates=3)


def _shortened(study: Study, name: str, *, steps: int) -> Study:
    """As long as tells what a step of each contestant takes, which does not depend on the learning rate."""
    return dataclasses.replace(
        study,
        name=name,
        about="how long a step of each optimizer takes, on a machine with nothing else to do",
        settings={**study.settings, "steps": steps, "eval_every": steps, "save_every": steps, "eval_tokens": 4096},
        contestants=tuple(dataclasses.replace(one, lrs=one.lrs[:1]) for one in study.contestants),
    )


def times_demo_rank32_cpu() -> list[Study]:
    """How long steps take beside each other on the demo's Llama: 40 steps a run, on an idle machine."""
    return [_shortened(peers_demo_rank32_cpu()[0], "times-demo-rank32-cpu", steps=40)]


def times_gutenberg_rank80_cpu() -> list[Study]:
    """How long steps take beside each other on a Llama of 10 M parameters: 20 steps a run, on an idle machine."""
    return [_shortened(peers_gutenberg_rank80_cpu()[0], "times-gutenberg-rank80-cpu", steps=20)]


ALL = (
    peers_demo_rank32_cpu,
    peers_small_rank16_cpu,
    peers_gutenberg_rank80_cpu,
    times_demo_rank32_cpu,
    times_gutenberg_rank80_cpu,
)
