"""Data that comes inside a Python package, read without importing it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ldadam.training.errors import UsageError


def package_folder(package: str, *, install: str, what: str) -> Path:
    """The folder of an installed package.

    Args:
        package: the name under which it would be imported.
        install: what to tell pip.
        what: the thing that is read from it, for the message.

    Raises:
        UsageError: it is not installed, with the command that does it.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UsageError(f"{what} is read from a package that is not installed: run `pip install {install}`")
    return Path(found.submodule_search_locations[0])
