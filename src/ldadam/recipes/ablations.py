"""What each part of the method is worth: the demo's run with one thing changed."""

from __future__ import annotations

from typing import Any

from ldadam.comparison.study import Contestant, Study

SEEDS = (0, 1, 2)

# LDAdamW's best on the demo: benchmarks/results/peers-demo-rank32-cpu.json.
LR = 4e-3
RANK = 32


def _changed(name: str, **settings: Any) -> Contestant:
    return Contestant("ldadamw", (LR,), {"rank": RANK, **settings}, name)


def _variant(name: str, kind: str) -> Contestant:
    return Contestant(f"ldadam.recipes.variants:{kind}", (LR,), {"rank": RANK}, name)


def ablations_demo_rank32_cpu() -> list[Study]:
    """The demo's Llama on Python's own sources, rank 32, two cores: one thing changed, at one learning rate."""
    contestants = (
        _changed("LDAdamW"),
        _changed("error feedback off", error_feedback=False),
        _variant("error feedback of gradients only", "GradientFeedback"),
        _variant("error feedback of momentum only", "MomentumFeedback"),
        _variant("moments not carried over", "WithoutCarrying"),
        _variant("range finder at the start", "RangeFinderStart"),
        _changed("scaled residual", scaled_residual=True),
        _changed("scaled residual, error feedback off", scaled_residual=True, error_feedback=False),
        _variant("scaled residual of A", "ResidualOfCorrected"),
        _changed("SVD at each step", proj_method="svd"),
        _changed("rho 0", rho=0.0),
        _changed("rho 0.5", rho=0.5),
        _changed("rho 0.99", rho=0.99),
        _changed("rank 8", rank=8),
        _changed("rank 16", rank=16),
        _changed("rank 64", rank=64),
        # The same bytes: 2 x 16 x (128 + 2 x 128) numbers of q and k are 15 x (128 + 2 x 352) of down, but for 192.
        _changed("ranks of q and k halved for down", rank_overrides="q_proj|k_proj=16,down_proj=47"),
        _changed("subspace moves every 10 steps", update_interval=10),
        _changed("subspace moves every 100 steps", update_interval=100),
    )
    shared = {
        "preset": "demo",
        "dense_lr_scale": 4.0,
        "device": "cpu",
        "eval_every": 100,
        "save_every": 600,
        "monitor_every": 0,
    }
    return [Study("ablations-demo-rank32-cpu", "one thing changed", "pretrain", shared, contestants, SEEDS)]


ALL = (ablations_demo_rank32_cpu,)
