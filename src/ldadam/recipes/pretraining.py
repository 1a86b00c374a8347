"""Llamas on C4 as in the papers: 512 sequences of 256 tokens a step, bfloat16, cosine to a tenth of the rate."""

from __future__ import annotations

from typing import Any

from ldadam.comparison.study import Contestant, Study

C4: dict[str, Any] = {
    "corpus": "allenai/c4",
    "corpus_config": "en",
    "schedule": "cosine",
    "warmup": 0.1,
    "final_lr": 0.1,
    "dtype": "bfloat16",
    "device": "cuda",
}


def _on_c4(name: str, preset: str, *, lr: float, rank: int, sequences: int, parallel: str = "none") -> list[Study]:
    """LDAdamW as published, beside Adam with clipping at 1.0, each at the published learning rate.

    Args:
        name: of the recipe.
        preset: of `ldadam pretrain`, which has the model's shape and the number of steps.
        lr: peak learning rate.
        rank: of LDAdamW.
        sequences: in a forward pass of all devices together; 512 make a step.
        parallel: how the devices share the work.
    """
    shape = {"preset": preset, "batch_size": sequences, "grad_accum": 512 // sequences, "parallel": parallel}
    ldadamw = {"rank": rank, "beta1": 0.908, "beta2": 0.99, "rho": 0.908, "max_grad_norm": 0.0}
    adamw = {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "max_grad_norm": 1.0}
    contestants = (Contestant("ldadamw", (lr,), ldadamw), Contestant("adamw", (lr,), adamw))
    return [Study(name, "arXiv 2410.16103, pre-training on C4", "pretrain", {**shape, **C4}, contestants)]


def llama_130m_c4_rank256_1gpu() -> list[Study]:
    """Llama 130M on C4, rank 256, one GPU: 20,000 steps, 2.6 B tokens."""
    return _on_c4("llama-130m-c4-rank256-1gpu", "130m", lr=1e-3, rank=256, sequences=128)


def llama_350m_c4_rank256_1gpu() -> list[Study]:
    """Llama 350M on C4, rank 256, one GPU: 60,000 steps, 7.9 B tokens."""
    return _on_c4("llama-350m-c4-rank256-1gpu", "350m", lr=1e-3, rank=256, sequences=64)


def llama_1b_c4_rank512_8gpu() -> list[Study]:
    """Llama 1.3B on C4, rank 512, eight GPUs with DDP: 100,000 steps, 13.1 B tokens."""
    return _on_c4("llama-1b-c4-rank512-8gpu", "1b", lr=1e-3, rank=512, sequences=128, parallel="ddp")


ALL = (llama_130m_c4_rank256_1gpu, llama_350m_c4_rank256_1gpu, llama_1b_c4_rank512_8gpu)
