"""What the storage of the error buffer costs in quality: the demo's LDAdamW run with each, on the same seeds.

    python benchmarks/buffer_quality.py                run what benchmarks/results/buffer_quality.json lacks
    python benchmarks/buffer_quality.py --table        print the table of docs/memory.md from it

Each run has the settings of `ldadam demo`, but for the storage and the seed of weights, batches and validation text.
The file is written after each run, so that a stopped series goes on where it was. Codes by chance and codes of 3 and
2 bits exist here alone: the encoder that the optimizer calls is replaced, and fewer bits stay in the storage of 4.
"""

import argparse
import contextlib
import functools
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from ldadam import provenance, quantization
from ldadam.report import load_run
from ldadam.training.config import PretrainConfig, resolve
from ldadam.training.pretrain import Text, prepare_text, pretrain

RESULTS = Path(__file__).parent / "results/buffer_quality.json"
SEEDS = (0, 1, 2)


class Storage(NamedTuple):
    """How E is kept: in a dtype, or None for not at all; codes perhaps of another largest one, or rounded by chance."""

    error_dtype: str | None
    largest_code: int | None = None
    by_chance: bool = False


PRODUCT = {
    "float32": Storage("float32"),
    "bfloat16": Storage("bfloat16"),
    "int8": Storage("int8"),
    "int4": Storage("int4"),
    "no error feedback": Storage(None),
}
BY_CHANCE = {"int8, by chance": Storage("int8", by_chance=True), "int4, by chance": Storage("int4", by_chance=True)}
FEWER_BITS = {
    "3 bits": Storage("int4", largest_code=3),
    "2 bits": Storage("int4", largest_code=1),
    "3 bits, by chance": Storage("int4", largest_code=3, by_chance=True),
    "2 bits, by chance": Storage("int4", largest_code=1, by_chance=True),
}
STORAGES = {**PRODUCT, **BY_CHANCE, **FEWER_BITS}
# Those that matter most come first.
RUNS = [(name, seed) for part in (PRODUCT, BY_CHANCE, FEWER_BITS) for seed in SEEDS for name in part]


def make_config(storage: Storage, seed: int, out: str) -> PretrainConfig:
    kept = {"error_dtype": storage.error_dtype} if storage.error_dtype else {"error_feedback": False}
    settings = {"preset": "demo", "optimizer": "ldadamw", "seed": seed, "device": "cpu", "threads": 1, "out": out}
    settings["dense_lr_scale"] = 1.0  # as in the runs that are recorded
    steps = resolve(settings).steps
    return resolve({**settings, **kept, "eval_every": steps, "save_every": steps, "monitor_every": 0})


@functools.cache
def text_of(seed: int) -> Text:
    with tempfile.TemporaryDirectory() as folder:
        return prepare_text(make_config(STORAGES["float32"], seed, folder))


@contextlib.contextmanager
def codes_of(storage: Storage, seed: int) -> Iterator[None]:
    """Inside, the optimizer encodes as `storage` says."""
    generator, encode = torch.Generator().manual_seed(seed), quantization.encode

    def encode_by_chance(values: torch.Tensor, kind: str) -> quantization.Quantized:
        noise = None if values.is_meta else torch.rand(values.shape, generator=generator)
        return encode(values, kind, noise=noise)

    largest = {} if storage.largest_code is None else {"int4": storage.largest_code}
    with (
        mock.patch.dict(quantization.LARGEST_CODE, largest),
        mock.patch.object(quantization, "encode", encode_by_chance if storage.by_chance else encode),
    ):
        yield


def validation_loss(name: str, seed: int) -> float:
    """In nats per token, after the last step."""
    with tempfile.TemporaryDirectory() as folder, codes_of(STORAGES[name], seed):
        run = pretrain(make_config(STORAGES[name], seed, folder + "/run"), text=text_of(seed), title=name)
        return load_run(run).summary()["final_validation_loss"]


def run_missing(out: Path) -> None:
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"runs": []}
    done = {(run["storage"], run["seed"]) for run in found["runs"]}
    packages = ["torch", "transformers", "tokenizers", "numpy"]
    made_by = {"versions": provenance.versions(packages), "hardware": provenance.hardware()}
    for name, seed in RUNS:
        if (name, seed) in done:
            continue
        loss = validation_loss(name, seed)
        facts = {"fingerprint": text_of(seed).packed.fingerprint, "commit": made_by["versions"]["commit"]}
        found["runs"].append({"storage": name, "seed": seed, "validation_loss": loss, **facts})
        print(f"{name}, seed {seed}: {loss:.4f}", flush=True)
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps({**made_by, **found}, indent=1) + "\n", encoding="utf-8")
        partial.replace(out)


def table(found: dict[str, Any]) -> str:
    """Markdown: means over the seeds that a storage has been run with, and its difference to float32 on the same ones.

    Seeds have other validation text, so that the difference is taken seed by seed.
    """
    losses: dict[str, dict[int, float]] = {}
    for run in found["runs"]:
        losses.setdefault(run["storage"], {})[run["seed"]] = run["validation_loss"]
    base = losses["float32"]
    lines = [
        "| error buffer | seeds | validation loss | to float32, % | lowest to highest |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in (name for name in STORAGES if name in losses):
        by_seed = losses[name]
        each = [100 * (by_seed[seed] / base[seed] - 1) for seed in by_seed]
        compared = (
            ["", ""]
            if name == "float32"
            else [f"{statistics.mean(each):+.2f}", f"{min(each):+.2f} to {max(each):+.2f}"]
        )
        cells = [name, str(len(by_seed)), f"{statistics.mean(by_seed.values()):.3f}", *compared]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text(encoding="utf-8"))), end="")
    else:
        run_missing(args.out)


if __name__ == "__main__":
    main()
