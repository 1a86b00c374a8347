"""Files that a command is asked to write."""

from __future__ import annotations

from pathlib import Path

from ldadam.training.errors import UsageError


def make_folder_of(path: Path, *, option: str) -> None:
    """Make the folder of a file to be written.

    Raises:
        UsageError: the path, which `option` gave, is a folder itself, or its folder cannot be made.
    """
    if path.is_dir():
        raise UsageError(f"{option} must be a file, and {path} is a folder: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option} cannot be written to {path}: {error.strerror}") from error
