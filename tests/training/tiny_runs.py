"""A corpus and a model small enough that a real run takes a second."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from ldadam.cli import run as run_cli
from ldadam.training.config import PretrainConfig, resolve
from ldadam.training.metrics import TIME_FIELDS, read_metrics

WORDS = ("the", "cat", "sat", "on", "a", "warm", "mat", "while", "seven", "small", "birds", "sang", "about", "rain")

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 2,
    "sequence_length": 32,
    "vocab_size": 300,
    "batch_size": 4,
    "steps": 12,
    "eval_tokens": 700,
    "eval_every": 5,
    "save_every": 4,
    "log_every": 1,
    "monitor_every": 3,
    "threads": 1,
    "device": "cpu",
}


def documents(count: int = 150, *, seed: int = 0) -> list[str]:
    """Sentences of random words, all different."""
    rng = random.Random(seed)
    return [f"{number}: {' '.join(rng.choices(WORDS, k=60))}.\n" for number in range(count)]


def write_corpus(folder: Path, *, seed: int = 0) -> Path:
    """The documents as a .jsonl file."""
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(seed=seed)))
    return path


def settings(out: Path, corpus: Path, **changes) -> dict:
    """Settings of a tiny run; ldadamw has rank 4 unless told otherwise."""
    rank = {} if changes.get("optimizer", "ldadamw") == "adamw" else {"rank": 4}
    return {**TINY, **rank, "corpus": str(corpus), "out": str(out), **changes}


def config(out: Path, corpus: Path, **changes) -> PretrainConfig:
    """The resolved configuration of a tiny run."""
    return resolve(settings(out, corpus, **changes))


def options(out: Path, corpus: Path, **changes) -> list[str]:
    """The same as command line options, without a report."""
    found = []
    for name, value in settings(out, corpus, **changes).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            found += [f"--{flag}", str(value)]
    return ["pretrain", *found, "--no-report"]


def ldadam(*arguments: str) -> int:
    """Run the command in this process; returns its exit code."""
    return run_cli([str(argument) for argument in arguments])


def start(*arguments: str) -> subprocess.Popen:
    """Run the command in a process of its own."""
    return _start("-m", "ldadam", *arguments)


def start_ranks(count: int, *arguments: str) -> subprocess.Popen:
    """Run the command under torchrun, in `count` processes."""
    return _start("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, "-m", "ldadam", *arguments)


def torchrun(count: int, *arguments: str) -> tuple[int, str]:
    """The same to its end; returns the exit code and what came on stderr."""
    process = start_ranks(count, *arguments)
    _, errors = process.communicate()
    return process.returncode, errors


def _start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_lines(process: subprocess.Popen, path: Path, count: int) -> None:
    """Return once `path` has `count` lines; fail if the process ends before."""
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)  # the process needs the core
    assert process.poll() is None


def numbers(run: Path) -> list[dict]:
    """The metrics of a run without what depends on the clock."""
    return [{k: v for k, v in record.items() if k not in TIME_FIELDS} for record in read_metrics(run / "metrics.jsonl")]
