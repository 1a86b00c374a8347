"""Model sizes and the settings each was given: two for this machine, five from the papers."""

from __future__ import annotations

from dataclasses import dataclass

from ldadam.training.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """Everything a run needs that the user did not say. Names are those of `PretrainConfig`, but for `dense_lr`."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    rank: int
    lr: dict[str, float]
    steps: int
    batch_size: int
    grad_accum: int = 1
    sequence_length: int = 256
    vocab_size: int | None = None  # of the tokenizer that is trained on the corpus
    tokenizer: str | None = None  # the name of a ready one
    dtype: str = "float32"
    eval_tokens: int = 100_000
    eval_every: int = 100
    save_every: int = 200
    log_every: int = 1
    monitor_every: int = 10
    dense_lr: float | None = None  # of embeddings, head and vectors, beside the rates of `lr`; None: the same as those


def _paper(
    hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int, *, rank: int, steps: int, lr: float
) -> Preset:
    """The Llama sizes of ReLoRA, GaLore and LDAdam on C4: 512 sequences of 256 tokens a step, bfloat16 weights.

    lr = 1e-3 is what LDAdam's scripts use for 350M with both optimizers; the value for the other sizes follows it,
    halved from 1B up, and is a starting point rather than a tuned value.
    """
    return Preset(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        rank=rank,
        lr={"ldadamw": lr, "adamw": lr},
        steps=steps,
        batch_size=64,
        grad_accum=8,
        tokenizer="t5-base",
        dtype="bfloat16",
        eval_tokens=10_000_000,
        eval_every=1000,
        save_every=1000,
        log_every=10,
        monitor_every=100,
    )


PRESETS: dict[str, Preset] = {
    # About two minutes for each optimizer on two cores.
    "demo": Preset(
        hidden_size=128,
        intermediate_size=352,
        num_layers=4,
        num_heads=4,
        rank=32,
        # The best of three with this `dense_lr` (docs/results.md); of the last two as of AdamW.
        lr={"ldadamw": 4e-3, "adamw": 2e-3, "muon": 4e-3, "adamw8bit": 2e-3, "adamw4bit": 2e-3},
        dense_lr=0.032,
        steps=600,
        batch_size=16,
        sequence_length=128,
        vocab_size=4096,
        eval_tokens=40_000,
        eval_every=50,
        save_every=200,
    ),
    # 20 M parameters: hours on two cores, minutes on a GPU.
    "20m": Preset(
        hidden_size=384,
        intermediate_size=1024,
        num_layers=8,
        num_heads=6,
        rank=96,
        lr={"ldadamw": 1e-3, "adamw": 1e-3},
        steps=4000,
        batch_size=32,
        vocab_size=8192,
        eval_tokens=200_000,
        eval_every=200,
        save_every=200,
        monitor_every=20,
    ),
    "60m": _paper(512, 1376, 8, 8, rank=128, steps=10_000, lr=1e-3),
    "130m": _paper(768, 2048, 12, 12, rank=256, steps=20_000, lr=1e-3),
    "350m": _paper(1024, 2736, 24, 16, rank=256, steps=60_000, lr=1e-3),
    "1b": _paper(2048, 5461, 24, 32, rank=512, steps=100_000, lr=5e-4),
    "7b": _paper(4096, 11008, 32, 32, rank=1024, steps=150_000, lr=5e-4),
}


def find_preset(name: str) -> Preset:
    """The preset called `name`."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
