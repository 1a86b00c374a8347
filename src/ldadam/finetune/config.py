"""`FinetuneConfig`: every setting of a fine-tuning run, once.

Order of precedence: command line, config file, defaults of the goal, optimizer defaults. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ldadam.finetune.task_names import ANSWERING, CLASSIFICATION, goal_of_task
from ldadam.training.errors import UsageError
from ldadam.training.run_config import RunConfig, check_shared_ranges, fill, option, refuse_below_one

TASKS = "a GLUE task such as cola, superglue-NAME, gsm8k; offline: movie-sentiment, boolq, trec, spam, gsm-symbolic"


@dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """Settings of one run. `None` means: take the default of the goal or of the optimizer."""

    subcommand = "finetune"

    model: str | None = option(
        None, "hub id or folder of the model; offline: minilm (an encoder) or smollm2 (a causal model)", panel="Model"
    )
    length: int | None = option(None, "tokens per sequence, at most; longer ones are cut", panel="Model")
    gradient_checkpointing: bool = option(False, "compute activations anew instead of keeping them", panel="Model")

    task: str | None = option(None, TASKS, panel="Data")
    train: str | None = option(None, "file to train on instead of a task: .csv, .tsv or .jsonl", panel="Data")
    validation: str | None = option(None, "file to evaluate on; none: one in ten of --train, by hash", panel="Data")
    text_column: str = option("text", "column of the text to classify", panel="Data")
    pair_column: str | None = option(None, "column of a second text beside it", panel="Data")
    label_column: str = option("label", "column of its label", panel="Data")
    prompt_column: str | None = option(None, "column of prompts; makes the goal to answer them", panel="Data")
    answer_column: str = option("answer", "column of their answers", panel="Data")
    train_examples: int | None = option(None, "how many examples to train on, at most", panel="Data")
    eval_examples: int | None = option(None, "how many examples to evaluate on, at most", panel="Data")

    prompt_template: str = option("{prompt}\n", "what the model reads before it answers", panel="Answering")
    packing: bool = option(False, "several examples in a sequence, which do not see each other", panel="Answering")
    generate_tokens: int = option(256, "tokens of a generated answer, at most; 0: do not generate", panel="Answering")

    epochs: float | None = option(None, "passes over the examples, instead of --steps", panel="Training")
    schedule: str = option(
        "linear", "learning rate after warm-up", panel="Training", choices=("linear", "cosine", "constant")
    )

    out: str = option("runs/finetune", "folder of the run", panel="Run", resume="may change")


# RoBERTa on GLUE and Llama-2 on GSM8K as published; learning rates of encoders: docs/log.md.
DEFAULTS: dict[str, dict[str, Any]] = {
    CLASSIFICATION: {"length": 128, "batch_size": 16, "rank": 8},
    ANSWERING: {"length": 512, "batch_size": 32, "rank": 32},
}
LEARNING_RATES = {
    CLASSIFICATION: {"ldadamw": 3e-4, "adamw": 1e-4},
    ANSWERING: {"ldadamw": 2e-5, "adamw": 2e-5},
}
EPOCHS = 3.0
OF_ANSWERING = ("prompt_template", "packing", "generate_tokens")


def goal_of(config: FinetuneConfig) -> str:
    """What the model learns: to classify texts, or to answer prompts.

    Raises:
        UsageError: there is no data, or two kinds of it.
    """
    if config.task is not None and config.train is not None:
        raise UsageError(f"give task or train, not both: got task={config.task} and train={config.train}")
    if config.task is not None:
        for name in ("validation", "prompt_column", "pair_column"):
            if getattr(config, name) is not None:
                raise UsageError(f"{name} belongs to --train FILE; task {config.task} brings its own")
        return goal_of_task(config.task)
    if config.train is None:
        raise UsageError(f"what to train on is missing: give --task ({TASKS}), or --train FILE")
    return CLASSIFICATION if config.prompt_column is None else ANSWERING


def resolve(settings: dict[str, Any]) -> FinetuneConfig:
    """`settings` with everything filled in that does not hang on the data, and every value checked."""
    from ldadam.training.optimizers import find_optimizer

    config = FinetuneConfig(**settings)
    goal = goal_of(config)
    if config.model is None:
        raise UsageError("model is missing: give --model a hub id, a folder, minilm or smollm2")
    foreign = [name for name in OF_ANSWERING if getattr(config, name) != getattr(FinetuneConfig, name)]
    if goal == CLASSIFICATION and foreign:
        raise UsageError(f"{foreign[0]} is for answering prompts, and this run classifies: leave it out")
    choice = find_optimizer(config.optimizer)
    choice.refuse_foreign_options(settings)
    defaults = {name: value for name, value in DEFAULTS[goal].items() if name not in choice.foreign_options()}
    open_values = {
        **{"max_grad_norm": choice.max_grad_norm, "dtype": "float32"},
        **{"grad_accum": 1, "log_every": 1, "monitor_every": 50},
        **choice.defaults(),
        **defaults,
        "lr": LEARNING_RATES[goal].get(config.optimizer),
    }
    if config.steps is None:
        open_values["epochs"] = EPOCHS
    config = fill(config, open_values)
    if config.lr is None:
        raise UsageError(f"lr is missing: no learning rate of {config.optimizer} for fine-tuning is known, give --lr")
    check_ranges(config)
    return config


def check_ranges(config: FinetuneConfig) -> None:
    """Refuse numbers out of range. The optimizer checks its own hyperparameters."""
    check_shared_ranges(config)
    refuse_below_one(config, ("train_examples", "eval_examples"))
    if config.length is not None and config.length < 4:
        raise UsageError(f"length must be at least 4, got {config.length}")
    if config.generate_tokens < 0:
        raise UsageError(f"generate_tokens must be 0 or more, got {config.generate_tokens}")
    if config.epochs is not None and not config.epochs > 0:
        raise UsageError(f"epochs must be above 0, got {config.epochs}")
    if "{prompt}" not in config.prompt_template:
        raise UsageError(f"prompt_template must hold {{prompt}}, got {config.prompt_template!r}")


def in_steps(config: FinetuneConfig, *, num_samples: int) -> FinetuneConfig:
    """`config` with its length in steps, and evaluations and checkpoints after each pass unless told otherwise."""
    assert config.batch_size and config.grad_accum
    per_step = config.batch_size * config.grad_accum
    steps = config.steps or math.ceil((config.epochs or EPOCHS) * num_samples / per_step)
    per_pass = min(steps, math.ceil(num_samples / per_step))
    return fill(dataclasses.replace(config, steps=steps), {"eval_every": per_pass, "save_every": per_pass})
