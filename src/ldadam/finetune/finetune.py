"""`finetune`: one run from its configuration to its last checkpoint. Read this first."""

from __future__ import annotations

from pathlib import Path

import torch

from ldadam.finetune import local_files, offline
from ldadam.finetune.answering import answering
from ldadam.finetune.classification import classification
from ldadam.finetune.config import FinetuneConfig, goal_of, in_steps
from ldadam.finetune.examples import Labelled, Problems
from ldadam.finetune.goals import Goal
from ldadam.finetune.hub import open_gsm8k, open_hub_task
from ldadam.finetune.task_names import CLASSIFICATION
from ldadam.finetune.trainer import FinetuneTrainer
from ldadam.training import checkpoints, run_folder
from ldadam.training.errors import UsageError
from ldadam.training.interrupts import StopOnSignal
from ldadam.training.launch import find_launch
from ldadam.training.loop import train_to_the_end
from ldadam.training.model import choose_device
from ldadam.training.optimizers import build_optimizer
from ldadam.training.passes import ShuffledPasses
from ldadam.training.ranks import Ranks
from ldadam.training.recorded_trainer import training_arguments
from ldadam.training.recorder import Recorder


def finetune(config: FinetuneConfig, *, resume: bool = False) -> Path:
    """Train the model that `config` names on its data, and return the folder of the run.

    Args:
        config: a resolved configuration.
        resume: continue the run in `config.out` from its last complete checkpoint.
    """
    run, launch = Path(config.out), find_launch()
    if launch.world_size > 1:
        raise UsageError(f"finetune runs in one process, and there are {launch.world_size}: start it without torchrun")
    if not resume:
        run_folder.refuse_existing(run)
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    goal = open_goal(config)
    goal.model.to(device)
    planned = in_steps(config, num_samples=len(goal.samples))
    optimizer = build_optimizer(goal.model, planned)
    if resume:
        run_folder.check_same_circumstances(run, goal.fingerprint)
        checkpoint = run_folder.prepare_resume(run, num_steps=planned.steps or 0)
    else:
        _create(run, config, planned, goal)
        checkpoint = None
    if checkpoint is None or checkpoints.step_of(checkpoint) < (planned.steps or 0):
        _train(planned, run, Ranks(launch), device, goal, optimizer, checkpoint)
    return run


def open_goal(config: FinetuneConfig) -> Goal:
    """The data, and the model on the CPU."""
    data = open_data(config)
    return classification(config, data) if isinstance(data, Labelled) else answering(config, data)


def open_data(config: FinetuneConfig) -> Labelled | Problems:
    """What `--task` or `--train` names."""
    if config.task is None:
        labelled = goal_of(config) == CLASSIFICATION
        return local_files.open_labelled(config) if labelled else local_files.open_problems(config)
    if config.task in offline.OFFLINE_SETS:
        return offline.OFFLINE_SETS[config.task]()
    problems = {"gsm8k": open_gsm8k, "gsm-symbolic": offline.gsm_symbolic}
    return problems[config.task]() if config.task in problems else open_hub_task(config.task)


def _create(run: Path, config: FinetuneConfig, planned: FinetuneConfig, goal: Goal) -> None:
    """The folder of a new run, with all that is known before the first step."""
    facts = {
        "title": f"{config.model} on {config.task or Path(config.train or '').name}",
        "loss_unit": goal.loss_unit,
        "fingerprint": goal.fingerprint,
        "parameters": sum(parameter.numel() for parameter in goal.model.parameters()),
        "steps": planned.steps,
        **goal.facts,
    }
    classes = f"; classes: {', '.join(goal.facts['labels'])}" if goal.facts.get("labels") else ""
    train, held_out = (goal.facts[f"{side}_examples"] for side in ("train", "validation"))
    print(f"{facts['title']}: {train:,} examples to train on, {held_out:,} held out{classes}", flush=True)
    run_folder.create(run, config, facts)
    goal.tokenizer.save_pretrained(run / "tokenizer")


def _train(
    config: FinetuneConfig,
    run: Path,
    ranks: Ranks,
    device: torch.device,
    goal: Goal,
    optimizer: torch.optim.Optimizer,
    checkpoint: Path | None,
) -> None:
    """The training loop, with the samples in an order that hangs on the seed alone."""
    assert config.steps and config.batch_size and config.grad_accum
    recorder = Recorder(config, run, goal.model, optimizer, ranks)
    stop = StopOnSignal(ranks)
    num_samples = config.steps * config.batch_size * config.grad_accum
    trainer = FinetuneTrainer(
        goal=goal,
        recorder=recorder,
        ranks=ranks,
        settings=config,
        run=run,
        args=training_arguments(config, run, device, batch_size=config.batch_size),
        train_dataset=ShuffledPasses(goal.samples, num_samples=num_samples, seed=config.seed),
        optimizers=(optimizer, None),
        callbacks=[recorder, stop],
    )
    train_to_the_end(trainer, stop, checkpoint=checkpoint, title=config.optimizer)
