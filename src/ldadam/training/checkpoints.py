"""Checkpoints that are whole or not there: written under another name, given a manifest, then renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from pathlib import Path

from ldadam.training.errors import RunError

MANIFEST = "complete.json"
PARTIAL = ".partial-checkpoint"


def checkpoint_steps(run: Path) -> dict[int, Path]:
    """Complete checkpoints of a run by step, in order."""
    found = [p for p in run.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name) and p.is_dir()]
    return {step_of(path): path for path in sorted(found, key=step_of)}


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def publish(partial: Path, final: Path) -> None:
    """Give a freshly written checkpoint its manifest and its name. The rename is what makes it exist."""
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    entries = {str(path.relative_to(partial)): [path.stat().st_size, crc32(path)] for path in files}
    (partial / MANIFEST).write_text(json.dumps(entries, indent=1), encoding="utf-8")
    for path in (*files, partial / MANIFEST):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)


def crc32(path: Path) -> int:
    """Checksum of a file."""
    checksum = 0
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def verify(checkpoint: Path) -> None:
    """Compare every file with the manifest; a damaged checkpoint is an error that says what to do."""
    try:
        entries = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(checkpoint, f"its {MANIFEST} is missing or unreadable") from error
    for name, (size, checksum) in entries.items():
        path = checkpoint / name
        if not path.exists():
            raise _damaged(checkpoint, f"{name} is missing")
        if path.stat().st_size != size:
            raise _damaged(checkpoint, f"{name} has {path.stat().st_size} bytes, {size} were written")
        if crc32(path) != checksum:
            raise _damaged(checkpoint, f"{name} does not have the content that was written")


def _damaged(checkpoint: Path, reason: str) -> RunError:
    older = [path.name for path in checkpoint_steps(checkpoint.parent).values() if path != checkpoint]
    instead = f"resume from {older[-1]}" if older else "start again"
    return RunError(f"checkpoint {checkpoint} is damaged: {reason}; delete that folder to {instead}")


def keep_last(run: Path, count: int) -> None:
    """Delete all but the newest `count` checkpoints."""
    for path in list(checkpoint_steps(run).values())[: -count or None]:
        shutil.rmtree(path)


def remove_partial(run: Path) -> None:
    """Delete what an unfinished save left behind."""
    shutil.rmtree(run / PARTIAL, ignore_errors=True)


def disk_reason(error: BaseException) -> str | None:
    """Why a write failed, if the disk or a limit is to blame; torch and safetensors wrap the system's error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            where = f": {seen.filename}" if seen.filename else ""
            return f"{seen.strerror.lower()} (errno {seen.errno}){where}"
        text = str(seen)
        if "No space left" in text or "File too large" in text or "os error" in text:
            return text.strip().splitlines()[0]
        if "PytorchStreamWriter" in text or "unexpected pos" in text or "iostream error" in text:
            return "the file could not be written in full"
        seen = seen.__cause__ or seen.__context__
    return None
