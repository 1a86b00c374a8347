"""A run of a study in a process of its own: begun, continued or found finished, and what it gave."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ldadam.comparison.study import KINDS, MAY_DIFFER, Study, Trial, as_options, other_package
from ldadam.report import RunData, load_run
from ldadam.training import checkpoints, run_folder
from ldadam.training.errors import Interrupted, UsageError
from ldadam.training.metrics import METRICS_FILE, read_metrics
from ldadam.training.optimizers import find_optimizer
from ldadam.training.run_config import fields_of

# Between two looks at how far a run has come.
POLL_SECONDS = 0.5
_TAIL_BYTES = 1 << 18


class TrialFailed(Exception):
    """A run that ended with an error, which its last line says."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which unlike Ctrl-C has not reached the run's own process."""


def finished_run(study: Study, trial: Trial, folder: Path) -> RunData | None:
    """What a run gave, if it has come to its end in `folder`.

    Raises:
        UsageError: the folder holds a run with other settings.
    """
    if not (folder / run_folder.CONFIG_FILE).exists():
        return None
    facts = json.loads((folder / run_folder.RUN_FILE).read_text(encoding="utf-8"))
    if facts.get("subcommand") != study.subcommand:
        raise UsageError(f"{folder} holds a run of `ldadam {facts.get('subcommand')}`: choose another --out")
    kind = KINDS[study.subcommand]
    recorded = kind(**run_folder.recorded_settings(folder, kind))
    asked = study.config_of(trial)
    for name in fields_of(type(asked)):
        was, now = getattr(recorded, name), getattr(asked, name)
        if name not in MAY_DIFFER and was != now:
            raise UsageError(
                f"{folder} holds a run with {name}={was}, and now it would be {now}: delete it, or choose another --out"
            )
    if installed := other_package(trial, package := facts.get("optimizer_package")):
        raise UsageError(
            f"{folder} was made with {package}, and {installed} is installed: delete it, or go back to that"
        )
    metrics, steps = read_metrics(folder / METRICS_FILE), facts.get("steps") or recorded.steps
    if not metrics or metrics[-1]["step"] < steps:
        return None
    return load_run(folder, name=trial.name)


def run_trial(
    study: Study, trial: Trial, folder: Path, *, processes: int, lock: int, on_step: Callable[[int], None]
) -> RunData:
    """Make a run in a process of its own, or go on with it, and return what it gave.

    Args:
        study: what it is part of.
        trial: the run.
        folder: of the run; what it prints goes to a file beside it, with the suffix .log.
        processes: more than one are started by torchrun.
        lock: a file that is open and locked; the process keeps it open, and with it the lock.
        on_step: told the last step that was taken, now and then.

    Raises:
        TrialFailed: the run ended with an error.
        Interrupted: the run was stopped by Ctrl-C or SIGTERM, after it had saved.
    """
    log = folder.parent / f"{folder.name}.log"
    command = _command(study, trial, folder, processes)
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, pass_fds=(lock,))
        _wait(process, folder, on_step)
    if process.returncode == Interrupted.exit_code:
        raise Interrupted(f"{trial.name} was stopped")
    if process.returncode:
        raise TrialFailed(_reason(process.returncode, log))
    if (found := finished_run(study, trial, folder)) is None:
        raise TrialFailed(f"it ended before its last step; {log} has what it printed")
    return found


def _command(study: Study, trial: Trial, folder: Path, processes: int) -> list[str]:
    """One that resumes where there is a checkpoint to read; what was begun without one is begun anew."""
    python = [sys.executable]
    if processes > 1:
        python += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    program = [*python, "-m", "ldadam", study.subcommand, "--out", str(folder)]
    if checkpoints.checkpoint_steps(folder) and find_optimizer(trial.contestant.optimizer).resumes:
        return [*program, "--resume"]
    if (folder / run_folder.CONFIG_FILE).exists():
        shutil.rmtree(folder)
    return [*program, *as_options(study.settings_of(trial))]


def _wait(process: subprocess.Popen[bytes], folder: Path, on_step: Callable[[int], None]) -> None:
    """Until the process ends. Stopped, it is given the time to save; Ctrl-C reaches it by itself."""
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            on_step(_last_step(folder / METRICS_FILE))
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):
            process.terminate()
        process.wait()
        raise Interrupted("stopped") from stop


def _last_step(metrics: Path) -> int:
    """From the end of the file, which may be long."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as stream:
        stream.seek(max(0, metrics.stat().st_size - _TAIL_BYTES))
        found = re.findall(rb'^{"step": (\d+)', stream.read(), flags=re.MULTILINE)
    return int(found[-1]) if found else 0


def _reason(returncode: int, log: Path) -> str:
    """The sentence that the command ended with; several processes say more after it."""
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    sentences = [line.removeprefix("ldadam: ") for line in lines if line.startswith("ldadam: ")]
    return (sentences or lines or [f"exit code {returncode}"])[-1]
