"""A run of a study in a process of its own: begun, continued or found finished, and what it gave."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldadam.comparison.study import KINDS, Study, Trial, as_options
from ldadam.report import RunData, load_run
from ldadam.training import checkpoints, run_folder
from ldadam.training.config_file import read_config_file
from ldadam.training.errors import Interrupted, UsageError
from ldadam.training.metrics import read_metrics
from ldadam.training.optimizers import find_optimizer

# Between two looks at how far a run has come.
POLL_SECONDS = 0.5
_TAIL_BYTES = 1 << 18
INTERRUPTED = Interrupted.exit_code


class TrialFailed(Exception):
    """A run that ended with an error, which its last line says."""


def finished_run(study: Study, trial: Trial, folder: Path) -> RunData | None:
    """What a run gave, if it has come to its end in `folder`.

    Raises:
        UsageError: the folder holds a run with other settings.
    """
    if not (folder / run_folder.CONFIG_FILE).exists():
        return None
    recorded = read_config_file(folder / run_folder.CONFIG_FILE, KINDS[study.subcommand])
    for name, value in study.settings_of(trial).items():
        if name in recorded and name not in _MAY_DIFFER and not _same(recorded[name], value):
            raise UsageError(
                f"{folder} holds a run with {name}={recorded[name]}, and now it would be {value}: delete it, or choose "
                "another --out"
            )
    metrics = read_metrics(folder / "metrics.jsonl")
    if not metrics or metrics[-1]["step"] < planned_steps(folder, recorded):
        return None
    return load_run(folder, name=trial.name)


# What a run may be given anew without being another one.
_MAY_DIFFER = ("report", "threads", "device", "save_every", "keep_checkpoints", "tokens", "out")


def _same(recorded: Any, asked: Any) -> bool:
    return str(recorded) == str(asked) if isinstance(asked, str) else recorded == asked


def planned_steps(folder: Path, recorded: dict[str, Any]) -> int:
    """The steps of a run that was begun: of a fine-tuning run they follow from its data."""
    facts = json.loads((folder / run_folder.RUN_FILE).read_text(encoding="utf-8"))
    return facts.get("steps") or recorded["steps"]


def run_trial(study: Study, trial: Trial, folder: Path, *, processes: int, on_step: Callable[[int], None]) -> RunData:
    """Make a run in a process of its own, or go on with it, and return what it gave.

    Args:
        study: what it is part of.
        trial: the run.
        folder: of the run; what it prints goes to a file beside it, with the suffix .log.
        processes: more than one are started by torchrun.
        on_step: told the last step that was taken, now and then.

    Raises:
        TrialFailed: the run ended with an error.
        Interrupted: the run was stopped by Ctrl-C, after it had saved.
    """
    if (found := finished_run(study, trial, folder)) is not None:
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(_command(study, trial, folder, processes), stdout=stream, stderr=subprocess.STDOUT)
        _wait(process, folder, on_step)
    if process.returncode == INTERRUPTED:
        raise Interrupted(f"{trial.name} was stopped")
    if process.returncode:
        raise TrialFailed(_last_line(log) or f"exit code {process.returncode}")
    if (found := finished_run(study, trial, folder)) is None:
        raise TrialFailed(f"it ended before its last step; {log} has what it printed")
    return found


def _command(study: Study, trial: Trial, folder: Path, processes: int) -> list[str]:
    """One that resumes where there is a checkpoint to read; what was begun without one is begun anew."""
    python = [sys.executable]
    if processes > 1:
        python += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    program = [*python, "-m", "ldadam", study.subcommand, "--out", str(folder)]
    if checkpoints.checkpoint_steps(folder) and find_optimizer(trial.contestant.optimizer).resumes:
        return [*program, "--resume"]
    if (folder / run_folder.CONFIG_FILE).exists():
        shutil.rmtree(folder)
    return [*program, *as_options(study.settings_of(trial))]


def _wait(process: subprocess.Popen[bytes], folder: Path, on_step: Callable[[int], None]) -> None:
    """Until the process ends. Ctrl-C reaches it too, and it is given the time to save."""
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            on_step(_last_step(folder / "metrics.jsonl"))
    except KeyboardInterrupt as stop:
        process.wait()
        raise Interrupted("stopped") from stop
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _last_step(metrics: Path) -> int:
    """From the end of the file, which may be long."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as stream:
        stream.seek(max(0, metrics.stat().st_size - _TAIL_BYTES))
        found = re.findall(rb'^{"step": (\d+)', stream.read(), flags=re.MULTILINE)
    return int(found[-1]) if found else 0


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("ldadam: ") if lines else ""
