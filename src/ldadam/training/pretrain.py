"""`pretrain`: one run from its configuration to its last checkpoint. Read this first."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldadam.training import checkpoints, run_folder
from ldadam.training.config import PretrainConfig, tokens_per_step
from ldadam.training.corpora import open_corpus
from ldadam.training.errors import UsageError
from ldadam.training.interrupts import StopOnSignal
from ldadam.training.layouts import place_model
from ldadam.training.loop import train_to_the_end
from ldadam.training.model import build_model, choose_device
from ldadam.training.optimizers import build_optimizer
from ldadam.training.packing import PackedCorpus, fingerprint, pack_corpus, tokenizer_for
from ldadam.training.ranks import Ranks, joined
from ldadam.training.recorder import Recorder
from ldadam.training.trainer import make_trainer


@dataclass(frozen=True)
class Text:
    """A tokenizer and the blocks it made; two runs on the same text can share it."""

    tokenizer: Any
    packed: PackedCorpus


def pretrain(config: PretrainConfig, *, resume: bool = False, text: Text | None = None, title: str = "") -> Path:
    """Train the model that `config` describes and return the folder of the run.

    Args:
        config: a resolved configuration.
        resume: continue the run in `config.out` from its last complete checkpoint.
        text: tokenized text to use instead of reading the corpus.
        title: shown beside the progress bar.
    """
    run = Path(config.out)
    with joined(config) as ranks, ranks.explain_loss_of_rank(run):
        with ranks.together():
            if not resume:
                run_folder.refuse_existing(run)
            if config.threads:
                torch.set_num_threads(config.threads)
            device = choose_device(config.device)
            text = text or prepare_text(config)
        _refuse_different_text(ranks, text)
        model = place_model(build_model(config, text.tokenizer), config, ranks.launch, device)
        optimizer = build_optimizer(model, config)
        checkpoint = ranks.on_first(lambda: _open_folder(config, run, ranks, text, model, resume=resume))
        if checkpoint is None or checkpoints.step_of(checkpoint) < (config.steps or 0):
            _train(config, run, ranks, device, model, optimizer, text, checkpoint, title or config.optimizer)
    return run


def _refuse_different_text(ranks: Ranks, text: Text) -> None:
    """Every rank reads the corpus itself, on a disk of its own perhaps."""
    fingerprints = ranks.gather(text.packed.fingerprint)
    for rank, found in enumerate(fingerprints):
        if found != fingerprints[0]:
            raise UsageError(f"ranks 0 and {rank} read different text: give both hosts the same corpus and tokenizer")


def _open_folder(
    config: PretrainConfig, run: Path, ranks: Ranks, text: Text, model: torch.nn.Module, *, resume: bool
) -> Path | None:
    """Make the run's folder, or check that of the run to go on with; returns the checkpoint to start from."""
    checkpoint = None
    if resume:
        run_folder.check_same_circumstances(run, text.packed.fingerprint)
        checkpoint = run_folder.prepare_resume(run, num_steps=config.steps or 0)
    else:
        _create(run, config, text, model)
    after_step = checkpoints.step_of(checkpoint) if checkpoint else 0
    if after_step < (config.steps or 0):
        run_folder.record_layout(run, config, world_size=ranks.size, after_step=after_step)
    return checkpoint


def prepare_text(config: PretrainConfig) -> Text:
    """Read, tokenize and pack the corpus of a run."""
    assert config.sequence_length and config.eval_tokens and config.steps
    corpus = open_corpus(
        config.corpus,
        config=config.corpus_config,
        seed=config.seed,
        validation_fraction=config.validation_fraction,
    )
    tokenizer = tokenizer_for(
        corpus, name=config.tokenizer, vocab_size=config.vocab_size, saved=Path(config.out) / "tokenizer"
    )
    packed = pack_corpus(
        corpus,
        tokenizer,
        sequence_length=config.sequence_length,
        num_samples=config.steps * tokens_per_step(config) // config.sequence_length,
        eval_tokens=config.eval_tokens,
        seed=config.seed,
    )
    return Text(tokenizer, packed)


def _create(run: Path, config: PretrainConfig, text: Text, model: torch.nn.Module) -> None:
    """The folder of a new run, with all that is known before the first step."""
    facts = {
        "title": f"{config.preset} preset on {config.corpus}",
        "loss_unit": "nats per token",
        "fingerprint": text.packed.fingerprint,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_tokens": text.packed.num_train_tokens,
        "validation_fingerprint": fingerprint(text.packed.validation),
        "validation_tokens": text.packed.validation.numel(),
    }
    run_folder.create(run, config, facts)
    text.tokenizer.save_pretrained(run / "tokenizer")


def _train(
    config: PretrainConfig,
    run: Path,
    ranks: Ranks,
    device: torch.device,
    model: Any,
    optimizer: torch.optim.Optimizer,
    text: Text,
    checkpoint: Path | None,
    title: str,
) -> None:
    """The training loop between its two ends: a checkpoint to start from, and the last step or a signal."""
    if config.parallel == "compressed" and config.monitor_every and ranks.is_first:
        print("ldadam: the subspace is not measured: parallel compressed never forms the gradient", file=sys.stderr)
    recorder = Recorder(config, run, model, optimizer, ranks)
    stop = StopOnSignal(ranks)
    trainer = make_trainer(
        config,
        run=run,
        device=device,
        model=model,
        optimizer=optimizer,
        data=text.packed,
        tokenizer=text.tokenizer,
        recorder=recorder,
        ranks=ranks,
        callbacks=[recorder, stop],
    )
    train_to_the_end(trainer, stop, checkpoint=checkpoint, title=title)
