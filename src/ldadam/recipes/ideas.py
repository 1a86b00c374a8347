"""What was tried beyond the paper, at equal bytes of state, each at its best of three learning rates."""

from __future__ import annotations

from typing import Any

from ldadam.comparison.study import Contestant, Study
from ldadam.recipes.llamas import HALF_DEMO

SEEDS = (0, 1, 2)
RATES = (4e-3, 8e-3, 16e-3)
SMALLER_RATES = (2e-3, 4e-3, 8e-3)
RANK = 16


def _option(name: str, **settings: Any) -> Contestant:
    return Contestant("ldadamw", RATES, {"rank": RANK, **settings}, name)


def _ranks(name: str, overrides: str) -> Contestant:
    return _option(name, rank_overrides=overrides)


def _variant(name: str, kind: str, *, rank: int = RANK, rates: tuple[float, ...] = RATES) -> Contestant:
    return Contestant(f"ldadam.recipes.variants:{kind}", rates, {"rank": rank}, name)


def ideas_small_rank16_cpu() -> list[Study]:
    """A Llama of half the demo's width, rank 16, half a minute a run: ideas beyond the paper."""
    # A layer keeps 192 numbers a rank for each of four matrices of attention, 416 for each of three of the MLP.
    contestants = (
        _option("LDAdamW"),
        _option("scaled residual", scaled_residual=True),
        _ranks("ranks 25 of attention, 10 of MLP", r"self_attn=25,mlp=10"),
        _ranks("ranks 30 of attention, 7 of MLP", r"self_attn=30,mlp=7"),
        _ranks("ranks 8 of attention, 20 of MLP", r"self_attn=8,mlp=20"),
        _option("scaled residual, ranks 25 and 10", scaled_residual=True, rank_overrides=r"self_attn=25,mlp=10"),
        _ranks("ranks 24, 16, 8 by layer", r"layers\.0\.=24,layers\.2\.=8"),
        _ranks("ranks 8, 16, 24 by layer", r"layers\.0\.=8,layers\.2\.=24"),
        _variant("ranks by spectrum, once", "SpectrumRanksOnce"),
        _variant("ranks by spectrum, every 50 steps", "SpectrumRanks"),
        _variant("rho: momentum as long as gradient", "BalancedRho"),
        _variant("rho: share of noise", "NoiseRho"),
        _option("subspace moves every 2 steps", update_interval=2),
        _option("subspace moves every 5 steps", update_interval=5),
        _option("subspace moves every 20 steps", update_interval=20),
        _variant("DCT", "DctBasis", rates=SMALLER_RATES),
        # No basis is kept: 1,568 numbers a rank and layer instead of 2,016.
        _variant("DCT, rank 20", "DctBasis", rank=20, rates=SMALLER_RATES),
    )
    shared = {**HALF_DEMO, "dense_lr_scale": 4.0}
    return [Study("ideas-small-rank16-cpu", "ideas beyond the paper", "pretrain", shared, contestants, SEEDS)]


ALL = (ideas_small_rank16_cpu,)
