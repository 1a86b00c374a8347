"""What optimizers reach in as many seconds, where steps do not take equally long."""

from __future__ import annotations

import dataclasses

from ldadam.comparison.study import Study
from ldadam.recipes.peers import peers_gutenberg_rank80_cpu

# By the name in the comparison after as many steps: the best learning rate there, and how many steps take as long as
# the first one's (benchmarks/results/times-gutenberg-rank80-cpu.json).
_TEN_MILLION = {
    "LDAdamW": (2e-3, 300),
    "LDAdamW, residual, int4, rank 63": (4e-3, 260),
    "adamw": (5e-4, 347),
    "galore": (5e-3, 331),
    "apollo": (1.25e-3, 336),
    "fira": (1.25e-3, 315),
    "muon": (2e-3, 280),
}


def equal_seconds_gutenberg_rank80_cpu() -> list[Study]:
    """A Llama of 10 M parameters on eighteen books: each optimizer in the seconds that LDAdamW's 300 steps take."""
    (study,) = peers_gutenberg_rank80_cpu()
    contestants = []
    for one in study.contestants:
        if one.title in _TEN_MILLION:
            lr, steps = _TEN_MILLION[one.title]
            settings = {**one.settings, "steps": steps}
            contestants.append(dataclasses.replace(one, lrs=(lr,), settings=settings))
    name, about = "equal-seconds-gutenberg-rank80-cpu", "every optimizer in the time of the first one's training"
    return [dataclasses.replace(study, name=name, about=about, contestants=tuple(contestants))]


ALL = (equal_seconds_gutenberg_rank80_cpu,)
