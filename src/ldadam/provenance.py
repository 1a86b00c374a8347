"""Where a number comes from: command, versions, commit and machine, for the files that runs and benchmarks leave."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def command() -> str:
    """The command line, without the path of the program."""
    return " ".join(["ldadam", *sys.argv[1:]])


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Versions of Python, of this package and of `packages`, and its commit; None for what is not installed."""
    import ldadam

    found = {name: version(name) for name in packages}
    return {"python": platform.python_version(), "ldadam": ldadam.__version__, **found, "commit": git_commit()}


def version(package: str) -> str | None:
    """Of a package that is installed; None if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of a source checkout; None for an installed package.

    For a copy of the sources without their history, the environment variable LDADAM_COMMIT says it.
    """
    source = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=source,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("LDADAM_COMMIT")
    return found.stdout.strip()


def hardware() -> dict[str, Any]:
    """The machine in words."""
    import torch

    found: dict[str, Any] = {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
