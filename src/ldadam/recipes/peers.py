"""LDAdamW beside every other optimizer on the same pre-training, each at its best of four learning rates."""

from __future__ import annotations

from ldadam.comparison.study import Contestant, Study

SEEDS = (0, 1, 2)

# A quarter of the demo's width.
RANK = 32


def peers_demo_rank32_cpu() -> list[Study]:
    """The demo's Llama on Python's own sources, rank 32, two cores: what `make bench-peers` installs."""
    # A factor of two apart, around what is known of each: our sweep of the first two, else its authors' scale.
    adam, low_rank = (1e-3, 2e-3, 4e-3, 8e-3), (5e-3, 1e-2, 2e-2, 4e-2)
    ours, adafactor = (2e-3, 4e-3, 8e-3, 16e-3), (1e-2, 2e-2, 4e-2, 8e-2)
    contestants = (
        Contestant("ldadamw", ours, {"rank": RANK}, "LDAdamW"),
        Contestant("ldadamw", ours, {"rank": RANK, "scaled_residual": True}, "LDAdamW, scaled residual"),
        Contestant("adamw", adam),
        Contestant("galore", low_rank, {"rank": RANK}),
        Contestant("apollo", low_rank, {"rank": RANK}),
        Contestant("fira", low_rank, {"rank": RANK}),
        Contestant("adafactor", adafactor),
        Contestant("muon", ours),
        Contestant("adamw8bit", adam),
        Contestant("adamw4bit", adam),
    )
    shared = {"preset": "demo", "device": "cpu", "eval_every": 100, "save_every": 600, "monitor_every": 0}
    return [Study("peers-demo-rank32-cpu", "every peer", "pretrain", shared, contestants, SEEDS)]


ALL = (peers_demo_rank32_cpu,)
