"""What each part of the method is worth: one thing changed, all at LDAdamW's best learning rate."""

from __future__ import annotations

from typing import Any

from ldadam.comparison.study import Contestant, Study
from ldadam.recipes.llamas import DEMO, HALF_DEMO

SEEDS = (0, 1, 2)


def _ablations(name: str, llama: dict[str, Any], *, rank: int, lr: float, overrides: str) -> list[Study]:
    """`lr` is the best one of this rank with nothing changed: what profits from another one is understated."""

    def changed(title: str, **settings: Any) -> Contestant:
        return Contestant("ldadamw", (lr,), {"rank": rank, **settings}, title)

    def variant(title: str, kind: str) -> Contestant:
        return Contestant(f"ldadam.recipes.variants:{kind}", (lr,), {"rank": rank}, title)

    contestants = (
        changed("LDAdamW"),
        changed("error feedback off", error_feedback=False),
        variant("error feedback of gradients only", "GradientFeedback"),
        variant("error feedback of momentum only", "MomentumFeedback"),
        variant("moments not carried over", "WithoutCarrying"),
        variant("range finder at the start", "RangeFinderStart"),
        changed("scaled residual", scaled_residual=True),
        changed("scaled residual, error feedback off", scaled_residual=True, error_feedback=False),
        variant("scaled residual of A", "ResidualOfCorrected"),
        changed("SVD at each step", proj_method="svd"),
        changed("rho 0", rho=0.0),
        changed("rho 0.5", rho=0.5),
        changed("rho 0.99", rho=0.99),
        *(changed(f"rank {other}", rank=other) for other in (rank // 4, rank // 2, rank * 2)),
        changed("ranks of q and k halved for down", rank_overrides=overrides),
        changed("subspace moves every 10 steps", update_interval=10),
        changed("subspace moves every 100 steps", update_interval=100),
    )
    shared = {**llama, "dense_lr_scale": 4.0}
    return [Study(name, "one thing changed", "pretrain", shared, contestants, SEEDS)]


def ablations_demo_rank32_cpu() -> list[Study]:
    """The demo's Llama on Python's own sources, rank 32, two cores: one thing changed, at one learning rate."""
    # The same bytes: 2 x 16 x (128 + 2 x 128) numbers of q and k are 15 x (128 + 2 x 352) of down, but for 192.
    overrides = "q_proj|k_proj=16,down_proj=47"
    return _ablations("ablations-demo-rank32-cpu", DEMO, rank=32, lr=4e-3, overrides=overrides)


def ablations_small_rank16_cpu() -> list[Study]:
    """A Llama of half the demo's width, rank 16, half a minute a run: one thing changed, at one learning rate."""
    # The same bytes: 2 x 8 x (64 + 2 x 64) numbers of q and k are 7 x (64 + 2 x 176) of down, but for 160.
    overrides = "q_proj|k_proj=8,down_proj=23"
    return _ablations("ablations-small-rank16-cpu", HALF_DEMO, rank=16, lr=8e-3, overrides=overrides)


ALL = (ablations_demo_rank32_cpu, ablations_small_rank16_cpu)
