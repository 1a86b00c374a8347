"""Fine-tuning as in the papers: RoBERTa on GLUE, Llama-2 on GSM8K."""

from __future__ import annotations

from typing import Any

from ldadam.comparison.study import Contestant, Study
from ldadam.finetune.task_names import GLUE

# All of GLUE but for WNLI, and MNLI once.
EIGHT_TASKS = tuple(task for task in GLUE if task not in ("wnli", "mnli-mismatched"))

# The papers sweep a range like this one; it is ours, the same for both.
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4)


def roberta_base_glue_rank8_1gpu() -> list[Study]:
    """RoBERTa-base on eight GLUE tasks, rank 8, one GPU: 3 epochs, batches of 16, 128 tokens, five learning rates."""
    settings: dict[str, Any] = {
        "model": "roberta-base",
        "epochs": 3.0,
        "batch_size": 16,
        "length": 128,
        "schedule": "linear",
        "device": "cuda",
    }
    contestants = (Contestant("ldadamw", RATES, {"rank": 8}), Contestant("adamw", RATES))
    about = "arXiv 2410.16103, fine-tuning on GLUE"
    return [
        Study(task, about, "finetune", {"task": task, **settings}, contestants, seeds=(0, 1, 2)) for task in EIGHT_TASKS
    ]


GSM8K: dict[str, Any] = {
    "model": "meta-llama/Llama-2-7b-hf",
    "task": "gsm8k",
    "epochs": 3.0,
    "length": 512,
    "schedule": "linear",
    "dtype": "bfloat16",
    "device": "cuda",
    "gradient_checkpointing": True,
}


def llama2_7b_gsm8k_rank32_80gb() -> list[Study]:
    """Llama-2-7B on GSM8K, rank 32, one GPU of 80 GB: 3 epochs, batches of 32, 512 tokens, bfloat16, linear decay."""
    settings = {**GSM8K, "batch_size": 8, "grad_accum": 4}
    rates = (1e-5, 2e-5, 4e-5)
    contestants = (Contestant("ldadamw", rates, {"rank": 32}), Contestant("adamw", rates))
    about = "arXiv 2410.16103, fine-tuning on GSM8K"
    return [Study("llama2-7b-gsm8k-rank32-80gb", about, "finetune", settings, contestants)]


def llama2_7b_gsm8k_rank32_24gb() -> list[Study]:
    """The same on one GPU of 24 GB: an int4 error buffer, the step inside of backward, stochastic rounding."""
    settings = {**GSM8K, "batch_size": 2, "grad_accum": 16}
    own = {"rank": 32, "error_dtype": "int4", "step_in_backward": True, "stochastic_rounding": True}
    about = "our own memory settings on the published work"
    return [Study("llama2-7b-gsm8k-rank32-24gb", about, "finetune", settings, (Contestant("ldadamw", (2e-5,), own),))]


ALL = (roberta_base_glue_rank8_1gpu, llama2_7b_gsm8k_rank32_80gb, llama2_7b_gsm8k_rank32_24gb)
