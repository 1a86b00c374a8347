"""LDAdamW beside every other optimizer on the same pre-training, each at its best of three or four learning rates."""

from __future__ import annotations

import dataclasses
from typing import Any

from ldadam.comparison.study import Contestant, Study
from ldadam.recipes.llamas import DEMO, HALF_DEMO, TEN_MILLION

SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class _Rates:
    """One learning rate for embeddings, and for matrices the smallest that is tried, followed by doubles of it.

    By default those of the demo.

    Attributes:
        dense: of embeddings, head and vectors with every optimizer; betas and clipping stay each one's own.
        ours: of the LDAdamWs whose error buffer is float32.
        int4: of those whose error buffer is int4.
        adam: of AdamW, and of 4-bit AdamW.
        adam99: of AdamW with the second beta of LDAdamW.
        adam8bit: of 8-bit AdamW.
        galore: it takes a quarter of what it is given.
        apollo: of APOLLO.
        fira: of Fira.
        adafactor: of Adafactor, whose rates are relative to a weight's size.
        muon: of Muon.
        count: how many are tried for each.
    """

    dense: float = 0.032
    ours: float = 2e-3
    int4: float = 2e-3
    adam: float = 1e-3
    adam99: float = 1e-3
    adam8bit: float = 1e-3
    galore: float = 1e-2
    apollo: float = 5e-3
    fira: float = 2.5e-3
    adafactor: float = 2e-2
    muon: float = 2e-3
    count: int = 3

    def from_(self, first: float) -> tuple[float, ...]:
        """All that are tried, by the first."""
        return tuple(first * 2**doubling for doubling in range(self.count))


def _beside(name: str, llama: dict[str, Any], rates: _Rates, *, rank: int, small_rank: int) -> list[Study]:
    """Adafactor keeps a ratio of four between the two rates, as far as its 1/√t allows.

    Args:
        name: of the study.
        llama: what is trained.
        rates: the first ones of each.
        rank: of all low-rank optimizers.
        small_rank: the largest at which LDAdamW with an int4 error buffer keeps no more bytes than APOLLO and Fira.
    """
    ours, int4, adam = (rates.from_(first) for first in (rates.ours, rates.int4, rates.adam))
    with_rank, residual = {"rank": rank}, {"rank": rank, "scaled_residual": True}
    smallest = {**residual, "error_dtype": "int4"}
    contestants = (
        Contestant("ldadamw", ours, with_rank, "LDAdamW"),
        Contestant("ldadamw", ours, residual, "LDAdamW, scaled residual"),
        Contestant("ldadamw", int4, smallest, "LDAdamW, scaled residual, int4"),
        Contestant("ldadamw", int4, {**smallest, "rank": small_rank}, f"LDAdamW, residual, int4, rank {small_rank}"),
        Contestant("adamw", adam),
        Contestant("adamw", rates.from_(rates.adam99), {"beta2": 0.99}, "adamw, beta2 0.99"),
        Contestant("galore", rates.from_(rates.galore), with_rank),
        Contestant("apollo", rates.from_(rates.apollo), with_rank),
        Contestant("fira", rates.from_(rates.fira), with_rank),
        Contestant("adafactor", rates.from_(rates.adafactor), {"dense_lr_scale": 4.0}),
        Contestant("muon", rates.from_(rates.muon)),
        Contestant("adamw8bit", rates.from_(rates.adam8bit)),
        Contestant("adamw4bit", adam),
    )
    about = "every optimizer that can be installed beside it"
    return [Study(name, about, "pretrain", llama, contestants, SEEDS, rates.dense)]


def peers_demo_rank32_cpu() -> list[Study]:
    """The demo's Llama on Python's own sources, rank 32, two cores: what `make peers` installs."""
    return _beside("peers-demo-rank32-cpu", DEMO, _Rates(), rank=32, small_rank=25)


def peers_small_rank16_cpu() -> list[Study]:
    """A Llama of half the demo's width, rank 16, half a minute a run: the same optimizers, four rates."""
    return _beside("peers-small-rank16-cpu", HALF_DEMO, _Rates(fira=5e-3, count=4), rank=16, small_rank=12)


def peers_gutenberg_rank80_cpu() -> list[Study]:
    """A Llama of 10 M parameters on eighteen books, rank 80, five minutes a run: the same optimizers."""
    rates = _Rates(
        dense=0.064,
        ours=1e-3,
        adam=2.5e-4,
        adam99=5e-4,
        adam8bit=1.25e-4,
        galore=2.5e-3,
        apollo=6.25e-4,
        fira=6.25e-4,
        adafactor=1e-2,
        muon=1e-3,
    )
    return _beside("peers-gutenberg-rank80-cpu", TEN_MILLION, rates, rank=80, small_rank=63)


def _shortened(study: Study, name: str, *, steps: int) -> Study:
    """As long as tells what a step of each contestant takes, which depends on neither learning rate nor beta2."""
    timed = (one for one in study.contestants if "beta2" not in one.settings)
    return dataclasses.replace(
        study,
        name=name,
        about="how long a step of each optimizer takes, on a machine with nothing else to do",
        settings={**study.settings, "steps": steps, "eval_every": steps, "save_every": steps, "eval_tokens": 4096},
        contestants=tuple(dataclasses.replace(one, lrs=one.lrs[:1]) for one in timed),
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
